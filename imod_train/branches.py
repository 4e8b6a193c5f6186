"""Questions about the same media as branches of one row: the media are read once for all of them.

    prefix ─┬─ question 1, answer 1        Every branch sees the prefix and itself, at the positions that it
            ├─ question 2, answer 2        would have alone. So each answer has the very logits, and the row the
            └─ question 3, answer 3        very gradients, of the samples one by one.

Letters: `L` tokens of a row, `B` rows.
"""

from collections.abc import Sequence

import torch

from imod_core.avt.prompts import IGNORED_LABEL, Encoded
from imod_core.samples import TAG, Sample

PADDING = -1
"""Branch number of a token that is padding."""


def group_by_media(samples: Sequence[Sample], most: int) -> list[list[Sample]]:
    """Samples in groups of at most `most` that begin alike, up to and including their last medium.

    Groups stand where their first sample stood; a sample without media is a group of its own.
    """
    groups: list[list[Sample]] = []
    open_groups: dict[tuple, list[Sample]] = {}
    for sample in samples:
        key = _beginning(sample)
        group = open_groups.get(key) if key else None
        if group is None or len(group) == most:
            group = []
            groups.append(group)
            open_groups[key] = group
        group.append(sample)
    return groups


def join(rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """One row from several that begin alike: `input_ids`, `labels`, `positions`, `branches`, (L,) int64 each.

    `branches` is 0 in the common beginning, which ends before any token that predicts an answer, then 1, 2 …
    """
    shared = _common(rows)
    first = rows[0]
    ids, labels = [first.input_ids[:shared]], [first.labels[:shared]]
    positions, branches = [torch.arange(shared)], [torch.zeros(shared, dtype=torch.int64)]
    for number, row in enumerate(rows, start=1):
        ids.append(row.input_ids[shared:])
        labels.append(row.labels[shared:])
        positions.append(torch.arange(shared, len(row.input_ids)))
        branches.append(torch.full((len(row.input_ids) - shared,), number))
    return {
        "input_ids": torch.cat(ids),
        "labels": torch.cat(labels),
        "positions": torch.cat(positions),
        "branches": torch.cat(branches),
    }


def branch_mask(branches: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive attention mask (B, 1, L, L) from `branches` (B, L): 0 where a token may look, else the least number.

    A token looks back at the common beginning and at its own branch; padding at nothing, nothing at padding.
    """
    length = branches.shape[1]
    asks, holds = branches[:, :, None], branches[:, None, :]
    seen = (holds == 0) | (holds == asks)
    seen &= (asks != PADDING) & (holds != PADDING)
    seen &= torch.ones(length, length, dtype=torch.bool).tril()
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)


def _beginning(sample: Sample) -> tuple:
    """What samples of one group share; empty where there are no media."""
    media = sample.images + sample.audios + sample.videos
    last = max((i for i, message in enumerate(sample.messages) if TAG.search(message.content)), default=None)
    if not media or last is None:
        return ()
    if any(message.role == "assistant" for message in sample.messages[:last]):
        return ()  # branches part before the first answer, and would repeat the media behind it
    *before, _ = TAG.split(sample.messages[last].content)
    return (sample.images, sample.audios, sample.videos, sample.messages[:last], "".join(before))


def _common(rows: Sequence[Encoded]) -> int:
    """Length of the rows' common beginning, short of the token that predicts the first answer token of any."""
    length = min(int((row.labels != IGNORED_LABEL).int().argmax()) - 1 for row in rows)
    first = rows[0].input_ids[:length]
    for row in rows[1:]:
        differs = (row.input_ids[:length] != first[:length]).nonzero()
        length = min(length, int(differs[0])) if len(differs) else length
    return length
