"""Safetensors files by their headers: names, dtypes, shapes and byte ranges. No tensor data is read here.

A file is 8 bytes of header length, a JSON header, then the data. Reading and writing it ourselves is what lets a merge
stream: the library's own writer wants a whole shard in memory.
"""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from imod_core.artifacts import read_json
from imod_core.errors import InputError, MissingFileError

ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""torch's names of the dtypes that a merge reads and writes, and safetensors' names."""
MAX_HEADER = 100_000_000
"""Bytes; the limit of the format's own reader."""
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies."""

    name: str
    dtype: str
    """safetensors' name, e.g. `BF16`."""
    shape: tuple[int, ...]
    path: Path
    start: int
    """First byte in the file; the data has `nbytes`."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Shard:
    """One safetensors file."""

    path: Path
    header: bytes
    """Length prefix and JSON, as they are on disk."""
    tensors: tuple[TensorInfo, ...]
    """In the order of their data, which is gapless."""
    metadata: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A model folder's weights: one file, or shards and their index."""

    folder: Path
    shards: tuple[Shard, ...]
    index: dict[str, Any] | None

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        return {info.name: info for shard in self.shards for info in shard.tensors}

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())


def read_shard(path: Path) -> Shard:
    """The header of a safetensors file, checked against the file's size.

    Raises:
        MissingFileError: no such file.
        InputError: it is truncated, damaged or of an unknown dtype.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist: expected a safetensors file, copy the folder again.")
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, MAX_HEADER):
            raise _damaged(path, f"its header wants {length} bytes of {size}" if len(prefix) == 8 else "it is empty")
        raw = file.read(length)
    try:
        entries = json.loads(raw)
        metadata = entries.pop("__metadata__", None) or {}
        tensors = [_tensor(name, entry, path, 8 + length) for name, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged(path, "its header cannot be read") from None
    tensors.sort(key=lambda info: (info.start, info.nbytes))
    _check_gapless(path, tensors, 8 + length, size)
    return Shard(path, prefix + raw, tuple(tensors), metadata)


def read_checkpoint(folder: Path) -> Checkpoint:
    """The headers of a model folder's weights.

    Raises:
        MissingFileError: no weights, or a shard that the index names is missing.
        InputError: a damaged file, or an index that does not fit its shards.
    """
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        names = index.get("weight_map")
        if not isinstance(names, dict) or not names or not all(_is_file_name(v) for v in names.values()):
            raise InputError(f"{folder / INDEX} has no usable weight_map: expected tensor names and shard names.")
        shards = tuple(read_shard(folder / name) for name in sorted(set(names.values())))
        checkpoint = Checkpoint(folder, shards, index)
        _check_index(checkpoint, names)
        return checkpoint
    if (folder / SINGLE).is_file():
        return Checkpoint(folder, (read_shard(folder / SINGLE),), None)
    found = [path.name for pattern in ("*.safetensors", "*.bin", "*.gguf") for path in sorted(folder.glob(pattern))]
    has = f"only {', '.join(found[:3])}" if found else "no weights"
    raise MissingFileError(f"{folder} holds {has}: expected {SINGLE}, or shards with {INDEX}.")


def header_bytes(tensors: list[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """Length prefix and header for `(name, dtype, shape)` laid out one after the other, padded to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, dtype, shape in tensors:
        end = position + math.prod(shape) * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _tensor(name: str, entry: dict[str, Any], path: Path, data_start: int) -> TensorInfo:
    begin, end = entry["data_offsets"]
    info = TensorInfo(name, entry["dtype"], tuple(int(n) for n in entry["shape"]), path, data_start + begin)
    if min(info.shape, default=1) < 0 or info.nbytes != end - begin:
        raise ValueError(name)
    return info


def _check_gapless(path: Path, tensors: list[TensorInfo], data_start: int, size: int) -> None:
    position = data_start
    for info in tensors:
        if info.start != position:
            raise _damaged(path, f"the data of '{info.name}' does not begin where it should")
        position += info.nbytes
    if position != size:
        raise _damaged(path, f"it has {size} bytes and its header describes {position}")


def _check_index(checkpoint: Checkpoint, names: dict[str, str]) -> None:
    held = {info.name: shard.path.name for shard in checkpoint.shards for info in shard.tensors}
    for name, shard in names.items():
        if held.get(name) != shard:
            raise InputError(f"{checkpoint.folder / INDEX} places '{name}' in {shard}, which does not hold it.")
    if len(held) != sum(len(shard.tensors) for shard in checkpoint.shards):
        raise InputError(f"{checkpoint.folder} holds a tensor in two shards: expected each once.")


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def _damaged(path: Path, fault: str) -> InputError:
    return InputError(f"{path} is no whole safetensors file ({fault}): copy or download it again.")
