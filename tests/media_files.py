"""Clips as other programs leave them: trimmed without encoding anew, mirrored, with a sound that begins later."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 10
"""Frames a second."""
WIDTH, HEIGHT = 64, 48
SOUND_RATE = 16_000
UNTURNED = (1, 0, 0, 1)
MATRICES = [
    *(UNTURNED, (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)),
    *((-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)),
]
"""Display matrices (a, b, c, d): the four turns, then each with a mirror."""


def grey(index: int) -> int:
    """Of the right half of a frame."""
    return 30 + 5 * index


def write_clip(path: Path, frames: int = 40, sound_at: float | None = None, codec: str = "aac", **options: str) -> Path:
    """One group of frames, so that none but the first can be decoded alone; the top left corner is white.

    The sound is a tone of `frames` at a quarter of full loudness that begins at `sound_at` seconds;
    `options` are FFmpeg's for the format.
    """
    with av.open(str(path), "w", options=options) as out:
        video = out.add_stream("libx264", rate=RATE, options={"crf": "10"})
        video.width, video.height, video.pix_fmt, video.gop_size = WIDTH, HEIGHT, "yuv420p", frames
        audio = out.add_stream(codec, rate=SOUND_RATE, layout="mono") if sound_at is not None else None
        for index in range(frames):
            pixels = np.full((HEIGHT, WIDTH, 3), grey(index), np.uint8)
            pixels[:, : WIDTH // 2] = 0
            pixels[: HEIGHT // 2, : WIDTH // 2] = 255
            out.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        out.mux(video.encode(None))
        if audio is not None:
            time = np.arange(SOUND_RATE * frames // RATE) / SOUND_RATE
            tone = (0.25 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
            framer = av.AudioResampler(audio.codec_context.format, "mono", SOUND_RATE, frame_size=1024)
            frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
            frame.sample_rate, frame.time_base = SOUND_RATE, Fraction(1, SOUND_RATE)
            frame.pts = round(sound_at * SOUND_RATE)
            for piece in framer.resample(frame):
                out.mux(audio.encode(piece))
            out.mux(audio.encode(None))
    return path


def trim(source: Path, target: Path, seconds: float) -> Path:
    """As `ffmpeg -ss SECONDS -c copy` does: all from the key frame before, and an edit list that hides the first."""
    with av.open(str(source)) as found, av.open(str(target), "w", options={"movflags": "+faststart"}) as out:
        streams = [out.add_stream_from_template(stream) for stream in found.streams]
        for packet in found.demux():
            if packet.dts is None:
                continue
            shift = round(seconds / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = streams[packet.stream_index]
            out.mux(packet)
    return target


def unannounced_stream() -> bytes:
    """A clip in FLV with one packet of sound at its end, of which nothing before it speaks."""
    file, frames = io.BytesIO(), 100
    with av.open(file, "w", format="flv") as out:
        stream = out.add_stream("flv", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for index in range(frames):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), index, np.uint8), "rgb24")))
        out.mux(stream.encode(None))
    data = bytes([0x2F, 0xFF])
    milliseconds = frames * 1000 // RATE
    tag = b"\x08" + len(data).to_bytes(3, "big") + milliseconds.to_bytes(3, "big") + bytes(4) + data
    return file.getvalue() + tag + len(tag).to_bytes(4, "big")


def set_display(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write a display matrix into the first track of an MP4."""
    content = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    at = content.index(struct.pack(">5i", 1 << 16, 0, 0, 0, 1 << 16), content.index(b"tkhd"))
    content[at : at + 20] = struct.pack(">5i", a, b, 0, c, d)
    path.write_bytes(content)
    return path


def displayed(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Each pixel where the matrix puts it."""
    a, b, c, d = matrix
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    shown = np.empty((to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    shown[to_y, to_x] = pixels
    return shown


def begins_at(samples: np.ndarray, rate: int = SOUND_RATE) -> float:
    """Seconds of silence before a sound."""
    return float(np.argmax(np.abs(samples) > 0.1) / rate)
