"""Which tensor goes into which file of the merge: as in the base, or packed anew up to a size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from imod_export.tensors import ITEM_BYTES, SINGLE, Checkpoint, TensorInfo, header_bytes


@dataclass(frozen=True)
class Output:
    """One tensor of the merge."""

    name: str
    dtype: str
    """safetensors' name."""
    source: TensorInfo
    """The base's tensor that it is or comes from."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class OutputShard:
    """One file of the merge."""

    name: str
    tensors: tuple[Output, ...]
    """In the order of their data."""
    metadata: dict[str, str]
    kept_header: bytes | None = None
    """The base's header, where nothing in it changes."""

    @cached_property
    def header(self) -> bytes:
        return self.kept_header or header_bytes([(t.name, t.dtype, t.shape) for t in self.tensors], self.metadata)

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)


def lay_out(checkpoint: Checkpoint, outputs: Sequence[Output], max_shard: int | None) -> tuple[OutputShard, ...]:
    """The merge's files. With `max_shard` no file's data is larger, but for a tensor that is larger itself."""
    return _packed(checkpoint, outputs, max_shard) if max_shard else _as_in_base(checkpoint, outputs)


def index_of(checkpoint: Checkpoint, shards: Sequence[OutputShard]) -> dict[str, Any] | None:
    """The index of the files, with the tensors' size in bytes; None for a single file without one."""
    if len(shards) == 1 and (checkpoint.index is None or shards[0].name == SINGLE):
        return None
    kept = checkpoint.index or {}
    size = sum(tensor.nbytes for shard in shards for tensor in shard.tensors)
    places = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    order = [name for name in kept.get("weight_map", {}) if name in places]
    weight_map = {name: places[name] for name in dict.fromkeys([*order, *places])}
    return {**kept, "metadata": {**(kept.get("metadata") or {}), "total_size": size}, "weight_map": weight_map}


def _as_in_base(checkpoint: Checkpoint, outputs: Sequence[Output]) -> tuple[OutputShard, ...]:
    shards = []
    for shard in checkpoint.shards:
        held = tuple(output for output in outputs if output.source.path == shard.path)
        same = [(o.name, o.dtype) for o in held] == [(info.name, info.dtype) for info in shard.tensors]
        shards.append(OutputShard(shard.path.name, held, shard.metadata, shard.header if same else None))
    return tuple(shards)


def _packed(checkpoint: Checkpoint, outputs: Sequence[Output], max_shard: int) -> tuple[OutputShard, ...]:
    groups: list[list[Output]] = [[]]
    room = max_shard
    for output in outputs:
        if output.nbytes > room and groups[-1]:
            groups.append([])
            room = max_shard
        groups[-1].append(output)
        room -= output.nbytes
    metadata = checkpoint.shards[0].metadata
    names = [f"model-{n:05}-of-{len(groups):05}.safetensors" for n in range(1, len(groups) + 1)]
    names = [SINGLE] if len(groups) == 1 else names
    return tuple(OutputShard(name, tuple(group), metadata) for name, group in zip(names, groups, strict=True))
