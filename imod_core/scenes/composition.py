"""A scene: which instruments stand left, middle and right, which sound, how loud, and when each comes in.

What is seen and what is heard are drawn so that neither tells of the other: the number of sounds does not
depend on the number of instruments in the picture, sounds may come from outside it, and the overlap of the
two is uniform. All instruments and places are exchangeable.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imod_core.scenes.instruments import NAMES

PLACES = ("left", "middle", "right")
SEEN_SHARES = (0.12, 0.23, 0.65)
"""Of scenes that show one, two, three instruments; three leave a place or name least to chance."""
HEARD_SHARES = (0.06, 0.22, 0.34, 0.38)
"""Of scenes with no, one, two, three sounds."""
TOGETHER, STAGGERED, PAIRED = "together", "staggered", "paired"
ENTRANCES = {2: ((TOGETHER, 0.3), (STAGGERED, 0.7)), 3: ((TOGETHER, 0.2), (STAGGERED, 0.4), (PAIRED, 0.4))}
"""How two or three sounds come in; `paired` is two at once and one alone, before or after them."""
ONE_LOUD_SHARE = 0.65
"""Of scenes with several sounds in which one is clearly louder than all others."""


@dataclass(frozen=True)
class Sound:
    """One sounding instrument."""

    instrument: str
    place: str | None
    """Where its instrument stands; None for a sound from outside the picture."""
    entrance: int
    """Rank of its onset, from 0; equal ranks start together."""
    level: str
    """`loud` or `soft` where levels differ, else `even`."""


@dataclass(frozen=True)
class Scene:
    """Everything that a question may ask about, and what rendering needs beside it."""

    id: str
    style: str
    """Drawing style of all its instruments."""
    unseen: bool
    """Whether it draws from the takes that training never hears."""
    places: tuple[str | None, str | None, str | None]
    """Instruments at left, middle, right."""
    sounds: tuple[Sound, ...]

    @property
    def seen(self) -> tuple[str, ...]:
        return tuple(name for name in self.places if name)

    @property
    def heard(self) -> tuple[str, ...]:
        return tuple(sound.instrument for sound in self.sounds)

    @property
    def playing(self) -> tuple[str, ...]:
        """Instruments that are both seen and heard."""
        return tuple(name for name in self.seen if name in self.heard)

    @property
    def composition(self) -> tuple[Any, ...]:
        """What no two splits share: who stands where and who sounds."""
        return (self.places, tuple(sorted(self.heard)))

    def sound_of(self, name: str) -> Sound:
        return next(sound for sound in self.sounds if sound.instrument == name)

    def facts(self) -> dict[str, Any]:
        """The scene as plain JSON values."""
        return {
            "places": dict(zip(PLACES, self.places, strict=True)),
            "sounds": [
                {"instrument": s.instrument, "place": s.place, "entrance": s.entrance, "level": s.level}
                for s in self.sounds
            ],
        }


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """An independent generator for one purpose, named: the same seed and names give the same numbers."""
    words = [name if isinstance(name, int) else zlib.crc32(name.encode()) for name in names]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *words])))


def sample_scene(rng: np.random.Generator, identity: str, styles: Sequence[str], unseen: bool) -> Scene:
    """One scene from the prior described above."""
    count_seen = int(rng.choice([1, 2, 3], p=SEEN_SHARES))
    count_heard = int(rng.choice([0, 1, 2, 3], p=HEARD_SHARES))
    playing = int(rng.integers(0, min(count_seen, count_heard) + 1))
    names = [str(name) for name in rng.permutation(NAMES)]
    spots = rng.permutation(3)[:count_seen]
    at: dict[int, str] = {int(spot): name for spot, name in zip(spots, names, strict=False)}
    heard = names[:playing] + names[count_seen : count_seen + count_heard - playing]
    where = {name: PLACES[spot] for spot, name in at.items()}
    entrances, levels = _entrances(rng, count_heard), _levels(rng, count_heard)
    sounds = [Sound(n, where.get(n), e, v) for n, e, v in zip(heard, entrances, levels, strict=True)]
    style = str(rng.choice(np.asarray(styles)))
    return Scene(identity, style, unseen, (at.get(0), at.get(1), at.get(2)), tuple(sounds))


def _entrances(rng: np.random.Generator, count: int) -> list[int]:
    if count < 2:
        return [0] * count
    ways = ENTRANCES[count]
    way = ways[int(rng.choice(len(ways), p=[share for _, share in ways]))][0]
    if way == TOGETHER:
        ranks = [0] * count
    elif way == STAGGERED:
        ranks = list(range(count))
    else:
        ranks = [0, 0, 1] if rng.random() < 0.5 else [0, 1, 1]
    return [int(rank) for rank in rng.permutation(ranks)]


def _levels(rng: np.random.Generator, count: int) -> list[str]:
    if count < 2 or rng.random() >= ONE_LOUD_SHARE:
        return ["even"] * count
    loud = int(rng.integers(count))
    return ["loud" if index == loud else "soft" for index in range(count)]
