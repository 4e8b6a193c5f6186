"""The merge plan: which base tensor each adapter tensor changes. Made from headers, before anything is written."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imod_core.errors import InputError
from imod_export.adapter import Adapter, LoraPair
from imod_export.names import canonical, nearest
from imod_export.tensors import DTYPES, Checkpoint, TensorInfo, read_json

Change = LoraPair | TensorInfo
"""A low-rank update, or the tensor that takes the place of the base's."""
EMBEDDINGS = ("text.embed_tokens", "lm_head")
"""Modules that share one tensor where embeddings are tied, in their common spelling."""


@dataclass(frozen=True)
class MergePlan:
    """What a merge does; nothing in it can fail for the user's input any more but the reading of data."""

    checkpoint: Checkpoint
    changes: dict[str, Change]
    """Base tensor name to what happens to it."""
    dtype: str | None
    """safetensors' name of the dtype that all floating-point tensors are cast to; None keeps each as it is."""

    def dtype_of(self, info: TensorInfo) -> str:
        """The dtype that a base tensor has in the merge."""
        return self.dtype if self.dtype and info.dtype in DTYPES.values() else info.dtype

    @property
    def stored_dtype(self) -> str:
        """torch's name of the dtype that most of the changed data is written in."""
        sizes: dict[str, int] = defaultdict(int)
        for name in self.changes:
            info = self.checkpoint.tensors[name]
            sizes[self.dtype_of(info)] += info.nbytes
        return {v: k for k, v in DTYPES.items()}[max(sizes, key=lambda dtype: sizes[dtype])]


def make_plan(checkpoint: Checkpoint, adapter: Adapter, dtype: str | None = None) -> MergePlan:
    """Match every tensor of `adapter` to exactly one of `checkpoint`; `dtype` is torch's name.

    Raises:
        InputError: a tensor matches nothing or more than one, has another shape, or the base cannot take it.
    """
    config = read_json(checkpoint.folder / "config.json")
    _refuse_quantised(config, checkpoint.folder)
    _refuse_tied(config, checkpoint, adapter)
    changes: dict[str, Change] = {}
    for name, change in _match(checkpoint, adapter):
        if name in changes:
            raise InputError(f"Two tensors of {adapter.folder} change '{name}' of the base: expected one for each.")
        _check(checkpoint.tensors[name], change)
        changes[name] = change
    return MergePlan(checkpoint, changes, DTYPES[dtype] if dtype else None)


def ties_embeddings(config: dict[str, Any], checkpoint: Checkpoint) -> bool:
    """Whether input embeddings and head share a tensor: as the configuration says, else as the weights show."""
    thinker = config.get("thinker_config") or {}
    for place in (config, thinker, thinker.get("text_config") or {}, config.get("text_config") or {}):
        if "tie_word_embeddings" in place:
            return bool(place["tie_word_embeddings"])
    return not any(canonical(name) == "lm_head.weight" for name in checkpoint.tensors)


def _match(checkpoint: Checkpoint, adapter: Adapter) -> Iterator[tuple[str, Change]]:
    wanted: dict[str, Change] = {f"{pair.module}.weight": pair for pair in adapter.pairs} | adapter.saved
    by_spelling: dict[str, list[str]] = defaultdict(list)
    for name in checkpoint.tensors:
        by_spelling[canonical(name)].append(name)
    unmatched = [name for name in wanted if canonical(name) not in by_spelling]
    if unmatched:
        raise InputError(_no_match(unmatched, len(wanted), checkpoint, adapter.folder))
    for name, change in wanted.items():
        candidates = by_spelling[canonical(name)]
        if len(candidates) > 1:
            raise InputError(f"'{name}' of {adapter.folder} fits {' and '.join(candidates)} of the base: expected one.")
        yield candidates[0], change


def _no_match(unmatched: list[str], total: int, checkpoint: Checkpoint, adapter: Path) -> str:
    near = nearest(unmatched[0], checkpoint.tensors)
    hint = f"nearest there are {' and '.join(near)}" if near else "nothing there is like it"
    return (
        f"{len(unmatched)} of {total} weights that {adapter} changes are not in {checkpoint.folder}, first "
        f"'{unmatched[0]}' ({hint}): the adapter belongs to another base, give that with --base."
    )


def _check(base: TensorInfo, change: Change) -> None:
    if base.dtype not in DTYPES.values():
        raise InputError(f"'{base.name}' of the base is {base.dtype}: a merge needs {', '.join(DTYPES)}.")
    if base.shape != change.shape:
        name = change.module if isinstance(change, LoraPair) else change.name
        raise InputError(
            f"'{name}' of the adapter has the shape {list(change.shape)} and '{base.name}' of the base "
            f"{list(base.shape)}: the adapter belongs to another base."
        )


def _refuse_quantised(config: dict[str, Any], folder: Path) -> None:
    if any((part or {}).get("quantization_config") for part in (config, config.get("text_config"))):
        raise InputError(
            f"{folder} is quantised (quantization_config in config.json): give the 16-bit or 32-bit model with --base."
        )


def _refuse_tied(config: dict[str, Any], checkpoint: Checkpoint, adapter: Adapter) -> None:
    """PEFT adapts one of the two uses of a tied tensor; merged into the tensor it would change both."""
    names = [f"{pair.module}.weight" for pair in adapter.pairs] + list(adapter.saved)
    touched = [canonical(name).rpartition(".")[0] for name in names]
    hit = next((name for name in touched if name in EMBEDDINGS), None)
    if hit and ties_embeddings(config, checkpoint):
        raise InputError(
            f"{adapter.folder} changes {hit.removeprefix('text.')}, one of two tied embeddings of {checkpoint.folder}: "
            "save the base with tie_word_embeddings false and both tensors, then merge into that."
        )
