"""A training run and its folder.

RUN/recipe.yaml        the recipe with every default
RUN/adapter/           the plain PEFT LoRA adapter, projectors as saved modules
RUN/metrics.jsonl      what the trainer logged; RUN/tensorboard/ the same for TensorBoard
RUN/checkpoints/       a stage's last checkpoint, and `<stage>.safetensors` once it is done
RUN/manifest.json      base identity, method, digests; written last
"""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from imod_core.artifacts import (
    MANIFEST,
    blake3_of,
    model_identity,
    new_folder,
    read_manifest,
    write_json,
    write_manifest,
    write_text,
)
from imod_core.console import console
from imod_core.errors import CheckFailed, InputError, MissingFileError
from imod_core.hub import model_folder
from imod_core.samples import Sample, read_samples
from imod_train.attachment import attach
from imod_train.base import load_base
from imod_train.feed import make_feed
from imod_train.model import add_adapter, set_trainable
from imod_train.recipe import TRAINABLE, Recipe, Stage, read_recipe
from imod_train.stage import run_stage

INPUTS = "inputs.json"


def train(recipe: Recipe, run: Path, resume: bool = False) -> Path:
    """Train through all stages and return the adapter's folder.

    A finished run of the same recipe is left as it is; an interrupted one goes on with `resume`.

    Raises:
        InputError: `run` belongs to another recipe, or is unfinished and `resume` is not set; bad data.
    """
    run = Path(run)
    if _is_finished(run, recipe, resume):
        with suppress(MissingFileError):  # base and data may have been removed since
            _check_inputs(run, _inputs(recipe))
        console.print(f"{run} is finished already; nothing to do.")
        return run / "adapter"
    _check_one_process()
    samples = {stage.name: [s for path in stage.data for s in read_samples(Path(path))] for stage in recipe.stages}
    _check_media(recipe, samples)
    inputs = _inputs(recipe)
    _check_inputs(run, inputs)
    model, processor = load_base(recipe)
    feed = make_feed(recipe, model, processor, run.parent / "states")
    datasets = feed.datasets(samples)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    peft_model = add_adapter(model, recipe.lora, recipe.seed)
    feed.prepare(peft_model, samples)
    imod = _imod_state(peft_model, recipe)
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / INPUTS, inputs)
    write_text(run / "recipe.yaml", recipe.to_yaml())
    started = time.monotonic()
    for stage in recipe.stages:
        _stage(peft_model, recipe, stage, datasets.pop(stage.name), feed.collator(stage), run)
    _save(peft_model, run)
    base = {"path": recipe.base, "blake3": inputs["base"], "model_type": model.config.model_type}
    seconds = round(time.monotonic() - started, 1)
    read = {name: value for name, value in asdict(recipe.media).items() if value is not None}
    write_manifest(
        run, "run", method=recipe.method, base=base, imod=imod, media=read, seconds=seconds, torch=torch.__version__
    )
    console.print(f"Adapter written to {run / 'adapter'}")
    return run / "adapter"


def _is_finished(run: Path, recipe: Recipe, resume: bool) -> bool:
    """Whether `run` holds the finished result of this recipe; refuses a folder that is in the way."""
    if not run.exists() or (run.is_dir() and not any(run.iterdir())):
        return False
    if not (run / "recipe.yaml").is_file():
        raise InputError(f"{run} exists and is no training run: give another --out.")
    if read_recipe(run / "recipe.yaml") != recipe:
        raise InputError(f"{run} was started with another recipe: give another --out, or remove it first.")
    if (run / MANIFEST).is_file():
        read_manifest(run, "run")
        return True
    if not resume:
        raise InputError(f"{run} holds an unfinished run of this recipe: go on with --resume, or remove it first.")
    return False


def _stage(model: PeftModel, recipe: Recipe, stage: Stage, data: Dataset, collator: Callable, run: Path) -> None:
    """Run a stage, or load what it came to if it is done."""
    result = run / "checkpoints" / f"{stage.name}.safetensors"
    if result.is_file():
        set_peft_model_state_dict(model, load_file(result))
        return
    run_stage(model, recipe, stage, data, collator, run)
    tensors = {k: v.contiguous() for k, v in get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    _check_finite(tensors, stage, run)
    partial = result.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(result)


def _check_finite(tensors: dict[str, torch.Tensor], stage: Stage, run: Path) -> None:
    """Refuse to call a stage done whose weights are no numbers."""
    wrong = next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None)
    if wrong is not None:
        raise CheckFailed(
            f"The stage '{stage.name}' diverged: '{wrong}' holds NaN or infinity ({run / 'metrics.jsonl'} shows since "
            "when). Lower its learning rate, or lora.alpha, and train into another --out."
        )


def _save(model: PeftModel, run: Path) -> None:
    """The adapter folder, whole or not at all."""
    if not (run / "adapter").exists():
        with new_folder(run / "adapter") as folder:
            model.save_pretrained(str(folder), save_embedding_layers=False)


def _inputs(recipe: Recipe) -> dict[str, Any]:
    """Digests of what the run is made from."""
    data = sorted({path for stage in recipe.stages for path in stage.data})
    base = model_identity(model_folder(recipe.base, "base"))
    return {"base": base, "data": {path: blake3_of(Path(path)) for path in data}}


def _check_inputs(run: Path, inputs: dict[str, Any]) -> None:
    """Refuse to go on with a run whose base or data have changed under it."""
    mark = run / INPUTS
    if mark.is_file() and json.loads(mark.read_text()) != inputs:
        raise InputError(f"{run} was started on another base or other data: restore them, or give another --out.")


def _check_media(recipe: Recipe, samples: dict[str, list[Sample]]) -> None:
    """Refuse to balance modalities where there is only one."""
    for stage in recipe.stages:
        adapts = recipe.method == "imod" and "adapter" in stage.train
        if adapts and not any(s.images or s.audios or s.videos for s in samples[stage.name]):
            raise InputError(
                f"No sample of the stage '{stage.name}' has a picture, sound or video, so there is nothing for IMoD to "
                "balance text against: add media, or set method: lora."
            )


def _check_one_process() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("imod train runs in one process so far: for several, attach IMoD in a script of your own.")


def _imod_state(model: PeftModel, recipe: Recipe) -> dict | None:
    """IMoD's settings and the digest of its masks, which follow from seed and module names alone.

    Asked before training: a setting that cannot be attached is refused before anything is written.
    """
    if recipe.method != "imod":
        return None
    set_trainable(model, TRAINABLE)
    handle = attach(model, recipe.imod)
    state = handle.state()
    handle.detach()
    return state
