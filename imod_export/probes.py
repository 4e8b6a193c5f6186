"""Probes: questions with real media on which two forms of a model are compared.

The default ones are drawn and sounded here, so that they are the same everywhere. Each medium has a stand-in of the
same size and other content, for the control that swapped media must change the logits.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imod_core.media import SAMPLE_RATE, load_audio, load_image
from imod_core.samples import MEDIA_KEYS, Message, Sample, read_samples
from imod_core.sampling import FrameSampling, load_clip

PICTURE = (96, 128)
"""Height and width."""
SECONDS = 1.5
FRAMES = 8
MAX_PROBES = 24
"""Of a user's file; taken evenly over it."""
MEDIA = ("image", "audio", "video")
_KEY = {"image": "images", "audio": "audios", "video": "videos"}


@dataclass(frozen=True)
class Probe:
    """One prompt with its media decoded."""

    name: str
    messages: tuple[Message, ...]
    """With media tags; the last is the user's."""
    media: dict[str, list[Any]] = field(default_factory=dict)
    """By kind: PIL pictures, sounds (n,) at the given rate, videos as clips or (T, H, W, 3)."""
    others: dict[str, list[Any]] = field(default_factory=dict)
    """Stand-ins for `media`."""
    woven: bool = False
    """Whether each video has its sound, the next of `media`, woven between its frames."""

    def swapped(self, kind: str) -> "Probe":
        """This probe with the media of one kind exchanged."""
        return replace(self, name=f"{self.name}, other {kind}", media={**self.media, kind: self.others[kind]})


def default_probes(
    modalities: Iterable[str], rate: int = SAMPLE_RATE, frames: int = FRAMES, weaves: bool = False
) -> list[Probe]:
    """Text, each medium, and picture or video with sound, as far as the model has these `modalities`.

    For a model that `weaves`, a video also with its sound between its frames.
    """
    wanted = [
        ("text", "", "Name three instruments that have strings."),
        ("image", "<image>", "What is in the middle of the picture?"),
        ("audio", "<audio>", "Is the sound high or low?"),
        ("video", "<video>", "Which way does the square move?"),
        ("image+audio", "<image><audio>", "Does the thing on the left make the sound?"),
        ("video+audio", "<video><audio>", "How many things move while it sounds?"),
    ]
    probes = [_drawn(*entry, rate, frames) for entry in wanted if _kinds(entry[1]) <= set(modalities)]
    return [*probes, _woven(probes[-1])] if weaves and probes[-1].name == "video+audio" else probes


def read_probes(path: Path, modalities: Iterable[str], frames: FrameSampling, rate: int = SAMPLE_RATE) -> list[Probe]:
    """Probes from a sample file: those whose media the model takes, at most `MAX_PROBES`.

    Raises:
        InputError, MissingFileError: a bad sample file, or a medium that cannot be decoded.
    """
    samples = [s for s in read_samples(path) if _sample_kinds(s) <= set(modalities)]
    chosen = (
        [samples[i] for i in sorted({int(n) for n in np.linspace(0, len(samples) - 1, MAX_PROBES)})] if samples else []
    )
    loaders: dict[str, Callable] = {
        "image": load_image,
        "audio": lambda p: load_audio(p, rate),
        "video": lambda p: load_clip(p, frames),
    }
    return [_from_sample(sample, chosen, loaders, rate) for sample in chosen]


def draw_picture(variant: int) -> Image.Image:
    """A disc left, a square in the middle and a bar right over a gradient; the variants differ in place and colour."""
    height, width = PICTURE
    y, x = np.mgrid[:height, :width]
    canvas = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 90 + 100 * variant)], axis=-1)
    centre = width // 5 if variant == 0 else 4 * width // 5
    canvas[(x - centre) ** 2 + (y - height // 2) ** 2 < (height // 5) ** 2] = (
        (220, 40, 40) if variant == 0 else (30, 60, 220)
    )
    canvas[height // 3 : 2 * height // 3, width * 2 // 5 : width * 3 // 5] = (
        (250, 250, 60) if variant == 0 else (0, 90, 0)
    )
    canvas[:, width - 12 :] = 255 * variant
    return Image.fromarray(canvas.astype(np.uint8))


def draw_sound(variant: int, rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """A plucked low chord, or a high tone that swells: (n,) in [-1, 1]."""
    time = np.arange(int(SECONDS * rate)) / rate
    if variant == 0:
        tones = sum(np.sin(2 * np.pi * pitch * time) for pitch in (220.0, 277.2, 329.6))
        return (0.3 * tones * np.exp(-3 * time)).astype(np.float32)
    return (0.6 * np.sin(2 * np.pi * 1760.0 * time) * time / SECONDS).astype(np.float32)


def draw_video(variant: int, count: int = FRAMES) -> NDArray[np.uint8]:
    """(count, H, W, 3): a bright square that moves to the right, or a dark one that moves down."""
    height, width = PICTURE
    frames = np.full((count, height, width, 3), 60 if variant == 0 else 200, np.uint8)
    for t in range(count):
        left = t * (width - 32) // max(count - 1, 1) if variant == 0 else 48
        top = 32 if variant == 0 else t * (height - 32) // max(count - 1, 1)
        frames[t, top : top + 32, left : left + 32] = (250, 220, 60) if variant == 0 else (20, 0, 90)
    return frames


def _drawn(name: str, tags: str, question: str, rate: int, frames: int) -> Probe:
    media = {kind: [_stand_in(kind, 0, rate, frames)] for kind in _kinds(tags)}
    others = {kind: [_stand_in(kind, 1, rate, frames)] for kind in media}
    return Probe(name, (Message("user", tags + question),), media, others)


def _woven(probe: Probe) -> Probe:
    messages = tuple(Message(m.role, m.content.replace("<audio>", "")) for m in probe.messages)
    return replace(probe, name="video with its sound", messages=messages, woven=True)


def _stand_in(kind: str, variant: int, rate: int, frames: int = FRAMES) -> Any:
    if kind == "audio":
        return draw_sound(variant, rate)
    return draw_picture(variant) if kind == "image" else draw_video(variant, frames)


def _from_sample(sample: Sample, all_samples: list[Sample], loaders: dict[str, Callable], rate: int) -> Probe:
    messages = sample.messages[:-1] if sample.answer is not None else sample.messages
    paths = {kind: list(getattr(sample, _KEY[kind])) for kind in _sample_kinds(sample)}
    media = {kind: [loaders[kind](path) for path in found] for kind, found in paths.items()}
    others = {}
    for kind, found in paths.items():
        pool = [p for s in all_samples for p in getattr(s, _KEY[kind]) if p not in found]
        others[kind] = [loaders[kind](pool[0]) if pool else _stand_in(kind, 1, rate)] * len(found)
    return Probe(sample.id, messages, media, others)


def _kinds(tags: str) -> set[str]:
    return {tag.strip("<>") for tag in MEDIA_KEYS if tag in tags}


def _sample_kinds(sample: Sample) -> set[str]:
    return {kind for kind, key in _KEY.items() if getattr(sample, key)}
