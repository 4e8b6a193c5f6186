"""Which weight of the base an adapter's weight is, through all spellings of names and fused or split projections."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imod_core.errors import InputError
from imod_export.adapter import Adapter, LoraPair, TokenRows
from imod_export.fused import first_row, parts_of, whole_of
from imod_export.names import canonical, nearest
from imod_export.tensors import DTYPES, TensorInfo
from imod_export.tied import Tie


@dataclass(frozen=True)
class Update:
    """`scale · B·A` added to some rows of a weight."""

    pair: LoraPair
    scale: float
    """The pair's own times the adapter's weight."""
    first: int
    """First row of the weight that changes."""
    count: int
    """Rows that change."""
    b_first: int = 0
    """First row of B that is used: where a fused matrix was adapted and the base has its parts."""


Piece = Update | TensorInfo | TokenRows
"""A low-rank update, a tensor that replaces the base's, or rows that do."""


class Matcher:
    """The base's weights as one adapter sees them.

    Args:
        adapter: whose weights are looked up.
        tensors: the base's, by name; a head that gets a tensor of its own among them.
        tie: of the embeddings, where the adapters touch one.
        base: the base's folder, for messages.
    """

    def __init__(self, adapter: Adapter, tensors: Mapping[str, TensorInfo], tie: Tie | None, base: Path):
        self.adapter, self.tensors, self.tie, self.base = adapter, tensors, tie, base
        self.by_spelling: dict[str, list[str]] = defaultdict(list)
        for name in tensors:
            self.by_spelling[canonical(name)].append(name)

    def pieces(self) -> list[tuple[str, Piece]]:
        """Base tensor name and what happens to it, for everything in the adapter.

        Raises:
            InputError: something matches nothing, more than one tensor, or one of another shape or dtype.
        """
        self._refuse_unmatched()
        found: list[tuple[str, Piece]] = []
        for pair in self.adapter.pairs:
            found += self._updates(pair)
        for name, info in self.adapter.saved.items():
            found += [(target, self._whole(name, info, target)) for target in self._targets(name)]
        for rows in self.adapter.rows:
            found += [(target, self._rows(rows, target)) for target in self._targets(f"{rows.module}.weight")]
        for target, _ in found:
            if self.tensors[target].dtype not in DTYPES.values():
                dtype = self.tensors[target].dtype
                raise InputError(f"'{target}' of the base is {dtype}: a merge needs {', '.join(DTYPES)}.")
        return found

    def _targets(self, name: str) -> list[str]:
        """The tensors of the base that `name` stands for: one, or two or none where embeddings are tied."""
        spelling = canonical(name)
        if self.tie and (targets := self.tie.targets(self.adapter, spelling)) is not None:
            return targets
        candidates = self.by_spelling.get(spelling, [])
        if len(candidates) > 1:
            fits = " and ".join(candidates)
            raise InputError(f"'{name}' of {self.adapter.folder} fits {fits} of the base: expected one.")
        return candidates

    def _updates(self, pair: LoraPair) -> list[tuple[str, Piece]]:
        name, scale = f"{pair.module}.weight", pair.scale * self.adapter.weight
        spelling = canonical(name)
        if spelling not in self.by_spelling and (parts := parts_of(spelling, self.by_spelling)):
            return self._split(pair, scale, parts)
        if spelling not in self.by_spelling and (whole := whole_of(spelling, self.by_spelling)):
            return [self._within(pair, scale, *whole)]
        targets = self._targets(name)
        for target in targets:
            self._check_shape(name, pair.shape, target)
        return [(target, Update(pair, scale, 0, pair.shape[0])) for target in targets]

    def _split(self, pair: LoraPair, scale: float, parts: list[str]) -> list[tuple[str, Piece]]:
        """A fused projection was adapted, the base has its parts."""
        targets = [target for part in parts for target in self._targets(part)]
        shapes = [self.tensors[target].shape for target in targets]
        stacked = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        if pair.transposed or pair.shape != stacked or any(shape[1:] != shapes[0][1:] for shape in shapes):
            raise self._misfit(pair.module, pair.shape, " + ".join(targets), stacked)
        firsts = [sum(shape[0] for shape in shapes[:n]) for n in range(len(shapes))]
        return [
            (target, Update(pair, scale, 0, shape[0], first))
            for target, shape, first in zip(targets, shapes, firsts, strict=True)
        ]

    def _within(self, pair: LoraPair, scale: float, whole: str, place: int, parts: int) -> tuple[str, Piece]:
        """A part of a projection was adapted that the base has fused."""
        (target,) = self._targets(whole)
        shape = self.tensors[target].shape
        first = first_row(place, parts, pair.shape[0], shape[0])
        if pair.transposed or first is None or pair.shape[1:] != shape[1:]:
            raise self._misfit(pair.module, pair.shape, target, shape)
        return target, Update(pair, scale, first, pair.shape[0])

    def _whole(self, name: str, info: TensorInfo, target: str) -> TensorInfo:
        self._check_shape(name, info.shape, target)
        return info

    def _rows(self, rows: TokenRows, target: str) -> TokenRows:
        shape = self.tensors[target].shape
        if rows.values.shape[1:] != shape[1:] or max(rows.indices) >= shape[0]:
            raise InputError(
                f"Token rows of '{rows.module}' {list(rows.values.shape)}, up to id {max(rows.indices)}, do not fit "
                f"'{target}' of the base {list(shape)}: the adapter belongs to another base."
            )
        return rows

    def _check_shape(self, name: str, shape: tuple[int, ...], target: str) -> None:
        if self.tensors[target].shape != shape:
            raise self._misfit(name, shape, target, self.tensors[target].shape)

    def _misfit(self, name: str, shape: tuple[int, ...], target: str, expected: tuple[int, ...]) -> InputError:
        return InputError(
            f"'{name}' of the adapter has the shape {list(shape)} and '{target}' of the base "
            f"{list(expected)}: the adapter belongs to another base."
        )

    def _refuse_unmatched(self) -> None:
        low_rank = {canonical(f"{pair.module}.weight") for pair in self.adapter.pairs}
        unmatched = [name for name in self.adapter.touched if not self._is_there(canonical(name), low_rank)]
        if not unmatched:
            return
        near = nearest(unmatched[0], self.tensors)
        hint = f"nearest there are {' and '.join(near)}" if near else "nothing there is like it"
        raise InputError(
            f"{len(unmatched)} of {len(self.adapter.touched)} weights that {self.adapter.folder} changes are not in "
            f"{self.base}, first '{unmatched[0]}' ({hint}): the adapter is of another base, give it with --base."
        )

    def _is_there(self, spelling: str, low_rank: set[str]) -> bool:
        if spelling in self.by_spelling or (self.tie and self.tie.targets(self.adapter, spelling) is not None):
            return True
        other = parts_of(spelling, self.by_spelling) or whole_of(spelling, self.by_spelling)
        return spelling in low_rank and bool(other)
