"""What clients send to a server under load: questions of every kind, and every attack of docs/threat-model.md."""

import base64
import io
import json
import struct
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image

SIDE, RATE = 64, 16_000
Part = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """One request as it goes over the wire."""

    kind: str
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    path: str = "/v1/chat/completions"


def text_part(text: str) -> Part:
    return {"type": "text", "text": text}


def url_part(kind: str, media_type: str, data: bytes) -> Part:
    return {
        "type": f"{kind}_url",
        f"{kind}_url": {"url": f"data:{media_type};base64,{base64.b64encode(data).decode()}"},
    }


def sound_part(data: bytes) -> Part:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


def chat(kind: str, *parts: Part, **options: Any) -> Request:
    """A question of up to eight greedy tokens."""
    body = {"messages": [{"role": "user", "content": [*parts, text_part("Which is louder?")]}], "max_tokens": 8}
    # A random model may answer with a placeholder, for which there would be no medium.
    return Request(kind, json.dumps({**body, "temperature": 0, **options}).encode())


def picture(seed: int, side: int = SIDE) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def sound(seed: int, seconds: float = 1.0, rate: int = RATE, channels: int = 1, format: str = "WAV") -> bytes:
    file = io.BytesIO()
    samples = np.random.default_rng(seed).normal(0, 0.1, (int(seconds * rate) if seed else 1, channels))
    if not seed:  # silence, which packs well
        samples = np.zeros((int(seconds * rate), channels))
    soundfile.write(file, samples, rate, format=format)
    return file.getvalue()


def video(seed: int, frames: int = 8, rate: int = 8, side: int = SIDE) -> bytes:
    """An MP4 whose index comes first, so that a cut one still announces all its frames."""
    moving = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with av.open(path, "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("mpeg4", rate=rate)
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            for step in range(frames):
                moved = np.roll(moving, step, axis=1) if frames < 100 else moving
                container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
            container.mux(stream.encode(None))
        return path.read_bytes()


def huge_picture(side: int = 30_000) -> bytes:
    """A PNG of a few hundred bytes whose header promises 30,000 x 30,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def good_requests() -> list[Request]:
    """Questions of every kind, each with media of its own."""
    requests = [chat("text", text_part(f"Question {n}:")) for n in range(10)]
    requests += [chat("image", url_part("image", "image/png", picture(n))) for n in range(1, 11)]
    requests += [chat("audio", sound_part(sound(n))) for n in range(1, 11)]
    requests += [chat("video", url_part("video", "video/mp4", video(n))) for n in range(1, 6)]
    for n in range(20, 25):
        requests.append(chat("image+audio", url_part("image", "image/png", picture(n)), sound_part(sound(n))))
    return requests


def hostile_requests() -> list[Request]:
    """One of each attack that docs/threat-model.md names."""
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>'
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    concat = b"ffconcat version 1.0\nfile '/etc/passwd'\n"
    clip, wav = video(1), sound(1)
    link = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
    frames = "data:video/jpeg;base64," + "," * 1_000_000
    nested = b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    return [
        chat("file URL", link),
        chat("local path", {"type": "image_url", "image_url": {"url": "/etc/passwd"}}),
        chat("remote URL", {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}),
        chat("remote video", {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}}),
        chat("ftp URL", {"type": "audio_url", "audio_url": {"url": "ftp://127.0.0.1/a.wav"}}),
        chat("picture bomb", url_part("image", "image/png", huge_picture())),
        chat("svg picture", url_part("image", "image/svg+xml", svg)),
        chat("pdf picture", url_part("image", "application/pdf", b"%PDF-1.7\n1 0 obj\n")),
        chat("cut picture", url_part("image", "image/png", picture(1)[:300])),
        chat("empty picture", url_part("image", "image/png", b"")),
        chat("not base64", {"type": "image_url", "image_url": {"url": "data:image/png;base64,@@@@"}}),
        chat("not a data URL", {"type": "image_url", "image_url": {"url": "data:image/png,abc"}}),
        chat("hour of sound", sound_part(sound(0, 3601, RATE, format="FLAC"))),
        chat("8 channels", sound_part(sound(1, 0.1, channels=8))),
        chat("absurd rate", sound_part(sound(1, 0.1, rate=1_000_000))),
        chat("slow rate", sound_part(sound(1, 10.0, rate=10))),
        chat("cut sound", sound_part(wav[:20])),
        chat("sound that names another encoding", sound_part(wav[:20] + b"\2" + wav[21:])),
        chat("hour of video", url_part("video", "video/mp4", video(1, 3601, 1, 16))),
        chat("cut video", url_part("video", "video/mp4", clip[: len(clip) // 2])),
        chat("no header", url_part("video", "video/mp4", clip[len(clip) // 2 :])),
        chat("sound as video", url_part("video", "video/mp4", wav)),
        chat("playlist", url_part("video", "video/mp4", playlist)),
        chat("list of files", url_part("video", "video/mp4", concat)),
        chat("too many pictures", *[url_part("image", "image/png", picture(1))] * 9),
        chat("pictures without end as a video", {"type": "video_url", "video_url": {"url": frames}}),
        chat("more frames", url_part("video", "video/mp4", clip), media_io_kwargs={"video": {"num_frames": 10_000}}),
        chat("tensor", {"type": "image_embeds", "image_embeds": base64.b64encode(b"PK\x03\x04").decode()}),
        chat("long prompt", text_part("left " * 20_000)),
        chat("many answers", n=10_000),
        Request("deep JSON", nested),
        Request("no JSON", b"{'messages': 1}"),
        Request("form", b"messages=1", {"content-type": "application/x-www-form-urlencoded"}),
        Request("too large", b" " * (65 << 20)),
        chat("other model", model="../../etc"),
        Request("engine control", b"{}", path="/scale_elastic_ep"),
        Request("many conversations", b'{"messages": [[]]}', path="/v1/chat/completions/batch"),
        Request("transcription", b"{}", path="/v1/audio/transcriptions"),
        Request("no such route", b"{}", path="/v1/files"),
    ]
