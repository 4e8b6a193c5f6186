"""Any phone's clip as every browser plays it: H.264 and AAC in MP4, upright, at a constant frame rate.

What a clip already is decides: `reasons` lists what stands against passing it on as it is, `write_clip` converts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from imod_core.errors import ImodError, InputError
from imod_core.media import MAX_PIXELS
from imod_core.media.orientation import Orientation
from imod_core.media.sound import seconds_late
from imod_core.media.source import picture_stream
from imod_demo.streams import Streams, opened, sound_stream

MAX_SIDE = 1280
"""Pixels of the longer side; towers see a few hundred."""
MAX_RATE = 30
"""Frames a second."""
ENCODERS = ("libx264", "libopenh264")
"""H.264, the better one first; PyAV's own packages have both."""
ENCODER_OPTIONS = {"libx264": {"preset": "veryfast", "crf": "20"}}
SOUND_RATES = (8_000, 16_000, 22_050, 32_000, 44_100, 48_000)
"""Hz that AAC has and browsers play."""


@dataclass(frozen=True)
class Written:
    """What `write_clip` made."""

    size: tuple[int, int]
    seconds: float
    sound: bool
    changes: tuple[str, ...]


def reasons(streams: Streams) -> tuple[str, ...]:
    """Why a clip cannot be passed on as it is, as what will be done about it; empty if it can."""
    assert streams.size is not None
    found = []
    if streams.picture_codec != "h264":
        found.append(f"{(streams.picture_codec or '').upper()} made H.264")
    elif streams.pixel_format not in ("yuv420p", "yuvj420p"):
        found.append(f"{streams.pixel_format} made 8-bit 4:2:0")
    if streams.orientation != Orientation():
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
        for stream in (picture_stream(container), sound_stream(container)):
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
            sound = sound_stream(container)
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
def _writing(target: Path) -> Iterator[Any]:
    import av

    with av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as out:
        yield out


def _steady(container: Any, streams: Streams, size: tuple[int, int], rate: int, most: float) -> Iterator[Any]:
    """Upright frames of `size`, `rate` a second: at each instant the latest that has begun."""
    stream = picture_stream(container)
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
        shown = _upright(frame, streams.orientation, size)
    if shown is None:
        raise InputError(f"{container.name} holds no picture that can be decoded.")
    yield shown


def _upright(frame: Any, orientation: Orientation, size: tuple[int, int]) -> Any:
    import av

    width, height = orientation.turned(size)
    if orientation == Orientation():
        return frame.reformat(width, height, "yuv420p")
    pixels = frame.reformat(width, height, "rgb24").to_ndarray()
    turned = np.ascontiguousarray(orientation.upright(pixels))
    return av.VideoFrame.from_ndarray(turned, format="rgb24").reformat(format="yuv420p")


def _write_sound(source: Path, out: Any, track: Any, most: float) -> None:
    """The sound track, mixed to at most two channels; read from the start again."""
    from av.audio.resampler import AudioResampler

    layout, rate = track.codec_context.layout.name, track.codec_context.sample_rate
    framer = AudioResampler(format="fltp", layout=layout, rate=rate, frame_size=1024)
    written = 0
    with opened(source) as container:
        for mixed in chain(_mixed(container, layout, rate, most), [None]):
            for piece in framer.resample(mixed):
                piece.pts, piece.time_base = written, Fraction(1, rate)
                written += piece.samples
                out.mux(track.encode(piece))
    out.mux(track.encode(None))


def _mixed(container: Any, layout: str, rate: int, most: float) -> Iterator[Any]:
    """The sound up to `most` seconds after the first picture, silent until it begins.

    As whole numbers, for which FFmpeg mixes channels so that their sum cannot go beyond the loudest; for fltp it can.
    """
    from av.audio.resampler import AudioResampler

    mixer = AudioResampler(format="s32p", layout=layout, rate=rate)
    late, begin = None, 0.0
    for frame in container.decode(sound_stream(container)):
        at = frame.time or 0.0
        if late is None:
            late = min(seconds_late(container, frame), most)
            begin = at - late
            yield from _silence(round(late * rate), layout, rate)
        if at - begin > most:
            return
        frame.pts = None
        try:
            mixed = mixer.resample(frame)
        except ValueError:  # PyAV's word for a frame unlike the first
            raise InputError(f"{container.name} changes its channels or rate midway: convert it.") from None
        yield from mixed
    yield from mixer.resample(None)


def _silence(samples: int, layout: str, rate: int) -> Iterator[Any]:
    """In pieces of up to a second."""
    import av

    channels = av.AudioLayout(layout).nb_channels
    for begin in range(0, samples, rate):
        still = np.zeros((channels, min(rate, samples - begin)), np.int32)
        frame = av.AudioFrame.from_ndarray(still, format="s32p", layout=layout)
        frame.sample_rate = rate
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


def _scaled(size: tuple[int, int]) -> tuple[int, int]:
    """At most MAX_SIDE, both even."""
    share = min(1.0, MAX_SIDE / max(size))
    width, height = (max(2, round(side * share / 2) * 2) for side in size)
    return width, height


def _whole_rate(streams: Streams) -> int:
    return int(min(MAX_RATE, max(1, round(streams.rate))))
