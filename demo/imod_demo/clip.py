"""Any phone's clip as every browser plays it: H.264 and AAC in MP4, upright, at a constant frame rate.

What a clip already is decides: `reasons` lists what stands against passing it on as it is, `write_clip` converts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from imod_core.errors import ImodError, InputError
from imod_core.media import MAX_PIXELS

MAX_SIDE = 1280
"""Pixels of the longer side; towers see a few hundred."""
MAX_RATE = 30
"""Frames a second."""
STEADY = 0.1
"""By how much two frames' distances may differ, as a share of the mean, to count as constant."""
ENCODERS = ("libx264", "libopenh264")
"""H.264, the better one first; PyAV's own packages have both."""
ENCODER_OPTIONS = {"libx264": {"preset": "veryfast", "crf": "20"}}
FORMATS = (
    *("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "wav", "mp3", "flac"),
    *("aac", "amr", "aiff", "caf", "w64", "wv"),
)
"""What FFmpeg may take a visitor's file for: no playlists, which name other files and addresses, and no text."""
SOUND_RATES = (8_000, 16_000, 22_050, 32_000, 44_100, 48_000)
"""Hz that AAC has and browsers play."""


@dataclass(frozen=True)
class Streams:
    """What a file holds."""

    container: str
    picture_codec: str | None
    pixel_format: str
    size: tuple[int, int] | None
    """Upright width and height."""
    quarter_turns: int
    """Counter-clockwise, to show it upright."""
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


@dataclass(frozen=True)
class Written:
    """What `write_clip` made."""

    size: tuple[int, int]
    seconds: float
    sound: bool
    changes: tuple[str, ...]


def look_into(source: Path) -> Streams:
    """The streams of a file; decodes one frame. Raises InputError for what is neither sound nor video."""
    with opened(source) as container:
        picture, sound = _picture_stream(container), _sound_stream(container)
        if picture is None and sound is None:
            raise InputError(f"{source} holds neither picture nor sound: expected a picture, a sound or a clip.")
        times, frame = _frame_times(container, picture) if picture else ([], None)
        turns = round(frame.rotation / 90) % 4 if frame else 0
        return Streams(
            container=_container_name(container),
            picture_codec=_codec(picture) if picture else None,
            pixel_format=frame.format.name if frame else "",
            size=_turned((frame.width, frame.height), turns) if frame else None,
            quarter_turns=turns,
            rate=_rate(times),
            constant=_is_constant(times),
            seconds=_seconds(container, picture or sound, times),
            sound_codec=_codec(sound) if sound else "",
            sound_rate=sound.codec_context.sample_rate if sound else 0,
            channels=sound.codec_context.channels if sound else 0,
        )


def reasons(streams: Streams) -> tuple[str, ...]:
    """Why a clip cannot be passed on as it is, as what will be done about it; empty if it can."""
    assert streams.size is not None
    found = []
    if streams.picture_codec != "h264":
        found.append(f"{(streams.picture_codec or '').upper()} made H.264")
    elif streams.pixel_format not in ("yuv420p", "yuvj420p"):
        found.append(f"{streams.pixel_format} made 8-bit 4:2:0")
    if streams.quarter_turns:
        found.append("turned upright")
    if not streams.constant or streams.rate > 2 * MAX_RATE + 1:
        found.append(f"steadied at {_whole_rate(streams)} frames a second")
    if max(streams.size) > MAX_SIDE:
        found.append("scaled to {} × {}".format(*_scaled(streams.size)))
    if streams.sound and streams.sound_codec not in ("aac", "mp3"):
        found.append(f"{streams.sound_codec} sound made AAC")
    if streams.channels > 2:
        found.append(f"{streams.channels} channels mixed to stereo")
    if streams.container != "mp4" and not found:
        found.append("put into MP4")
    return tuple(found)


def plays_in_browsers(source: Path, streams: Streams) -> bool:
    """Whether the file can be passed on; decodes all of it, so that a damaged one is not."""
    if reasons(streams):
        return False
    with opened(source) as container:
        for stream in (_picture_stream(container), _sound_stream(container)):
            if stream is not None:
                container.seek(0)
                stream.thread_type = "AUTO"
                for _ in container.decode(stream):
                    pass
    return True


def write_clip(source: Path, target: Path, streams: Streams, most_seconds: float) -> Written:
    """Convert a clip. Raises InputError if it is damaged or turns out to last longer than `most_seconds`."""
    assert streams.size is not None
    size, rate = _scaled(streams.size), _whole_rate(streams)
    try:
        with opened(source) as container, _writing(target) as out:
            picture = _add_picture(out, size, rate)
            # Every stream has to be there before the first packet.
            sound = _sound_stream(container)
            track = _add_sound(out, sound) if sound is not None else None
            frames = 0
            for frame in _steady(container, streams, size, rate, most_seconds):
                frame.pts, frame.time_base = frames, Fraction(1, rate)
                out.mux(picture.encode(frame))
                frames += 1
            out.mux(picture.encode(None))
            if track is not None:
                _write_sound(source, out, track, most_seconds)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return Written(size, frames / rate, streams.sound, reasons(streams))


@contextmanager
def opened(source: Path) -> Iterator[Any]:
    """An opened container; whatever FFmpeg finds wrong while it is open is the file's fault."""
    import av

    try:
        limits = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
        with av.open(str(source), metadata_errors="ignore", options=limits) as container:
            yield container
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{source} is damaged or no picture, sound or clip that can be read ({reason}).") from None


@contextmanager
def _writing(target: Path) -> Iterator[Any]:
    import av

    with av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as out:
        yield out


def _steady(container: Any, streams: Streams, size: tuple[int, int], rate: int, most: float) -> Iterator[Any]:
    """Upright frames of `size`, `rate` a second: at each instant the latest that has begun."""
    stream = _picture_stream(container)
    stream.thread_type = "AUTO"
    shown, start, count = None, None, 0
    for frame in container.decode(stream):
        if frame.width * frame.height > MAX_PIXELS:
            raise InputError(f"{container.name} has frames of {frame.width} x {frame.height} pixels: scale it down.")
        at = float(frame.time or 0.0)
        start = at if start is None else start
        while shown is not None and count / rate < at - start - 0.5 / rate:
            yield shown
            count += 1
        if count / rate > most:
            raise InputError(f"{container.name} lasts longer than {most:.0f} s: cut it.")
        shown = _upright(frame, streams.quarter_turns, size)
    if shown is None:
        raise InputError(f"{container.name} holds no picture that can be decoded.")
    yield shown


def _upright(frame: Any, quarter_turns: int, size: tuple[int, int]) -> Any:
    import av

    width, height = _turned(size, quarter_turns)
    if not quarter_turns:
        return frame.reformat(width, height, "yuv420p")
    pixels = frame.reformat(width, height, "rgb24").to_ndarray()
    turned = np.ascontiguousarray(np.rot90(pixels, quarter_turns))
    return av.VideoFrame.from_ndarray(turned, format="rgb24").reformat(format="yuv420p")


def _write_sound(source: Path, out: Any, track: Any, most: float) -> None:
    """The sound track, mixed to at most two channels; read from the start again."""
    from av.audio.resampler import AudioResampler

    layout, rate = track.codec_context.layout.name, track.codec_context.sample_rate
    resampler = AudioResampler(format="fltp", layout=layout, rate=rate, frame_size=1024)
    written = 0
    with opened(source) as container:
        for decoded in [*_until(container, most), None]:
            for piece in resampler.resample(decoded):
                piece.pts, piece.time_base = written, Fraction(1, rate)
                written += piece.samples
                out.mux(track.encode(piece))
    out.mux(track.encode(None))


def _until(container: Any, most: float) -> Iterator[Any]:
    for frame in container.decode(_sound_stream(container)):
        if (frame.time or 0.0) > most:
            return
        frame.pts = None
        yield frame


def _add_picture(out: Any, size: tuple[int, int], rate: int) -> Any:
    name = encoder()
    stream = out.add_stream(name, rate=rate, options=ENCODER_OPTIONS.get(name, {}))
    stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
    return stream


def _add_sound(out: Any, sound: Any) -> Any:
    found = sound.codec_context
    rate = found.sample_rate if found.sample_rate in SOUND_RATES else SOUND_RATES[-1]
    return out.add_stream("aac", rate=rate, layout="mono" if found.channels == 1 else "stereo")


def encoder() -> str:
    """The name of an H.264 encoder that is there."""
    import av

    found = next((name for name in ENCODERS if name in av.codecs_available), None)
    if found is None:
        raise ImodError(f"This PyAV has no H.264 encoder ({', '.join(ENCODERS)}): install the one from PyPI.")
    return found


def _picture_stream(container: Any) -> Any:
    """The first video stream that is no cover picture of a sound."""
    from av.stream import Disposition

    covers = (Disposition.attached_pic, Disposition.still_image)
    return next((s for s in container.streams.video if not any(s.disposition & cover for cover in covers)), None)


def _sound_stream(container: Any) -> Any:
    return next(iter(container.streams.audio), None)


def _codec(stream: Any) -> str:
    """The format's name, `hevc` or `mp3`, whichever decoder reads it."""
    return stream.codec_context.codec.canonical_name


def _frame_times(container: Any, stream: Any) -> tuple[list[float], Any]:
    """Seconds at which each frame is to be shown, and the first frame decoded."""
    ticks = sorted(packet.pts for packet in container.demux(stream) if packet.size and packet.pts is not None)
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
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1_000_000


def _container_name(container: Any) -> str:
    """`mp4`, `mov`, `matroska` …: the family of MP4 by its brand, the others by their first name."""
    names = container.format.name.split(",")
    if "mp4" not in names:
        return names[0]
    return "mov" if container.metadata.get("major_brand", "").strip() in ("qt", "") else "mp4"


def _turned(size: tuple[int, int], quarter_turns: int) -> tuple[int, int]:
    return size if quarter_turns % 2 == 0 else (size[1], size[0])


def _scaled(size: tuple[int, int]) -> tuple[int, int]:
    """At most MAX_SIDE, both even."""
    share = min(1.0, MAX_SIDE / max(size))
    width, height = (max(2, round(side * share / 2) * 2) for side in size)
    return width, height


def _whole_rate(streams: Streams) -> int:
    return int(min(MAX_RATE, max(1, round(streams.rate))))
