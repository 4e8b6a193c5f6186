"""What a visitor's sound or clip holds: its streams, their formats, and when its frames are shown."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imod_core.errors import InputError
from imod_core.media.orientation import Orientation, orientation
from imod_core.media.source import announced_seconds, damage_told, picture_stream

STEADY = 0.1
"""By how much two frames' distances may differ, as a share of the mean, to count as constant."""
FORMATS = (
    *("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "wav", "mp3", "flac"),
    *("aac", "amr", "aiff", "caf", "w64", "wv"),
)
"""What FFmpeg may take a visitor's file for: no playlists, which name other files and addresses, and no text."""


@dataclass(frozen=True)
class Streams:
    """What a file holds."""

    container: str
    picture_codec: str | None
    pixel_format: str
    size: tuple[int, int] | None
    """Upright width and height."""
    orientation: Orientation
    """How its frames become upright."""
    rate: float
    """Frames a second, most of the time."""
    constant: bool
    seconds: float
    sound_codec: str
    sound_rate: int
    channels: int

    @property
    def picture(self) -> bool:
        return self.picture_codec is not None

    @property
    def sound(self) -> bool:
        return self.channels > 0


def look_into(source: Path) -> Streams:
    """The streams of a file; decodes one frame. Raises InputError for what is neither sound nor video."""
    with opened(source) as container:
        picture, sound = picture_stream(container), sound_stream(container)
        if picture is None and sound is None:
            raise InputError(f"{source} holds neither picture nor sound: expected a picture, a sound or a clip.")
        times, frame = _frame_times(container, picture) if picture else ([], None)
        turned = orientation(frame) if frame else Orientation()
        return Streams(
            container=_container_name(container),
            picture_codec=_codec(picture) if picture else None,
            pixel_format=frame.format.name if frame else "",
            size=turned.turned((frame.width, frame.height)) if frame else None,
            orientation=turned,
            rate=_rate(times),
            constant=_is_constant(times),
            seconds=_seconds(container, picture or sound, times),
            sound_codec=_codec(sound) if sound else "",
            sound_rate=sound.codec_context.sample_rate if sound else 0,
            channels=sound.codec_context.channels if sound else 0,
        )


@contextmanager
def opened(source: Path) -> Iterator[Any]:
    """An opened container; whatever FFmpeg finds wrong while it is open is the file's fault."""
    import av

    limits = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
    unreadable = f"{source} is damaged or no picture, sound or clip that can be read"
    with damage_told(unreadable), av.open(str(source), metadata_errors="ignore", options=limits) as container:
        yield container


def sound_stream(container: Any) -> Any:
    """The first; None if there is none."""
    return next(iter(container.streams.audio), None)


def _codec(stream: Any) -> str:
    """The format's name, `hevc` or `mp3`, whichever decoder reads it."""
    return stream.codec_context.codec.canonical_name


def _frame_times(container: Any, stream: Any) -> tuple[list[float], Any]:
    """Seconds at which each frame is to be shown, and the first frame decoded.

    A trimmed clip begins with frames that are only there to decode the others.
    """
    packets = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
    ticks = sorted(packet.pts for packet in packets if packet.pts is not None)
    container.seek(0)
    frame = next(container.decode(stream), None)
    if frame is None:
        raise InputError(f"{container.name} holds no picture that can be decoded: expected a clip.")
    return [float(tick * stream.time_base) for tick in ticks], frame


def _rate(times: list[float]) -> float:
    """By the usual distance of two frames: a pause must not make the rest jerky."""
    gap = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    return 1 / gap if gap > 0 else 1.0


def _is_constant(times: list[float]) -> bool:
    gaps = np.diff(times)
    return len(gaps) == 0 or float(gaps.max() - gaps.min()) <= STEADY * float(gaps.mean())


def _seconds(container: Any, stream: Any, times: list[float]) -> float:
    """By the frames' times, else as the file announces; 0 where nothing tells."""
    if times:
        return times[-1] - times[0] + 1 / _rate(times)
    return announced_seconds(container, stream)


def _container_name(container: Any) -> str:
    """`mp4`, `mov`, `matroska` …: the family of MP4 by its brand, the others by their first name."""
    names = container.format.name.split(",")
    if "mp4" not in names:
        return names[0]
    return "mov" if container.metadata.get("major_brand", "").strip() in ("qt", "") else "mp4"
