"""A visitor's file, checked and ready: a picture, a sound or a clip that browsers play and models are asked about.

What is fine already stays as it is, byte for byte; the rest is converted. What cannot be read, or is too large or too
long, is refused in a sentence.
"""

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from imod_core.errors import ImodError, InputError
from imod_core.media import SAMPLE_RATE, load_audio, load_image
from imod_demo.clip import plays_in_browsers, write_clip
from imod_demo.streams import Streams, look_into

MAX_BYTES = 200 * 2**20
"""Of one file: a minute of a phone's 4K video is about this."""
MAX_CLIP_SECONDS = 120.0
MAX_SOUND_SECONDS = 300.0
SHOWN_PICTURES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "GIF": ".gif"}
"""Formats that every browser shows."""
PLAYED_SOUNDS = {("wav", "pcm_s16le"): ".wav", ("mp3", "mp3"): ".mp3", ("flac", "flac"): ".flac"}
"""Containers and codecs of sound that every browser plays."""
LONGEST_NAME = 60
UNSHOWN = re.compile(r"[^\w .()-]")
"""Characters of a file's name that HTML, Markdown or a screen reader would take for something else."""
KINDS = {"image": "picture", "audio": "sound", "video": "clip"}
"""What a visitor calls them."""


@dataclass(frozen=True)
class Medium:
    """One checked file."""

    kind: str
    """`image`, `audio` or `video`."""
    path: Path
    """What is shown, played and sent."""
    name: str
    """As the visitor calls the file."""
    size: tuple[int, int] | None = None
    """Width and height in pixels."""
    seconds: float | None = None
    sounding: bool = False
    """Whether there is something to hear."""
    changes: tuple[str, ...] = ()
    """What was done to it, in the visitor's words."""

    @property
    def facts(self) -> str:
        """As `clip, 6.0 s, 640 x 360, with sound`."""
        found = [KINDS[self.kind]]
        if self.seconds is not None:
            found.append(f"{self.seconds:.1f} s")
        if self.size:
            found.append(f"{self.size[0]} × {self.size[1]}")
        if self.kind == "video":
            found.append("with sound" if self.sounding else "no sound")
        return ", ".join(found)


def take(source: Path, name: str, folder: Path) -> Medium:
    """The medium in the file `source`, written into `folder` under a name of its own.

    Raises:
        InputError: no medium, damaged, too many bytes, pixels or seconds; the sentence names the file as `name`.
    """
    name = UNSHOWN.sub("-", name)[-LONGEST_NAME:]
    if source.stat().st_size > MAX_BYTES:
        raise InputError(
            f"{name} has {source.stat().st_size / 2**20:.0f} MB: at most {MAX_BYTES // 2**20} MB are taken."
        )
    target = folder / secrets.token_hex(4)
    with _called(source, name):
        if _is_picture(source):
            return _take_picture(source, name, target)
        streams = look_into(source)
        if streams.picture:
            return _take_clip(source, name, target, streams)
        return _take_sound(source, name, target, streams)


def _take_picture(source: Path, name: str, target: Path) -> Medium:
    image = load_image(source)
    with Image.open(source) as opened:
        suffix = SHOWN_PICTURES.get(opened.format or "")
        still = not getattr(opened, "is_animated", False)
    if suffix and still:
        path = Path(shutil.copyfile(source, target.with_suffix(suffix)))
        return Medium("image", path, name, image.size)
    path = target.with_suffix(".png")
    image.save(path)
    return Medium("image", path, name, image.size, changes=("saved as PNG",))


def _take_clip(source: Path, name: str, target: Path, streams: Streams) -> Medium:
    if streams.seconds > MAX_CLIP_SECONDS:
        raise InputError(
            f"{source} lasts {streams.seconds:.0f} s: clips of up to {MAX_CLIP_SECONDS:.0f} s are taken, cut it."
        )
    path = target.with_suffix(".mp4")
    if plays_in_browsers(source, streams):
        shutil.copyfile(source, path)
        return Medium("video", path, name, streams.size, streams.seconds, streams.sound)
    written = write_clip(source, path, streams, MAX_CLIP_SECONDS)
    return Medium("video", path, name, written.size, written.seconds, written.sound, written.changes)


def _take_sound(source: Path, name: str, target: Path, streams: Streams) -> Medium:
    if streams.seconds > MAX_SOUND_SECONDS:
        raise InputError(
            f"{source} lasts {streams.seconds:.0f} s: sounds of up to {MAX_SOUND_SECONDS:.0f} s are taken, cut it."
        )
    samples = load_audio(source)
    seconds = len(samples) / SAMPLE_RATE
    suffix = PLAYED_SOUNDS.get((streams.container, streams.sound_codec))
    if suffix:
        path = Path(shutil.copyfile(source, target.with_suffix(suffix)))
        return Medium("audio", path, name, seconds=seconds, sounding=True)
    import soundfile

    path = target.with_suffix(".wav")
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
    change = f"{streams.sound_codec} at {streams.sound_rate} Hz made 16 kHz mono, as the model hears it"
    return Medium("audio", path, name, seconds=seconds, sounding=True, changes=(change,))


def _is_picture(source: Path) -> bool:
    try:
        with Image.open(source):
            return True
    except Exception as error:
        return isinstance(error, Image.DecompressionBombError)


@contextmanager
def _called(source: Path, name: str) -> Iterator[None]:
    """Errors speak of the visitor's file, never of where it lies here."""
    try:
        yield
    except ImodError as error:
        raise InputError(str(error).replace(str(source), name)) from None
