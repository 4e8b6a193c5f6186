"""How long the rows of a stage are, and of what: read from the data itself, from rows taken evenly over it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from imod_core.avt.prompts import IGNORED_LABEL, encode
from imod_core.console import console, track
from imod_core.media import load_audio
from imod_core.modality import TEXT, boundary_token_ids, media_token_ids, token_modality
from imod_core.samples import Sample
from imod_train.branches import group_by_media, join
from imod_train.footprint import Shape
from imod_train.items import nbytes
from imod_train.native import SampleEncoder
from imod_train.recipe import Stage

SAMPLED = 32
"""Rows of a stage that are encoded for a plan."""


@dataclass(frozen=True)
class RowLength:
    """Tokens of one row."""

    text: int
    media: dict[str, int]
    """By modality; also `marks`, the tokens around media."""
    answers: int
    nbytes: int
    """Of its tensors."""

    @property
    def tokens(self) -> int:
        return self.text + sum(self.media.values())


@dataclass(frozen=True)
class Lengths:
    """The rows of a stage."""

    rows: int
    """Of the whole stage."""
    sampled: tuple[RowLength, ...]

    def mean(self) -> dict[str, float]:
        """Tokens of a row by kind, on average."""
        kinds = {"text": [row.text for row in self.sampled]}
        for name in dict.fromkeys(name for row in self.sampled for name in row.media):
            kinds[name] = [row.media.get(name, 0) for row in self.sampled]
        return {name: sum(counts) / len(self.sampled) for name, counts in kinds.items()}

    def longest(self, rows: int) -> Shape:
        """A micro-batch of so many rows as long as the longest that was seen."""
        return Shape(
            rows,
            max(row.tokens for row in self.sampled),
            max(row.tokens - row.text for row in self.sampled),
            max(row.answers for row in self.sampled),
        )

    @property
    def row_bytes(self) -> float:
        """Of a row's tensors, on average."""
        return sum(row.nbytes for row in self.sampled) / len(self.sampled)


def native_lengths(samples: Sequence[Sample], encoder: SampleEncoder, config: Any) -> Lengths:
    """Rows of a native model: a sample each."""
    found = []
    for sample in track(_evenly(samples), "Samples encoded for the plan"):
        item = encoder(sample)
        found.append(_count(item["input_ids"][0], item["labels"][0], config, nbytes(item)))
    return Lengths(len(samples), tuple(found))


def avt_lengths(samples: Sequence[Sample], processor: Any, config: Any, stage: Stage) -> Lengths:
    """Rows of an AVT base: up to `questions_per_row` samples about the same media."""
    rows = group_by_media(samples, stage.questions_per_row)
    found = []
    for row in track(_evenly(rows), "Samples encoded for the plan"):
        sounds = [len(processor.cut_windows(load_audio(path))) for path in row[0].audios]
        counts = [windows * processor.audio_window_tokens for windows in sounds]
        item = join([encode(processor, sample, counts) for sample in row])
        length = _count(item["input_ids"], item["labels"], config, nbytes(item))
        widths = {"image": config.vision_feature_size, "video": config.vision_feature_size}
        states = sum(n * widths.get(kind, config.audio_feature_size) * 2 for kind, n in length.media.items())
        found.append(RowLength(length.text, length.media, length.answers, length.nbytes + states))
    return Lengths(len(rows), tuple(found))


def tell_of_long_row(length: int, context: int) -> None:
    """Say that a row is longer than a model's context, once somebody has found one."""
    console.print(
        f"A row of {length} tokens is longer than the model's context of {context}: what it teaches cannot be asked.",
        style="yellow",
    )


def _count(ids: torch.Tensor, labels: torch.Tensor, config: Any, size: int) -> RowLength:
    kinds = {name: int(torch.isin(ids, torch.tensor(known)).sum()) for name, known in media_token_ids(config).items()}
    placeholders = [token for known in media_token_ids(config).values() for token in known]
    modality = token_modality(ids[None], None, placeholders, boundary_token_ids(config))
    text = int((modality == TEXT).sum())
    kinds["marks"] = len(ids) - text - sum(kinds.values())
    answers = int((labels != IGNORED_LABEL).sum())
    return RowLength(text, {name: n for name, n in kinds.items() if n}, answers, size)


def _evenly(items: Sequence[Any]) -> list[Any]:
    if len(items) <= SAMPLED:
        return list(items)
    return [items[i * (len(items) - 1) // (SAMPLED - 1)] for i in range(SAMPLED)]
