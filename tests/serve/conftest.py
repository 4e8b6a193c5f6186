"""A tiny AVT base, media of each kind, and one real server for all tests that need one."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # good and hostile requests

API_KEY = "a-key-for-tests"


@pytest.fixture(scope="package")
def base(tmp_path_factory) -> Path:
    """A random AVT of a few hundred thousand parameters."""
    from imod_core.avt.build import build_base

    folder = tmp_path_factory.mktemp("base") / "tiny"
    build_base(folder, preset="tiny", llm=None, vision=None, audio=None, seed=0, dtype="float32")
    return folder


@dataclass(frozen=True)
class MediaFiles:
    """Paths of generated media."""

    image: Path
    audio: Path
    """44.1 kHz stereo: everything has to resample and mix down."""
    video: Path
    """With a sound track."""
    silent: Path
    """Without one."""
    other_image: Path
    silent_wav: Path
    other_video: Path
    """Media of the same sizes and lengths with other contents."""


@pytest.fixture(scope="package")
def media(tmp_path_factory) -> MediaFiles:
    folder = tmp_path_factory.mktemp("media")
    names = ("a.png", "a.wav", "sounding.mp4", "silent.mp4", "b.png", "b.wav", "b.mp4")
    files = MediaFiles(*(folder / name for name in names))
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(files.image)
    Image.fromarray(255 - noise // 2).save(files.other_image)
    soundfile.write(files.audio, tone(44_100), 44_100)
    soundfile.write(files.silent_wav, 0.001 * tone(44_100), 44_100)
    write_video(files.video, tone(44_100))
    write_video(files.silent, None)
    write_video(files.other_video, 0.01 * tone(44_100), light=255)
    return files


def tone(rate: int) -> np.ndarray:
    """A second of two tones, (rate, 2) float32."""
    time = np.arange(rate) / rate
    return np.stack([np.sin(2 * np.pi * f * time) for f in (440, 660)], axis=1).astype(np.float32) / 4


def write_video(path: Path, sound: np.ndarray | None, light: int = 0) -> None:
    """A second of moving gradient that ends at `light`, 10 frames, with or without AAC sound."""
    ramp = np.linspace(255, light, 64).astype(np.uint8)
    picture = np.stack([np.tile(ramp, (64, 1))] * 3, axis=-1)
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        track = container.add_stream("aac", rate=44_100, layout="stereo") if sound is not None else None
        for step in range(10):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 6 * step, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if track is not None:
            samples = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.T), "fltp", "stereo")
            samples.sample_rate = 44_100
            container.mux([*track.encode(samples), *track.encode(None)])


@dataclass(frozen=True)
class Running:
    """The server's command as a user would have started it."""

    process: subprocess.Popen
    url: str
    log: Path


@pytest.fixture(scope="package")
def server(base, tmp_path_factory):
    """`imod serve` on a free port behind an API key; ends cleanly on SIGTERM, which is checked."""
    folder = tmp_path_factory.mktemp("server")
    log, notes = folder / "vllm.log", folder / "imod.log"
    command = [sys.executable, "-m", "imod_core.cli", "serve", str(base), "--port", "0", "--log", str(log)]
    with notes.open("w") as stderr:
        process = subprocess.Popen(
            [*command, "--", "--max-num-seqs", "4"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, "IMOD_API_KEY": API_KEY},
            text=True,
        )
    line = process.stdout.readline()
    assert "ready at" in line, notes.read_text()
    children = descendants(process.pid)
    assert children
    yield Running(process, line.split()[-1], log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, notes.read_text()
    assert gone(children)


def gone(pids: list[int], seconds: float = 10.0) -> bool:
    """Whether none of the processes runs any more, at the latest after `seconds`; nobody may have reaped them yet."""
    until = time.monotonic() + seconds
    while any(runs(pid) for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """Process ids below `pid`."""
    children = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(below for child in children for below in descendants(child))]
