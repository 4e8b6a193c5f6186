"""Conditions of evaluation: media as they are, blanked or swapped, to see what an answer rests on."""

from dataclasses import replace

import numpy as np
import torch

from imod_core.avt.states import TowerStates
from imod_core.errors import InputError
from imod_core.samples import Sample

BLANKED_KINDS = {
    "as_is": (),
    "swapped": (),
    "blanked": ("image", "audio", "video"),
    "picture_only": ("audio",),
    "sound_only": ("image", "video"),
}

States = dict[str, list[torch.Tensor]]


def shown(condition: str, samples: list[Sample], seed: int = 0) -> list[Sample]:
    """The samples with the media that each is asked with.

    Swapped, a sample gets the media of another one of another scene that has as many of each kind; the exchange is
    drawn from `seed`.

    Raises:
        InputError: no sample to swap with.
    """
    if condition != "swapped":
        return samples
    pairs = zip(samples, swap(samples, seed), strict=True)
    return [replace(s, images=other.images, audios=other.audios, videos=other.videos) for s, other in pairs]


def states_under(condition: str, samples: list[Sample], states: TowerStates) -> list[States]:
    """The tower states that each sample of `shown` is asked with; blanked, there are as many as of the medium."""
    found = [states.of(sample) for sample in samples]
    kinds = BLANKED_KINDS[condition]
    if not kinds:
        return found
    blank = states.blank()
    return [{k: [_as_long(blank[k], s) if k in kinds else s for s in v] for k, v in media.items()} for media in found]


def _as_long(blank: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """A blank `(tokens, C)` as often as a long sound has windows."""
    return blank.repeat(len(state) // len(blank), 1)


def swap(samples: list[Sample], seed: int) -> list[Sample]:
    """For each sample another whose media it is to get."""
    rng = np.random.default_rng(seed)
    groups: dict[tuple[int, int, int], list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault((len(sample.images), len(sample.audios), len(sample.videos)), []).append(i)
    return [samples[_other(i, samples, groups, rng)] for i in range(len(samples))]


def _other(i: int, samples: list[Sample], groups: dict, rng: np.random.Generator) -> int:
    sample = samples[i]
    group = groups[(len(sample.images), len(sample.audios), len(sample.videos))]
    others = [j for j in group if _media(samples[j]) != _media(sample)]
    if not others:
        raise InputError(f"The sample '{sample.id}' has no other with the same kinds of media to swap with.")
    return int(rng.choice(others))


def _media(sample: Sample) -> tuple:
    return sample.images, sample.audios, sample.videos
