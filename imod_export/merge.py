"""The streamed merge: block by block `W + s·BA` in float32, everything else byte for byte.

Parts of tensors are made by several threads and written in their order, behind which another thread hashes. A shard
that is whole is noted, and not made again after a kill.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, BinaryIO

import numpy as np
import torch

from imod_core.artifacts import write_json
from imod_core.console import console, track
from imod_core.errors import InputError
from imod_export.layout import Output, OutputShard, index_of
from imod_export.plan import MergePlan
from imod_export.rounding import Rounding, RoundingCost, cast_into, sampled_rows
from imod_export.tensors import INDEX, ITEM_BYTES
from imod_export.weight import PART_BYTES, TORCH_DTYPES, OpenFiles, Weight, read_bytes
from imod_export.work import Work
from imod_export.writer import HashedWriter, Room

THREADS = min(os.cpu_count() or 1, 8)
"""That make parts."""
AHEAD_BYTES = (THREADS + 1) * PART_BYTES
"""Of parts that may be there before the one that is written; a larger part is alone."""
AHEAD_PARTS = 32
"""That may be there, however small."""


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
    with _makers() as pool, closing(_write(plan, missing, work, rounding, pool)) as steps:
        for _ in track(steps, "Merging tensors", total=total):
            between()
    if index := index_of(plan.checkpoint, plan.shards):
        write_json(work.folder / INDEX, index)


def rounding_costs(plan: MergePlan, work: Work) -> list[dict[str, Any]]:
    """What was noted of each low-rank update, shard by shard: see `RoundingCost.result`."""
    return [cost for shard in plan.shards for cost in (work.record(shard.name) or {"costs": []})["costs"]]


@dataclass(frozen=True)
class Part:
    """Some of a tensor that is yet to be made."""

    room: Room
    make: Callable[[], "Made"]


@dataclass
class Made:
    """Some rows of a tensor of the merge."""

    name: str
    room: Room
    """Filled."""
    sample: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    """Of some of the rows base, update and what is stored, for the cost of rounding."""


@contextmanager
def _makers() -> Iterator[ThreadPoolExecutor]:
    """Threads that make parts, each with one of torch's: blocks are too small to share, and idle ones would spin."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(THREADS, "merge", torch.set_num_threads, (1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _write(
    plan: MergePlan, shards: list[OutputShard], work: Work, rounding: Rounding, pool: ThreadPoolExecutor
) -> Generator[str, None, None]:
    """Write the shards, each while the one before goes to the disk; gives the name of each tensor when it is handed to
    the writer."""
    finishing: list[Future[None]] = []
    with ThreadPoolExecutor(1, "finish") as finisher:
        for shard in shards:
            with HashedWriter(work.folder / f".{shard.name}.partial") as target:
                costs = yield from _fill(target, plan, shard, rounding, pool)
            while finishing:
                finishing.pop().result()
            finishing.append(finisher.submit(_finish, shard, target, work, costs))
        while finishing:
            finishing.pop().result()


def _fill(
    target: HashedWriter, plan: MergePlan, shard: OutputShard, rounding: Rounding, pool: ThreadPoolExecutor
) -> Generator[str, None, list[RoundingCost]]:
    """Hand a shard to its writer; gives the names of its tensors, and in the end what rounding cost."""
    costs: list[RoundingCost] = []
    header = target.room(len(shard.header))
    header.data[:] = np.frombuffer(shard.header, np.uint8)
    target.write(header)
    with OpenFiles() as files:
        parts = _in_order(pool, _parts(target, plan, shard, files, rounding))
        for name, made in groupby(parts, attrgetter("name")):
            samples = []
            for part in made:
                target.write(part.room)
                if part.sample:
                    samples.append(part.sample)
            if samples:
                costs.append(RoundingCost(name))
                costs[-1].add(*map(torch.cat, zip(*samples, strict=True)))
            yield name
    return costs


def _finish(shard: OutputShard, written: HashedWriter, work: Work, costs: list[RoundingCost]) -> None:
    """Note a shard that is whole and on disk."""
    digest, nbytes = written.finish(), written.path.stat().st_size
    if nbytes != shard.nbytes:
        raise InputError(f"{written.path} has {nbytes} bytes, not {shard.nbytes}: run it again.")
    work.finish(shard.name, written.path, {"blake3": digest, "costs": [cost.result() for cost in costs]})


def _in_order(pool: ThreadPoolExecutor, parts: Iterable[Part]) -> Iterator[Made]:
    pending: deque[tuple[int, Future[Made]]] = deque()
    for part in parts:
        nbytes = len(part.room.data)
        while len(pending) == AHEAD_PARTS or (pending and nbytes + sum(n for n, _ in pending) > AHEAD_BYTES):
            yield pending.popleft()[1].result()
        pending.append((nbytes, pool.submit(part.make)))
    while pending:
        yield pending.popleft()[1].result()


def _parts(
    target: HashedWriter, plan: MergePlan, shard: OutputShard, files: OpenFiles, rounding: Rounding
) -> Iterator[Part]:
    """The parts of a shard, in the order of its data; at least one of each tensor."""
    for output in shard.tensors:
        change = plan.changes.get(output.name)
        if change is None and output.dtype == output.source.dtype:
            source = files[output.source.path]
            for first in range(0, max(output.nbytes, 1), PART_BYTES):
                room = target.room(min(PART_BYTES, output.nbytes - first))
                yield Part(room, partial(_copied, room, output, source, first))
            continue
        weight = Weight(output.source, change, files)
        sampled = sampled_rows(weight.covered, weight.columns)
        for first, end in weight.parts():
            room = target.room((end - first) * weight.columns * ITEM_BYTES[output.dtype])
            yield Part(room, partial(_merged, room, output, weight, first, end, rounding, sampled))


def _copied(room: Room, output: Output, source: BinaryIO, first: int) -> Made:
    read_bytes(source, output.source, first, room.data.data)
    return Made(output.name, room)


def _merged(
    room: Room, output: Output, weight: Weight, first: int, end: int, rounding: Rounding, sampled: Sequence[int]
) -> Made:
    """The rows `first` to `end` as they are stored, with those of them that are `sampled` for the cost of it."""
    chosen = [row for row in sampled if first <= row < end]
    before = []
    stored = torch.from_numpy(room.data).view(TORCH_DTYPES[output.dtype]).view(end - first, weight.columns)
    for (start, rows), target in zip(weight.blocks(first, end), stored.split(weight.step), strict=False):
        if here := [row - start for row in chosen if start <= row < start + len(rows)]:
            before.append(rows[here])
        cast_into(
            target, weight.update(rows, start), rounding.generator(output.name, start) if weight.updates else None
        )
        if target.dtype == torch.float16 and bool((target.isinf() & rows.isfinite()).any()):
            raise InputError(f"'{output.name}' holds values beyond float16's range: use --dtype bfloat16 or float32.")
    if not chosen:
        return Made(output.name, room)
    return Made(
        output.name, room, (torch.cat(before), weight.update_of(chosen), stored[[row - first for row in chosen]])
    )
