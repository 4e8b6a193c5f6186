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
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from imod_core.artifacts import (
    MANIFEST,
    model_identity,
    new_folder,
    read_manifest,
    sha256,
    write_json,
    write_manifest,
    write_text,
)
from imod_core.avt.configuration_avt import AvtConfig
from imod_core.avt.processing_avt import AvtProcessor
from imod_core.avt.states import TowerStates
from imod_core.console import console
from imod_core.errors import InputError
from imod_core.samples import read_samples
from imod_train.attachment import attach
from imod_train.calibrate import calibrate
from imod_train.dataset import SampleDataset
from imod_train.model import add_adapter, load_base, set_trainable
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
        console.print(f"{run} is finished already; nothing to do.")
        return run / "adapter"
    _check_one_process()
    samples = {stage.name: [s for path in stage.data for s in read_samples(Path(path))] for stage in recipe.stages}
    inputs = _inputs(recipe)
    _check_inputs(run, inputs)
    model, processor = load_base(recipe)
    states = TowerStates(Path(recipe.base), processor, Path(recipe.state_cache or run.parent / "states"))
    states.prepare(sample for stage in samples.values() for sample in stage)
    datasets = {
        stage.name: SampleDataset(samples[stage.name], processor, states, stage.questions_per_row)
        for stage in recipe.stages
    }
    peft_model = add_adapter(model, recipe.lora, recipe.seed)
    calibrate(peft_model, samples[recipe.stages[0].name], states)
    imod = _imod_state(peft_model, recipe)
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / INPUTS, inputs)
    write_text(run / "recipe.yaml", recipe.to_yaml())
    started = time.monotonic()
    for stage in recipe.stages:
        _stage(peft_model, recipe, stage, datasets[stage.name], processor, run)
    _save(peft_model, run)
    base = {"path": recipe.base, "sha256": inputs["base"], "model_type": AvtConfig.model_type}
    seconds = round(time.monotonic() - started, 1)
    write_manifest(run, "run", method=recipe.method, base=base, imod=imod, seconds=seconds, torch=torch.__version__)
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


def _stage(
    model: PeftModel, recipe: Recipe, stage: Stage, data: SampleDataset, processor: AvtProcessor, run: Path
) -> None:
    """Run a stage, or load what it came to if it is done."""
    result = run / "checkpoints" / f"{stage.name}.safetensors"
    if result.is_file():
        set_peft_model_state_dict(model, load_file(result))
        return
    run_stage(model, recipe, stage, data, processor.tokenizer, run)
    partial = result.with_suffix(".partial")
    save_file(
        {k: v.contiguous() for k, v in get_peft_model_state_dict(model, save_embedding_layers=False).items()}, partial
    )
    partial.replace(result)


def _save(model: PeftModel, run: Path) -> None:
    """The adapter folder, whole or not at all."""
    if not (run / "adapter").exists():
        with new_folder(run / "adapter") as folder:
            model.save_pretrained(str(folder), save_embedding_layers=False)


def _inputs(recipe: Recipe) -> dict[str, Any]:
    """Digests of what the run is made from."""
    data = sorted({path for stage in recipe.stages for path in stage.data})
    return {"base": model_identity(Path(recipe.base)), "data": {path: sha256(Path(path)) for path in data}}


def _check_inputs(run: Path, inputs: dict[str, Any]) -> None:
    """Refuse to go on with a run whose base or data have changed under it."""
    mark = run / INPUTS
    if mark.is_file() and json.loads(mark.read_text()) != inputs:
        raise InputError(f"{run} was started on another base or other data: restore them, or give another --out.")


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
