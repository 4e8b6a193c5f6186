"""One weight of the merge, read and changed in float32 by blocks of rows.

Letters: `m` rows of a block, `r` rank. Memory grows neither with the model nor with its largest tensor.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import torch

from imod_core.errors import InputError
from imod_export.match import Update
from imod_export.plan import Change
from imod_export.tensors import DTYPES, ITEM_BYTES, TensorInfo

PART_BYTES = 8 << 20
"""Of a tensor, that one thread makes at once."""
BLOCK_BYTES = 4 << 20
"""Of one block in float32, so that it stays in the cache from reading to casting."""
TORCH_DTYPES = {name: getattr(torch, kind) for kind, name in DTYPES.items()}


class OpenFiles(ExitStack):
    """Files that are opened when first asked for and closed together."""

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[Path, BinaryIO] = {}

    def __getitem__(self, path: Path) -> BinaryIO:
        if path not in self._files:
            self._files[path] = self.enter_context(path.open("rb", buffering=0))
        return self._files[path]


class Weight:
    """A tensor of the base with what an adapter does to it; of the adapter its factors and rows are in memory.

    Threads may ask for different rows at the same time. Blocks have `block_bytes` in float32, by default `BLOCK_BYTES`.
    """

    def __init__(self, info: TensorInfo, change: Change | None, files: OpenFiles, block_bytes: int | None = None):
        change = change or Change()
        self.info = change.replacement or info
        self.file, self._replaced = files[self.info.path], change.replacement is not None
        self.rows, self.columns = _matrix(info, whole_rows=bool(change.updates or change.rows))
        self.updates = [(update, *_factors(update)) for update in change.updates]
        self._given = {i: row for rows in change.rows for i, row in zip(rows.indices, _whole(rows.values), strict=True)}
        self.step = max(1, (block_bytes or BLOCK_BYTES) // (4 * max(self.columns, 1)))
        """Rows of a block."""

    @property
    def covered(self) -> list[range]:
        """Rows that low-rank updates change, from the top, each once."""
        found: list[range] = []
        for first, end in sorted((update.first, update.first + update.count) for update, *_ in self.updates):
            begin = max(first, found[-1].stop) if found else first
            if begin < end:
                found.append(range(begin, end))
        return found

    def parts(self) -> Iterator[tuple[int, int]]:
        """First row and end of whole blocks that have about `PART_BYTES`; of an empty tensor one without rows."""
        block = self.step * self.columns * ITEM_BYTES[self.info.dtype]
        rows = self.step * max(1, PART_BYTES // max(1, block))
        for first in range(0, max(self.rows, 1), rows):
            yield first, min(first + rows, self.rows)

    def blocks(self, first: int, end: int) -> Iterator[tuple[int, torch.Tensor]]:
        """First row and values `(m, columns)`, float32, of the rows `first` to `end` before the low-rank updates.

        Each block takes the place of the one before.
        """
        block = torch.empty(min(self.step, end - first), self.columns)
        stored = torch.empty_like(block, dtype=TORCH_DTYPES[self.info.dtype])
        data, row_bytes = _bytes_of(stored), self.columns * stored.element_size()
        for start in range(first, end, self.step):
            rest = end - start
            read_bytes(self.file, self.info, start * row_bytes, data[: rest * row_bytes])
            block = block[:rest].copy_(stored[:rest])
            if self._replaced:
                _finite(block, self.info)
            for i in self._given_in(block, start):
                block[i] = self._given[start + i].flatten()
            yield start, block

    def update(self, rows: torch.Tensor, first: int) -> torch.Tensor:
        """`rows (m, columns)`, which begin at the weight's row `first`, with `Σ s·BA` added in place.

        Rows that an adapter gives as they are to be stay so.
        """
        given = self._given_in(rows, first)
        kept = rows[given] if given else None
        for update, left, right in self.updates:
            begin, end = max(first, update.first), min(first + len(rows), update.first + update.count)
            if begin < end:
                changed = rows if end - begin == len(rows) else rows[begin - first : end - first]
                changed.addmm_(left[begin - update.first : end - update.first], right, alpha=update.scale)
        if kept is not None:
            rows[given] = kept
        return rows

    def update_of(self, rows: Sequence[int]) -> torch.Tensor:
        """`Σ s·BA` `(m, columns)` of single rows of the weight; zeros where an adapter gives the row."""
        chosen, found = torch.tensor(rows), torch.zeros(len(rows), self.columns)
        for update, left, right in self.updates:
            inside = (chosen >= update.first) & (chosen < update.first + update.count)
            found[inside] += update.scale * (left[chosen[inside] - update.first] @ right)
        if self._given:
            found[[row in self._given for row in rows]] = 0
        return found

    def _given_in(self, rows: torch.Tensor, first: int) -> list[int]:
        """Which of `rows`, from the weight's row `first`, an adapter gives."""
        return [i - first for i in self._given.keys() & range(first, first + len(rows))] if self._given else []


def read_tensor(info: TensorInfo) -> torch.Tensor:
    """A whole tensor, in its own dtype."""
    with info.path.open("rb", buffering=0) as file:
        return read_values(file, info, 0, info.nbytes // ITEM_BYTES[info.dtype]).reshape(info.shape)


def read_values(file: BinaryIO, info: TensorInfo, first: int, count: int) -> torch.Tensor:
    """`count` values of a tensor from the value `first`, flat, in its own dtype."""
    values = torch.empty(count, dtype=TORCH_DTYPES[info.dtype])
    read_bytes(file, info, first * values.element_size(), _bytes_of(values))
    return values


def read_bytes(file: BinaryIO, info: TensorInfo, first: int, buffer: memoryview) -> None:
    """Fill `buffer` with a tensor's bytes from the byte `first`.

    Raises:
        InputError: the file is shorter than its header said.
    """
    filled = 0
    while filled < len(buffer):  # one call gives at most 2 GB
        read = os.preadv(file.fileno(), [buffer[filled:]], info.start + first + filled)
        if not read:
            raise InputError(f"{info.path} ends within '{info.name}': it was changed during the merge, run it again.")
        filled += read


def _bytes_of(values: torch.Tensor) -> memoryview:
    """A contiguous tensor's memory."""
    return values.flatten().view(torch.uint8).numpy().data


def _matrix(info: TensorInfo, whole_rows: bool) -> tuple[int, int]:
    """Rows and columns that a tensor of any shape is read as; one column where nobody asks for `whole_rows`."""
    values = info.nbytes // ITEM_BYTES[info.dtype]
    rows = info.shape[0] if info.shape and whole_rows else values
    return rows, values // max(rows, 1)


def _factors(update: Update) -> tuple[torch.Tensor, torch.Tensor]:
    """`(rows, r)` and `(r, columns)` in float32, whose product has the weight's own orientation."""
    a, b = _whole(update.pair.a).flatten(1), _whole(update.pair.b).flatten(1)
    return (a.T, b.T) if update.pair.transposed else (b[update.b_first : update.b_first + update.count], a)


def _whole(info: TensorInfo) -> torch.Tensor:
    return _finite(read_tensor(info).float(), info)


def _finite(values: torch.Tensor, info: TensorInfo) -> torch.Tensor:
    if values.numel() and not torch.stack(values.aminmax()).isfinite().all():
        raise InputError(f"'{info.name}' in {info.path} holds NaN or infinity: the training diverged, take another.")
    return values
