"""A server under load and attack: python benchmarks/load.py [--requests 1000] [--concurrency 16] [--hostile 0.1].

Starts `imod serve` on a tiny random model, or asks the one at --url. Questions with text, pictures, sounds and videos
are asked alone first, then many at once with hostile requests among them. Every good answer must be the one given
alone, every hostile request must end as a 4xx that says why, no process may die, and memory must stay flat (the
proportional set sizes of the server's processes, second half against first, after a warm-up). Exits with 1 if not.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import soundfile
from PIL import Image

WARM_UP = 0.3
"""Share of the requests after which memory is looked at: caches and thread pools have filled by then."""
FLAT = 0.05
"""Change of the memory that still counts as flat."""
SIDE, RATE = 64, 16_000
Part = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """One request as it goes over the wire."""

    kind: str
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    path: str = "/v1/chat/completions"


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    text: str
    seconds: float


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
        chat("hour of video", url_part("video", "video/mp4", video(1, 3601, 1, 16))),
        chat("cut video", url_part("video", "video/mp4", clip[: len(clip) // 2])),
        chat("no header", url_part("video", "video/mp4", clip[len(clip) // 2 :])),
        chat("sound as video", url_part("video", "video/mp4", wav)),
        chat("playlist", url_part("video", "video/mp4", playlist)),
        chat("list of files", url_part("video", "video/mp4", concat)),
        chat("too many pictures", *[url_part("image", "image/png", picture(1))] * 9),
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
        Request("no such route", b"{}", path="/v1/files"),
    ]


async def send(client: httpx.AsyncClient, request: Request) -> Reply:
    started = time.monotonic()
    reply = await client.post(request.path, content=request.body, headers=request.headers)
    return Reply(reply.status_code, _answer(reply), time.monotonic() - started)


def _answer(reply: httpx.Response) -> str:
    """The answer's text, or the error's message; empty where there is neither."""
    try:
        found = reply.json()
    except ValueError:
        return ""
    if reply.status_code == 200:
        return str(found["choices"][0]["message"]["content"])
    error = found.get("error", found.get("detail", ""))
    return str(error.get("message", "") if isinstance(error, dict) else error)


def processes(pid: int) -> list[int]:
    """The process and all below it."""
    with contextlib.suppress(OSError):
        children = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [pid, *(below for child in children for below in processes(child))]
    return []


def memory(pids: list[int]) -> float:
    """MB that the processes hold together, shared pages counted once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
    return total / 1024


@dataclass
class Outcome:
    """What the load showed."""

    faults: list[str] = field(default_factory=list)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)


async def load(url: str, pid: int, arguments: argparse.Namespace) -> Outcome:
    """Ask all good questions alone, then everything at once."""
    key = os.environ.get("IMOD_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=arguments.concurrency)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=300.0, limits=limits, trust_env=False
    ) as client:
        good, hostile = good_requests(), hostile_requests()
        expected = []
        for request in good:
            reply = await send(client, request)
            assert reply.status == 200, f"{request.kind} asked alone: {reply}"
            expected.append(reply.text)
        if len(set(expected)) < len(expected) / 2:
            raise SystemExit("The questions are answered alike, so that right answers prove nothing.")
        return await _mixed(client, pid, arguments, good, expected, hostile)


async def _mixed(
    client: httpx.AsyncClient,
    pid: int,
    arguments: argparse.Namespace,
    good: list[Request],
    expected: list[str],
    hostile: list[Request],
) -> Outcome:
    outcome, before = Outcome(), set(processes(pid))
    generator, every = np.random.default_rng(0), max(1, round(1 / arguments.hostile)) if arguments.hostile else 0
    order = iter(range(arguments.requests))
    done = 0

    async def worker() -> None:
        nonlocal done
        for number in order:
            if every and number % every == 0:
                await attack(hostile[number // every % len(hostile)])
            else:
                await ask(int(generator.integers(len(good))))
            done += 1
            if done > WARM_UP * arguments.requests and done % 10 == 0:
                outcome.megabytes.append(memory(processes(pid)))

    async def attack(request: Request) -> None:
        reply = await _try(client, request, outcome)
        if reply and (not 400 <= reply.status < 500 or not reply.text):
            outcome.faults.append(f"hostile {request.kind}: HTTP {reply.status} {reply.text[:200]!r}")

    async def ask(index: int) -> None:
        reply = await _try(client, good[index], outcome)
        if reply and (reply.status != 200 or reply.text != expected[index]):
            outcome.faults.append(
                f"{good[index].kind}: HTTP {reply.status} {reply.text[:200]!r}, alone {expected[index]!r}"
            )
        if reply:
            outcome.seconds.append(reply.seconds)

    await asyncio.gather(*(worker() for _ in range(arguments.concurrency)))
    if lost := before - set(processes(pid)):
        outcome.faults.append(f"{len(lost)} of {len(before)} processes died")
    if (change := growth(outcome.megabytes)) > FLAT:
        outcome.faults.append(f"memory grew by {change:.1%} after the warm-up")
    return outcome


async def _try(client: httpx.AsyncClient, request: Request, outcome: Outcome) -> Reply | None:
    try:
        reply = await send(client, request)
    except httpx.HTTPError as error:
        outcome.faults.append(f"{request.kind}: no reply ({error!r})")
        return None
    outcome.statuses[request.kind, reply.status] += 1
    return reply


def growth(megabytes: list[float]) -> float:
    """Change from the first quarter of the samples to the last, by their medians; 0 for too few."""
    quarter = len(megabytes) // 4
    if not quarter:
        return 0.0
    return statistics.median(megabytes[-quarter:]) / statistics.median(megabytes[:quarter]) - 1


@contextlib.contextmanager
def own_server(folder: Path) -> Iterator[tuple[str, int]]:
    """`imod serve` on a tiny random model."""
    base, command = folder / "tiny", [sys.executable, "-m", "imod_core.cli"]
    subprocess.run([*command, "base", "build", "--preset", "tiny", "--out", base], check=True)
    server = subprocess.Popen(
        [*command, "serve", base, "--port", "0", "--log", folder / "log"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout
        line = server.stdout.readline()
        if "ready at" not in line:
            raise SystemExit("The server did not start.")
        yield line.split()[-1], server.pid
    finally:
        server.terminate()
        server.wait()


def report(outcome: Outcome, arguments: argparse.Namespace, seconds: float) -> None:
    print(f"{arguments.requests} requests, {arguments.concurrency} at once, in {seconds:.0f} s")
    for (kind, status), count in sorted(outcome.statuses.items()):
        print(f"  {kind:<18} {status} x {count}")
    if outcome.seconds:
        ordered = sorted(outcome.seconds)
        middle, late = ordered[len(ordered) // 2], ordered[int(0.99 * len(ordered))]
        print(f"good answers took {middle:.2f} s in the middle, {late:.2f} s at the 99th percentile")
    if outcome.megabytes:
        print(
            f"memory after the warm-up {min(outcome.megabytes):.0f} to {max(outcome.megabytes):.0f} MB, "
            f"change {growth(outcome.megabytes):+.1%}"
        )
    for fault in outcome.faults:
        print(f"FAULT {fault}")
    print("failed" if outcome.faults else "passed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="a running server, with --pid of its `imod serve`")
    parser.add_argument("--pid", type=int, default=0)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--hostile", type=float, default=0.1, help="share of hostile requests")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if arguments.url:
            url, pid = arguments.url, arguments.pid
        else:
            url, pid = stack.enter_context(own_server(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        started = time.monotonic()
        outcome = asyncio.run(load(url, pid, arguments))
        report(outcome, arguments, time.monotonic() - started)
    sys.exit(1 if outcome.faults else 0)


if __name__ == "__main__":
    main()
