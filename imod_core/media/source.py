"""A media file as it is opened: its name for messages, its container, and the limits that it is held to."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imod_core.errors import InputError, MissingFileError

Source = Path | str | bytes

MAX_PIXELS = 50_000_000
"""Of one picture or video frame; a 50-megapixel camera still passes."""
MAX_SECONDS = 600.0
"""Of one sound or video: a MUSIC-AVQA clip has 60, and ten minutes of 48 kHz stereo take 230 MB."""
SHORTFALL = 0.05
"""Share of its announced length that a container may lack: encoder padding makes up to this."""


def name_and_file(source: Source) -> tuple[str, Any]:
    """A name for messages and what the decoders open."""
    if isinstance(source, bytes):
        if not source:
            raise InputError("The given media data is empty (0 bytes).")
        return "The given media data", io.BytesIO(source)
    path = Path(source)
    if not path.is_file():
        raise MissingFileError(f"{path} is no file: expected a picture, sound or video.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes): expected a picture, sound or video.")
    return str(path), str(path)


@contextmanager
def open_container(name: str, file: Any) -> Iterator[Any]:
    """An FFmpeg container, from its start; whatever FFmpeg finds wrong while it is open is the file's fault."""
    import av

    if isinstance(file, io.BytesIO):
        file.seek(0)
    unreadable = f"{name} is damaged or not a sound or video that can be read"
    with damage_told(unreadable), av.open(file, metadata_errors="ignore") as container:
        yield container


@contextmanager
def damage_told(words: str) -> Iterator[None]:
    """What PyAV raises over a damaged file, as an InputError of these words with the reason in brackets."""
    import av

    try:
        yield
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        raise InputError(f"{words} ({getattr(error, 'strerror', None) or error}).") from None
    except IndexError:  # PyAV looks for the stream of every packet among those that the header announced
        raise InputError(f"{words} (it has packets of a stream that it does not announce).") from None


def codec_context(name: str, stream: Any) -> Any:
    """A stream's codec context, which FFmpeg has for encodings that it knows."""
    if stream.codec_context is None:
        raise InputError(f"{name} is in an encoding that FFmpeg does not know: convert it.")
    return stream.codec_context


def picture_stream(container: Any) -> Any:
    """The first video stream that is no cover picture of a sound; None if there is none."""
    from av.stream import Disposition

    covers = (Disposition.attached_pic, Disposition.still_image)
    return next((s for s in container.streams.video if not any(s.disposition & cover for cover in covers)), None)


def announced_seconds(container: Any, stream: Any) -> float:
    """How long a stream or its file says that it is; 0 where neither does."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1_000_000


def check_pixels(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} has {width} x {height} pixels: at most {MAX_PIXELS:,} are read, scale it down.")


def check_seconds(name: str, seconds: float) -> None:
    if seconds > MAX_SECONDS:
        raise InputError(f"{name} lasts {seconds:.0f} s: at most {MAX_SECONDS:.0f} s are read, cut it.")


def check_whole(name: str, found: float, announced: float) -> None:
    if found < announced * (1 - SHORTFALL):
        raise InputError(f"{name} is cut off: {found / announced:.0%} of its announced length is there.")
