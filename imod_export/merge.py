"""The streamed merge: block by block `W + s·BA` in float32, everything else byte for byte.

Letters: `m` rows of a block, `r` rank. A weight is read, changed and written in blocks of rows, so that memory does not
grow with the model nor with its largest tensor.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch

from imod_core.artifacts import write_json
from imod_core.console import track
from imod_core.errors import InputError
from imod_export.adapter import LoraPair
from imod_export.plan import Change, MergePlan
from imod_export.tensors import DTYPES, INDEX, ITEM_BYTES, Shard, TensorInfo, header_bytes

BLOCK_BYTES = 1 << 25
"""Of one block in float32; a few such blocks are the peak of memory, besides one adapter pair."""
TORCH_DTYPES = {name: getattr(torch, kind) for kind, name in DTYPES.items()}


def write_weights(plan: MergePlan, folder: Path) -> None:
    """Write the merged shards and their index into `folder`, in the base's own names and layout.

    Raises:
        InputError: a file could not be read or written; values that are not finite, or leave the dtype's range.
    """
    total = sum(len(shard.tensors) for shard in plan.checkpoint.shards)
    try:
        for _ in track(_write(plan, folder), "Merging tensors", total=total):
            pass
    except OSError as error:
        raise InputError(f"The merge stopped ({error.strerror or error}): mend that and run it again.") from None
    if plan.checkpoint.index is not None:
        write_json(folder / INDEX, _index(plan))


def read_tensor(info: TensorInfo) -> torch.Tensor:
    """A whole tensor, in its own dtype."""
    with info.path.open("rb") as file:
        return _read(file, info, 0, _count(info)).reshape(info.shape)


def _write(plan: MergePlan, folder: Path) -> Iterator[str]:
    for shard in plan.checkpoint.shards:
        with shard.path.open("rb") as source, (folder / shard.path.name).open("wb") as target:
            target.write(_header(plan, shard))
            for info in shard.tensors:
                for block in _blocks(plan, info, source):
                    target.write(block)
                yield info.name
            target.flush()
            os.fsync(target.fileno())


def _header(plan: MergePlan, shard: Shard) -> bytes:
    if all(plan.dtype_of(info) == info.dtype for info in shard.tensors):
        return shard.header
    return header_bytes([(info.name, plan.dtype_of(info), info.shape) for info in shard.tensors], shard.metadata)


def _index(plan: MergePlan) -> dict:
    """The base's index with the size that the tensors have now, in bytes."""
    tensors = plan.checkpoint.tensors.values()
    size = sum(info.nbytes // ITEM_BYTES[info.dtype] * ITEM_BYTES[plan.dtype_of(info)] for info in tensors)
    index = plan.checkpoint.index or {}
    return {**index, "metadata": {**(index.get("metadata") or {}), "total_size": size}}


def _blocks(plan: MergePlan, info: TensorInfo, source: BinaryIO) -> Iterator[bytes | memoryview]:
    """The data of a tensor as it is in the merge."""
    change, dtype = plan.changes.get(info.name), plan.dtype_of(info)
    if change is None and dtype == info.dtype:
        yield from _copy(source, info)
        return
    for rows in _new_rows(info, change, source):
        yield _to_bytes(rows, info.name, TORCH_DTYPES[dtype])


def _copy(source: BinaryIO, info: TensorInfo) -> Iterator[bytes]:
    source.seek(info.start)
    left = info.nbytes
    while left:
        block = source.read(min(left, BLOCK_BYTES))
        if not block:
            raise InputError(f"{info.path} ends within '{info.name}': it was changed during the merge, run it again.")
        yield block
        left -= len(block)


def _new_rows(info: TensorInfo, change: Change | None, source: BinaryIO) -> Iterator[torch.Tensor]:
    """The merged tensor in float32 blocks (m, columns)."""
    if isinstance(change, TensorInfo):
        yield _finite(read_tensor(change).float(), change)
        return
    rows, columns = (info.shape[0], _count(info) // max(info.shape[0], 1)) if info.shape else (1, 1)
    factors = _factors(change) if change else None
    step = max(1, BLOCK_BYTES // (4 * max(columns, 1)))
    for first in range(0, rows, step):
        count = min(step, rows - first)
        block = _read(source, info, first * columns, count * columns).float().view(count, columns)
        if change and factors:
            block += (factors[0][first : first + count] @ factors[1]) * change.scale
        yield block


def _factors(pair: LoraPair) -> tuple[torch.Tensor, torch.Tensor]:
    """`(rows, r)` and `(r, columns)` in float32, whose product has the weight's own orientation."""
    a = _finite(read_tensor(pair.a).float(), pair.a).flatten(1)
    b = _finite(read_tensor(pair.b).float(), pair.b).flatten(1)
    return (a.T, b.T) if pair.transposed else (b, a)


def _read(source: BinaryIO, info: TensorInfo, first: int, count: int) -> torch.Tensor:
    """`count` values of a tensor from the value `first`, flat, in its own dtype."""
    size = ITEM_BYTES[info.dtype]
    buffer = bytearray(count * size)
    source.seek(info.start + first * size)
    if source.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
        raise InputError(f"{info.path} ends within '{info.name}': it was changed during the merge, run it again.")
    if not buffer:
        return torch.empty(0, dtype=TORCH_DTYPES[info.dtype])
    return torch.frombuffer(buffer, dtype=TORCH_DTYPES[info.dtype])


def _to_bytes(rows: torch.Tensor, name: str, dtype: torch.dtype) -> memoryview:
    cast = rows.to(dtype)
    if dtype == torch.float16 and bool((cast.isinf() & rows.isfinite()).any()):
        raise InputError(f"'{name}' holds values beyond float16's range: use --dtype bfloat16 or float32.")
    return cast.contiguous().flatten().view(torch.uint8).numpy().data


def _finite(values: torch.Tensor, info: TensorInfo) -> torch.Tensor:
    if not bool(values.isfinite().all()):
        raise InputError(f"'{info.name}' in {info.path} holds NaN or infinity: the training diverged, take another.")
    return values


def _count(info: TensorInfo) -> int:
    return info.nbytes // ITEM_BYTES[info.dtype]
