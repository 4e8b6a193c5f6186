"""Does vLLM know the architecture, and does its name mapper take this folder's tensor names?"""

from collections.abc import Iterator

from imod_export.doctor import vllm_source
from imod_export.doctor.finding import Finding, Patient
from imod_export.names import OWNERS, canonical

CHECK = "architecture"
OF_THIS_PROJECT = "AvtForConditionalGeneration"
"""Registered with vLLM by this package's plugin."""
PART_OF = {"Thinker": "the full omni model", "Talker": "the full omni model"}


def check(patient: Patient) -> Iterator[Finding]:
    """The architecture in config.json against the installed vLLM's registry and mapper."""
    names = patient.config.get("architectures")
    if not isinstance(names, list) or not names:
        what = "config.json names no architectures"
        yield Finding(CHECK, what, "vLLM chooses its model class by that name", patient.copy("config.json"))
        return
    known = vllm_source.architectures()
    if not known:
        what = "vLLM is not installed, so that its registry was not asked"
        yield Finding(CHECK, what, "a server may not know the model", "pip install 'imod-lora[serve]'", "note")
        return
    name = str(names[0])
    if name not in known and name != OF_THIS_PROJECT:
        yield _unknown(patient, name)
        return
    yield from _mapped(patient, name)


def _unknown(patient: Patient, name: str) -> Finding:
    what = f"vLLM does not know the architecture {name}"
    if part := next((whole for part, whole in PART_OF.items() if part in name), None):
        why = f"it is a part of {part} saved alone: vLLM knows only the whole, by the whole's tensor names"
        return Finding(CHECK, what, why, patient.merge_again("FULL_MODEL"))
    if "AutoModel" in (patient.config.get("auto_map") or {}):
        why = "it runs in vLLM's Transformers backend, by the folder's own code"
        command = f"vllm serve {patient.folder} --model-impl transformers --trust-remote-code"
        return Finding(CHECK, what, why, command, "note")
    why = "it serves only what its registry lists or its Transformers backend can run"
    return Finding(CHECK, what, why, f"imod serve {patient.folder} -- --model-impl transformers")


def _mapped(patient: Patient, name: str) -> Iterator[Finding]:
    """The first language layer's name must begin as the mapper expects, else its weights are never loaded."""
    prefixes = vllm_source.prefixes(name)
    tensors = patient.checkpoint.tensors if patient.checkpoint else {}
    layer = next((tensor for tensor in tensors if canonical(tensor).startswith("text.layers.")), None)
    if prefixes and layer and not layer.startswith(prefixes):
        owner = next((owner for owner in OWNERS if any(p.startswith(owner) for p in prefixes)), "")
        what = f"tensors are called '{layer}', vLLM's {name} maps names that begin with {', '.join(prefixes[:4])}"
        why = "it starts with missing weights or not at all" + (f": they lack '{owner}'" if owner else "")
        yield Finding(CHECK, what, why, patient.merge_again())
