"""Clips as phones and other programs make them, a second or two long."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIZE = (96, 64)
"""Width and height."""
SECONDS = 2


def picture(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A bright bar that moves to the right over a gradient; the top left corner is red."""
    width, height = size
    frame = np.repeat(np.linspace(40, 160, height).astype(np.uint8)[:, None, None], width, axis=1).repeat(3, axis=2)
    frame[:, (4 * index) % width :][:, :6] = 230
    frame[: height // 4, : width // 4] = (220, 20, 20)
    return frame


def tone(rate: int, channels: int, seconds: float = SECONDS) -> np.ndarray:
    """(channels, samples) float32; each channel a pitch of its own."""
    time = np.arange(int(rate * seconds)) / rate
    return np.stack([np.sin(2 * np.pi * 220 * (c + 1) * time) for c in range(channels)]).astype(np.float32) / 4


def write_clip(
    path: Path,
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: int = 15,
    size: tuple[int, int] = SIZE,
    times: list[float] | None = None,
    sound: tuple[str, int, str] | None = ("aac", 44_100, "stereo"),
    seconds: float = SECONDS,
) -> Path:
    """A clip; `times` are the seconds at which frames are shown, by default evenly `rate` a second."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = Fraction(1, 600)
        track = out.add_stream(sound[0], rate=sound[1], layout=sound[2]) if sound else None
        for index, at in enumerate(times or [i / rate for i in range(int(seconds * rate))]):
            frame = av.VideoFrame.from_ndarray(picture(index, size), format="rgb24")
            frame.pts, frame.time_base = round(at * 600), Fraction(1, 600)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if sound and track is not None:
            samples = tone(sound[1], track.codec_context.channels, seconds)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=sound[2])
            frame.sample_rate = sound[1]
            resampler = av.AudioResampler(track.codec_context.format, sound[2], sound[1], frame_size=1024)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                out.mux(track.encode(piece))
            out.mux(track.encode(None))
    return path


def turn_display(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Set the display matrix (a, b, c, d) of a clip's first track, as a phone held upright does."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    for place, value in zip((0, 4, 12, 16), matrix, strict=True):
        content[start + place : start + place + 4] = (value << 16).to_bytes(4, "big", signed=True)
    path.write_bytes(content)
    return path
