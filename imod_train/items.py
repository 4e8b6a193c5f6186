"""Training items, made when they are first asked for and kept while there is room."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset

from imod_core.errors import InputError
from imod_core.samples import TAG, Sample

KEPT_BYTES = 512 << 20
"""Items kept in memory; beyond that they are made each time."""


class KeptItems(Dataset, ABC):
    """One item a row, made by `_make`; at most `KEPT_BYTES` of them stay in memory, those that came first."""

    def __init__(self, rows: Sequence[Any]):
        self.rows = rows
        self._kept: dict[int, dict[str, Any]] = {}
        self._room = KEPT_BYTES

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index not in self._kept:
            item = self._make(index)
            self._room -= nbytes(item)
            if self._room < 0:
                return item
            self._kept[index] = item
        return self._kept[index]

    @abstractmethod
    def _make(self, index: int) -> dict[str, Any]:
        """The item of a row."""


def check_answers(samples: Sequence[Sample]) -> None:
    """Refuse samples that teach no answer, or to answer with a medium.

    Raises:
        InputError: naming the first one.
    """
    for sample in samples:
        if sample.answer is None:
            raise InputError(
                f"The sample '{sample.id}' has no answer to learn: its last message must be the assistant's."
            )
        if any(TAG.search(m.content) for m in sample.messages if m.role == "assistant"):
            raise InputError(f"The sample '{sample.id}' has a medium in an answer: only questions may name media.")


def nbytes(item: dict[str, Any]) -> int:
    """Bytes of an item's tensors."""
    return sum(leaf.nbytes for leaf in tree_leaves(item) if isinstance(leaf, torch.Tensor))
