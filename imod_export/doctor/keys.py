"""Is every tensor there that the architecture wants, and no other? Asked of transformers itself, on the meta device.

The model is built without memory for its weights and the checkpoint's names go through transformers' own renaming, so
that what is missing here is what would be random there. No code of the folder is run.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr
from functools import partial
from importlib.util import find_spec
from typing import Any

from imod_core.families import family_of
from imod_export.doctor.companions import media
from imod_export.doctor.finding import Finding, Patient

CHECK = "keys"
FRAMEWORK = ("torch", "transformers", "accelerate")


def check(patient: Patient) -> Iterator[Finding]:
    """Missing, surplus and misshapen tensors."""
    if not patient.config or patient.checkpoint is None:
        return
    absent = [name for name in FRAMEWORK if find_spec(name) is None]
    if absent:
        what = f"{absent[0]} is not installed, so that tensor names were not checked"
        yield Finding(CHECK, what, "missing weights would be random", "pip install 'imod-lora[export]'", "note")
        return
    found, reason = _loading_info(patient)
    if found is None:
        what = f"transformers here cannot say which tensors the model needs ({reason})"
        why = "missing weights would be random and nobody would notice"
        yield Finding(CHECK, what, why, "pip install -U transformers", "note")
        return
    yield from _missing(patient, sorted(found["missing_keys"]))
    yield from _misshapen(patient, sorted(found["mismatched_keys"]))
    yield from _surplus(patient, sorted(found["unexpected_keys"]))


def _missing(patient: Patient, names: list[str]) -> Iterator[Finding]:
    if names:
        what = f"{len(names)} tensors that the model needs are missing, first '{names[0]}'"
        why = "transformers fills them with random values and only warns; vLLM does not start"
        yield Finding(CHECK, what, why, patient.merge_again())


def _misshapen(patient: Patient, entries: list[Any]) -> Iterator[Finding]:
    if entries:
        name, found, wanted = entries[0]
        what = f"{len(entries)} tensors have another shape than config.json says, first '{name}' {list(found)}"
        why = f"the model wants {list(wanted)} and does not load"
        yield Finding(CHECK, what, why, patient.copy("config.json"))


def _surplus(patient: Patient, names: list[str]) -> Iterator[Finding]:
    names = [name for name in names if not name.endswith(("rotary_emb.inv_freq", "position_ids"))]
    adapters = [name for name in names if ".lora_" in name or ".modules_to_save." in name or "base_layer" in name]
    if adapters:
        what = f"{len(adapters)} tensors of an adapter are in the model, first '{adapters[0]}'"
        why = "PEFT's wrapped model was saved: the base's names are wrong and the update is not merged"
        yield Finding(CHECK, what, why, patient.merge_again())
    elif names:
        what = f"{len(names)} tensors are there that the model does not use, first '{names[0]}'"
        why = "they are ignored: if training changed them, that is lost"
        yield Finding(CHECK, what, why, patient.merge_again(), "note")


def _loading_info(patient: Patient) -> tuple[dict[str, Any] | None, str]:
    """What transformers finds when it loads names and shapes, or why it does not."""
    import transformers
    from transformers.utils import logging

    import imod_core.avt  # noqa: F401  (registers AVT with the Auto classes)

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            kind = _class(patient, transformers)
            options: dict[str, Any] = {"device_map": "meta", "ignore_mismatched_sizes": True}
            _, info = _loader(kind, transformers)(patient.folder, output_loading_info=True, **options)
            return info, ""
    except Exception as error:  # whatever transformers raises over a broken folder is the finding
        return None, (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def _loader(kind: Any, transformers: Any) -> Any:
    """`from_pretrained` of all models, not a class's own: Qwen2.5-Omni's takes the pair of model and report for a
    model."""
    common = transformers.PreTrainedModel
    return partial(common.from_pretrained.__func__, kind) if issubclass(kind, common) else kind.from_pretrained


def _class(patient: Patient, transformers: Any) -> Any:
    """The class that holds all weights of the family, else the architecture's, else what the model type goes with."""
    family = family_of(patient.config)
    if family and family.blueprint and hasattr(transformers, family.blueprint.model):
        return getattr(transformers, family.blueprint.model)
    name = str((patient.config.get("architectures") or [""])[0])
    if patient.config.get("model_type") == "avt" or not hasattr(transformers, name):
        return transformers.AutoModelForImageTextToText if media(patient) else transformers.AutoModelForCausalLM
    return getattr(transformers, name)
