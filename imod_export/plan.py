"""The merge plan: what happens to each tensor of the base. Made from headers, before anything is written."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from imod_core.artifacts import read_json
from imod_core.errors import InputError
from imod_export.adapter import Adapter, TokenRows
from imod_export.layout import Output, OutputShard, lay_out
from imod_export.match import Matcher, Piece, Update
from imod_export.quantised import refuse_quantised
from imod_export.tensors import DTYPES, Checkpoint, TensorInfo
from imod_export.tied import find_tie


@dataclass(frozen=True)
class Change:
    """All that happens to one tensor, in this order."""

    replacement: TensorInfo | None = None
    """Takes the place of the base's values."""
    updates: tuple[Update, ...] = ()
    rows: tuple[TokenRows, ...] = ()
    """Are what they are, whatever the updates add to the others."""


@dataclass(frozen=True)
class MergePlan:
    """What a merge does; nothing in it can fail for the user's input any more but the reading of data."""

    checkpoint: Checkpoint
    changes: dict[str, Change]
    """Tensor name in the merge to what happens to it."""
    shards: tuple[OutputShard, ...]
    untied: bool = False
    """Whether the head differs from the embedding now, so that the configuration must no longer tie them."""

    @property
    def outputs(self) -> list[Output]:
        return [output for shard in self.shards for output in shard.tensors]

    @property
    def nbytes(self) -> int:
        return sum(output.nbytes for output in self.outputs)

    @property
    def stored_dtype(self) -> str:
        """torch's name of the dtype that most of the changed data is written in."""
        sizes: dict[str, int] = defaultdict(int)
        for output in self.outputs:
            if output.name in self.changes:
                sizes[output.dtype] += output.nbytes
        return {v: k for k, v in DTYPES.items()}[max(sizes, key=lambda dtype: sizes[dtype])]


def make_plan(
    checkpoint: Checkpoint,
    adapters: Adapter | Sequence[Adapter],
    dtype: str | None = None,
    *,
    untie: bool = False,
    max_shard: int | None = None,
) -> MergePlan:
    """Match every tensor of the adapters to the base's.

    Args:
        checkpoint: the base.
        adapters: one, or several whose updates are added with their weights.
        dtype: torch's name of the dtype for all floating-point tensors; None keeps each tensor's own.
        untie: give the head a tensor of its own where an adapter changes one of two tied embeddings.
        max_shard: bytes of a shard; None keeps the base's shards.

    Raises:
        InputError: a tensor matches nothing or more than one, has another shape, or the base cannot take it.
    """
    adapters = [adapters] if isinstance(adapters, Adapter) else list(adapters)
    config = read_json(checkpoint.folder / "config.json")
    refuse_quantised(config, checkpoint)
    tie = find_tie(config, checkpoint, adapters, untie)
    tensors = dict(checkpoint.tensors)
    if tie and tie.untied:
        tensors.setdefault(tie.head, checkpoint.tensors[tie.embedding])
    pieces: dict[str, list[Piece]] = defaultdict(list)
    for adapter in adapters:
        own: dict[str, list[Piece]] = defaultdict(list)
        for name, piece in Matcher(adapter, tensors, tie, checkpoint.folder).pieces():
            own[name].append(piece)
        for name, found in own.items():
            _refuse_doubles(name, found, str(adapter.folder))
            pieces[name] += found
    changes = {name: _change(name, found) for name, found in pieces.items()}
    outputs = [Output(name, _dtype(info, dtype), info) for name, info in tensors.items()]
    return MergePlan(checkpoint, changes, lay_out(checkpoint, outputs, max_shard), tie is not None and tie.untied)


def _change(name: str, pieces: list[Piece]) -> Change:
    whole = [piece for piece in pieces if isinstance(piece, TensorInfo)]
    rows = [piece for piece in pieces if isinstance(piece, TokenRows)]
    if len(whole) > 1:
        raise InputError(f"Two adapters save '{name}' of the base whole: only one of them can be merged.")
    if len({i for r in rows for i in r.indices}) < sum(len(r.indices) for r in rows):
        raise InputError(f"Two adapters train the same token's row of '{name}': only one of them can be merged.")
    updates = tuple(piece for piece in pieces if isinstance(piece, Update))
    return Change(whole[0] if whole else None, updates, tuple(rows))


def _refuse_doubles(name: str, pieces: list[Piece], folder: str) -> None:
    """Within one adapter, two changes of a kind may not meet in the same rows."""
    for first, second in combinations(pieces, 2):
        meet = type(first) is type(second)
        if isinstance(first, Update) and isinstance(second, Update):
            meet = max(first.first, second.first) < min(first.first + first.count, second.first + second.count)
        if meet:
            raise InputError(f"Two tensors of {folder} change '{name}' of the base: expected one for each.")


def _dtype(info: TensorInfo, dtype: str | None) -> str:
    return DTYPES[dtype] if dtype and info.dtype in DTYPES.values() else info.dtype
