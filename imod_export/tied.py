"""Tied embeddings: a base whose input embedding and head are one tensor, and an adapter that changes one or both.

PEFT adapts each use of the tensor on its own. Where it keeps both alike, the one tensor changes; where it does not, no
single tensor can hold the result, and the head needs one of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imod_core.errors import InputError
from imod_export.adapter import Adapter
from imod_export.names import EMBEDDING, HEAD, canonical, head_beside
from imod_export.tensors import Checkpoint

EMBEDDING_WEIGHT, HEAD_WEIGHT = f"{EMBEDDING}.weight", f"{HEAD}.weight"


@dataclass(frozen=True)
class Tie:
    """Where the changes of tied embeddings go."""

    embedding: str
    """The base's name of the embedding's tensor."""
    head: str
    """Of the head's, which may not be on disk."""
    both_written: bool
    """Whether the merge has both tensors: the base had, or the head gets one of its own."""
    untied: bool
    """Whether the two differ in the merge."""
    alike: frozenset[Path]
    """Adapters that change both uses in the same way."""

    def targets(self, adapter: Adapter, spelling: str) -> list[str] | None:
        """Tensors that a change of `spelling` goes to; None where this is neither embedding nor head."""
        if spelling not in (EMBEDDING_WEIGHT, HEAD_WEIGHT):
            return None
        if adapter.folder not in self.alike:
            return [self.embedding if spelling == EMBEDDING_WEIGHT else self.head]
        if spelling == HEAD_WEIGHT and EMBEDDING_WEIGHT in _touched(adapter):
            return []  # a copy of the embedding's change
        return [self.embedding, self.head] if self.both_written else [self.embedding]


def ties_embeddings(config: dict[str, Any], checkpoint: Checkpoint) -> bool:
    """Whether input embedding and head share a tensor: as the configuration says, else as the weights show."""
    thinker = config.get("thinker_config") or {}
    for place in (config, thinker, thinker.get("text_config") or {}, config.get("text_config") or {}):
        if "tie_word_embeddings" in place:
            return bool(place["tie_word_embeddings"])
    return not any(canonical(name) == HEAD_WEIGHT for name in checkpoint.tensors)


def find_tie(config: dict[str, Any], checkpoint: Checkpoint, adapters: Sequence[Adapter], untie: bool) -> Tie | None:
    """The tie, if the base has one that the adapters touch.

    Raises:
        InputError: an adapter changes one of the two alone, and `untie` was not asked for.
    """
    touching = [adapter for adapter in adapters if _touched(adapter)]
    if not touching or not ties_embeddings(config, checkpoint):
        return None
    embedding = next((name for name in checkpoint.tensors if canonical(name) == EMBEDDING_WEIGHT), None)
    if embedding is None:
        return None
    alike = frozenset(adapter.folder for adapter in touching if _changes_alike(adapter))
    apart = next((adapter for adapter in touching if adapter.folder not in alike), None)
    if apart and not untie:
        part = "both of" if len(_touched(apart)) == 2 else "one of"
        raise InputError(
            f"{apart.folder} changes {part} the tied embeddings of {checkpoint.folder}, which one tensor cannot hold: "
            "give --untie to write the head as a tensor of its own."
        )
    on_disk = next((name for name in checkpoint.tensors if canonical(name) == HEAD_WEIGHT), None)
    head = on_disk or head_beside(embedding)
    return Tie(embedding, head, on_disk is not None or apart is not None, apart is not None, alike)


def _touched(adapter: Adapter) -> set[str]:
    return {canonical(name) for name in adapter.touched} & {EMBEDDING_WEIGHT, HEAD_WEIGHT}


def _changes_alike(adapter: Adapter) -> bool:
    """PEFT ties by `ensure_weight_tying`, and token rows of the embedding by itself."""
    if adapter.config.get("ensure_weight_tying"):
        return True
    rows = {canonical(f"{rows.module}.weight"): rows.indices for rows in adapter.rows}
    return _touched(adapter) == rows.keys() and EMBEDDING_WEIGHT in rows and len(set(rows.values())) == 1
