"""The streamed merge: block by block `W + s·BA` in float32, everything else byte for byte.

Letters: `m` rows of a block, `r` rank. A weight is read, changed and written in blocks of rows, so that memory does not
grow with the model nor with its largest tensor. A shard that is whole is noted, and not made again after a kill.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from imod_core.artifacts import write_json
from imod_core.console import console, track
from imod_core.errors import InputError
from imod_export.layout import Output, OutputShard, index_of
from imod_export.match import Update
from imod_export.plan import Change, MergePlan
from imod_export.rounding import Rounding, RoundingCost, cast
from imod_export.tensors import DTYPES, INDEX, ITEM_BYTES, TensorInfo
from imod_export.work import Work
from imod_export.writer import HashedWriter

BLOCK_BYTES = 1 << 19
"""Of one block in float32, so that it stays in a core's cache from reading to casting."""
COST_BLOCKS, COST_VALUES = 4, 1 << 16
"""What rounding costs is seen from the first rows of so many blocks, evenly over a weight; of small weights all."""
TORCH_DTYPES = {name: getattr(torch, kind) for kind, name in DTYPES.items()}


def write_weights(
    plan: MergePlan, work: Work, rounding: Rounding | None = None, between: Callable[[], None] = lambda: None
) -> None:
    """Write the merged shards that are not there yet, and their index, in the base's own names.

    Args:
        plan: what to write.
        work: where to, and which shards are whole.
        rounding: to the stored dtype; to nearest by default.
        between: called after each tensor; what it raises stops the merge.

    Raises:
        InputError: a file could not be read or written; values that are not finite, or leave the dtype's range.
    """
    rounding = rounding or Rounding()
    missing = [shard for shard in plan.shards if work.record(shard.name) is None]
    if len(missing) < len(plan.shards):
        console.print(f"Going on with an interrupted merge: {len(plan.shards) - len(missing)} shards are whole.")
    total = sum(len(shard.tensors) for shard in missing)
    with _one_thread(), closing(_write(plan, missing, work, rounding)) as steps:
        for _ in track(steps, "Merging tensors", total=total):
            between()
    if index := index_of(plan.checkpoint, plan.shards):
        write_json(work.folder / INDEX, index)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Blocks are too small to share among threads, and others write and hash meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def rounding_costs(plan: MergePlan, work: Work) -> list[dict[str, Any]]:
    """What was noted of each low-rank update, shard by shard: see `RoundingCost.result`."""
    return [cost for shard in plan.shards for cost in (work.record(shard.name) or {"costs": []})["costs"]]


def read_tensor(info: TensorInfo) -> torch.Tensor:
    """A whole tensor, in its own dtype."""
    with info.path.open("rb", buffering=0) as file:
        return read_values(file, info, 0, _count(info)).reshape(info.shape)


def _write(plan: MergePlan, shards: list[OutputShard], work: Work, rounding: Rounding) -> Generator[str, None, None]:
    for shard in shards:
        partial = work.folder / f".{shard.name}.partial"
        costs: list[RoundingCost] = []
        with HashedWriter(partial) as target, ExitStack() as stack:
            files: dict[Path, BinaryIO] = {}
            target.write(shard.header)
            for output in shard.tensors:
                if output.source.path not in files:
                    files[output.source.path] = stack.enter_context(output.source.path.open("rb", buffering=0))
                for block in _blocks(output, plan.changes.get(output.name), files[output.source.path], rounding, costs):
                    target.write(block)
                yield output.name
        work.finish(shard.name, partial, {"sha256": target.sha256, "costs": [cost.result() for cost in costs]})


def _blocks(
    output: Output, change: Change | None, source: BinaryIO, rounding: Rounding, costs: list[RoundingCost]
) -> Iterator[bytes | memoryview]:
    """The data of a tensor as it is in the merge; appends the cost of rounding its updates to `costs`."""
    if change is None and output.dtype == output.source.dtype:
        yield from _copy(source, output.source)
        return
    dtype, low_rank = TORCH_DTYPES[output.dtype], LowRank(change.updates) if change and change.updates else None
    generator, cost = rounding.generator(output.name) if low_rank else None, RoundingCost(output.name)
    step = max(1, 4 * output.source.nbytes // (ITEM_BYTES[output.source.dtype] * BLOCK_BYTES * COST_BLOCKS))
    for number, (first, rows) in enumerate(base_blocks(output.source, change, source)):
        if low_rank is None:
            yield _to_bytes(_cast(rows, output.name, dtype, generator))
            continue
        seen = max(1, COST_VALUES // rows.shape[1])
        before = rows[:seen].clone() if number % step == 0 else None
        stored = _cast(low_rank.add_to(rows, first), output.name, dtype, generator)
        if before is not None:
            cost.add(before, low_rank.add_to(torch.zeros_like(before), first), stored[:seen])
        yield _to_bytes(stored)
    if low_rank:
        costs.append(cost)


class LowRank:
    """The sum of low-rank updates of one weight; its factors are in memory, the sum never is."""

    def __init__(self, updates: Sequence[Update]):
        self.factors = [(update, *_factors(update)) for update in updates]

    def add_to(self, rows: torch.Tensor, first: int) -> torch.Tensor:
        """`rows (m, columns)`, which begin at the weight's row `first`, with the update in them, in place."""
        for update, left, right in self.factors:
            begin, end = max(first, update.first), min(first + len(rows), update.first + update.count)
            if begin < end:
                part = left[begin - update.first : end - update.first]
                rows[begin - first : end - first].addmm_(part, right, alpha=update.scale)
        return rows


def base_blocks(info: TensorInfo, change: Change | None, source: BinaryIO) -> Iterator[tuple[int, torch.Tensor]]:
    """First row and float32 values `(m, columns)` of each block, with replaced tensors and rows in place."""
    change = change or Change()
    rows, columns = (info.shape[0], _count(info) // max(info.shape[0], 1)) if info.shape else (1, 1)
    new_rows = {i: row for given in change.rows for i, row in zip(given.indices, _whole(given.values), strict=True)}
    step = max(1, BLOCK_BYTES // (4 * max(columns, 1)))
    with ExitStack() as stack:
        whole = change.replacement
        file = stack.enter_context(whole.path.open("rb", buffering=0)) if whole else source
        for first in range(0, rows, step):
            count = min(step, rows - first)
            block = read_values(file, whole or info, first * columns, count * columns).float().view(count, columns)
            if whole:
                _finite(block, whole)
            for i in new_rows.keys() & range(first, first + count) if new_rows else ():
                block[i - first] = new_rows[i].flatten()
            yield first, block


def read_values(source: BinaryIO, info: TensorInfo, first: int, count: int) -> torch.Tensor:
    """`count` values of a tensor from the value `first`, flat, in its own dtype."""
    size = ITEM_BYTES[info.dtype]
    buffer = bytearray(count * size)
    source.seek(info.start + first * size)
    filled, view = 0, memoryview(buffer)
    while filled < len(buffer):  # an unbuffered file gives at most 2 GB at once
        read = source.readinto(view[filled:])  # type: ignore[attr-defined]
        if not read:
            raise InputError(f"{info.path} ends within '{info.name}': it was changed during the merge, run it again.")
        filled += read
    if not buffer:
        return torch.empty(0, dtype=TORCH_DTYPES[info.dtype])
    return torch.frombuffer(buffer, dtype=TORCH_DTYPES[info.dtype])


def _factors(update: Update) -> tuple[torch.Tensor, torch.Tensor]:
    """`(rows, r)` and `(r, columns)` in float32, whose product has the weight's own orientation."""
    a, b = _whole(update.pair.a).flatten(1), _whole(update.pair.b).flatten(1)
    return (a.T, b.T) if update.pair.transposed else (b[update.b_first : update.b_first + update.count], a)


def _whole(info: TensorInfo) -> torch.Tensor:
    return _finite(read_tensor(info).float(), info)


def _copy(source: BinaryIO, info: TensorInfo) -> Iterator[bytes]:
    source.seek(info.start)
    left = info.nbytes
    while left:
        block = source.read(min(left, BLOCK_BYTES))
        if not block:
            raise InputError(f"{info.path} ends within '{info.name}': it was changed during the merge, run it again.")
        yield block
        left -= len(block)


def _to_bytes(stored: torch.Tensor) -> memoryview:
    return stored.contiguous().flatten().view(torch.uint8).numpy().data


def _cast(rows: torch.Tensor, name: str, dtype: torch.dtype, generator: Any) -> torch.Tensor:
    stored = cast(rows, dtype, generator)
    if dtype == torch.float16 and bool((stored.isinf() & rows.isfinite()).any()):
        raise InputError(f"'{name}' holds values beyond float16's range: use --dtype bfloat16 or float32.")
    return stored


def _finite(values: torch.Tensor, info: TensorInfo) -> torch.Tensor:
    if not bool(values.isfinite().all()):
        raise InputError(f"'{info.name}' in {info.path} holds NaN or infinity: the training diverged, take another.")
    return values


def _count(info: TensorInfo) -> int:
    return info.nbytes // ITEM_BYTES[info.dtype]
