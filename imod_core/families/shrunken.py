"""Writing a shrunken model folder: a family's architecture and layout on the hub, a megabyte of random weights.

config.json and the processors' files are written as the hub has them; transformers then builds the model that they
describe and saves its weights under the hub's names.
"""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from transformers.utils import logging

from imod_core.artifacts import new_folder, write_json, write_text
from imod_core.avt.build import build_base
from imod_core.families import words
from imod_core.families.family import Blueprint, Family

ROWS_MULTIPLE = 128
"""The embedding has rows beyond the tokenizer's last id, as on the hub."""
SHARDS = 3
SPREAD = 0.1
"""Standard deviation of weights that transformers leaves alone."""


def build_shrunken(family: Family, out: Path, seed: int = 0) -> None:
    """Write a shrunken model of `family` to `out`; AVT's towers are those of the tiny preset. Raises as
    `write_shrunken`."""
    if family.blueprint:
        write_shrunken(family.blueprint, out, seed)
    elif family.backbone:
        with TemporaryDirectory() as place:
            write_shrunken(family.backbone, Path(place) / "llm", seed)
            build_base(
                out, preset="tiny", llm=str(Path(place) / "llm"), vision=None, audio=None, seed=seed, dtype="float32"
            )


def write_shrunken(blueprint: Blueprint, out: Path, seed: int = 0) -> None:
    """Write the folder that `blueprint` describes to `out`; everything random comes from `seed`.

    Raises:
        InputError: `out` exists and is not an empty folder.
    """
    with new_folder(out) as folder:
        ids = _write_tokenizer(blueprint, folder)
        rows = -(-(max(ids.values()) + 1) // ROWS_MULTIPLE) * ROWS_MULTIPLE
        write_json(folder / "config.json", blueprint.config(ids, rows))
        write_json(folder / "generation_config.json", blueprint.generation(ids))
        for name, values in blueprint.files.items():
            write_json(folder / name, values)
        _write_template(blueprint, folder)
        blueprint.finish(folder)
        _write_weights(blueprint, folder, seed)


def _write_tokenizer(blueprint: Blueprint, folder: Path) -> dict[str, int]:
    """tokenizer.json and what is said of it; returns the vocabulary."""
    tokenizer = getattr(words, blueprint.trainer)(blueprint.specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", blueprint.tokenizer)
    return tokenizer.get_vocab()


def _write_template(blueprint: Blueprint, folder: Path) -> None:
    name, template = blueprint.template_file, blueprint.template
    if name is None:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        write_json(folder / "tokenizer_config.json", {**config, "chat_template": template})
    elif name.endswith(".json"):
        write_json(folder / name, {"chat_template": template})
    else:
        write_text(folder / name, template)


def _write_weights(blueprint: Blueprint, folder: Path, seed: int) -> None:
    """Shards and their index; transformers turns its own names of today into those of the hub as it saves."""
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    model = _initialised(getattr(transformers, blueprint.model), transformers.AutoConfig.from_pretrained(folder))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    with TemporaryDirectory(dir=folder, prefix=".") as place:
        model.save_pretrained(place, max_shard_size=-(-size // SHARDS))
        for path in Path(place).glob("model*"):
            shutil.move(path, folder / path.name)


def _initialised(kind: Any, config: Any) -> Any:
    """A random model without a weight that transformers leaves as the memory was, as it does a talker's experts."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        model = kind(config)
    finally:
        torch.use_deterministic_algorithms(before)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.isfinite().all():
                parameter.normal_(0, SPREAD)
    return model
