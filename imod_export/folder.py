"""Everything of a model folder that is not weights: processor, template, tokenizer, generation config, code."""

import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from imod_core.artifacts import MANIFEST, read_json, write_json
from imod_core.errors import InputError
from imod_export.tensors import INDEX

WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".onnx", ".onnx_data", ".h5", ".msgpack", ".tflite")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
SPEAKERS = "spk_dict.pt"
"""Qwen omni models' voices: a pickle that transformers asks for, and reads as tensors only."""
OF_THE_BASE = ("onnx", "parity", "original", "checkpoints")
"""Folders that hold other forms of the base's weights, or speak of them: untrue of the merge."""
ABOUT_THE_BASE = (INDEX, MANIFEST, "README.md", "merge.json")
"""Files of which the merge has its own."""
DTYPE_KEYS = ("dtype", "torch_dtype")


def copy_companions(base: Path, folder: Path) -> list[str]:
    """Copy the base's other files into `folder`; returns those left out that a reader may miss (pickles).

    Raises:
        InputError: a link that leads nowhere, or a file that cannot be read.
    """
    left_out = []
    for path in _files(base):
        relative = path.relative_to(base)
        if path.suffix in PICKLE_SUFFIXES and path.name != SPEAKERS:
            left_out.append(str(relative))
        elif path.suffix not in WEIGHT_SUFFIXES and relative.as_posix() not in ABOUT_THE_BASE:
            _copy(path, folder / relative)
    return left_out


def link_files(source: Path, folder: Path, but: Collection[str] = ()) -> None:
    """Make `folder`, of links to what lies in `source`, except what is named like one of `but`."""
    folder.mkdir()
    for path in source.iterdir():
        if path.name not in but:
            (folder / path.name).symlink_to(path.resolve())


def set_dtype(folder: Path, dtype: str) -> None:
    """Make config.json, and every part of it that names a dtype, say `dtype` (torch's name)."""
    config = read_json(folder / "config.json")
    key = next((key for key in DTYPE_KEYS if key in config), DTYPE_KEYS[0])
    write_json(folder / "config.json", {**_with_dtype(config, dtype), key: dtype})


def set_untied(folder: Path) -> None:
    """Make config.json, and every part of it that speaks of it, say that embedding and head are two tensors."""
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**_with_untied(config), "tie_word_embeddings": False})


def _files(base: Path) -> Iterator[Path]:
    """All visible files; folders that are links are not followed, so that a circle of links ends."""
    for root, folders, names in os.walk(base):
        is_top = Path(root) == base
        folders[:] = sorted(d for d in folders if not d.startswith(".") and not (is_top and d in OF_THE_BASE))
        yield from (Path(root) / name for name in sorted(names) if not name.startswith("."))


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise InputError(f"{source} is a link that leads nowhere or no file: mend or remove it.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise InputError(f"{source} could not be copied ({error.strerror}).") from None


def _with_dtype(values: dict[str, Any], dtype: str) -> dict[str, Any]:
    def changed(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return _with_dtype(value, dtype)
        return dtype if key in DTYPE_KEYS and isinstance(value, str) else value

    return {key: changed(key, value) for key, value in values.items()}


def _with_untied(values: dict[str, Any]) -> dict[str, Any]:
    parts = {key: _with_untied(value) for key, value in values.items() if isinstance(value, dict)}
    told = {"tie_word_embeddings": False} if "tie_word_embeddings" in values else {}
    return {**values, **parts, **told}
