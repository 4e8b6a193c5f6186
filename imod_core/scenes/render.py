"""A scene as media: a still picture (png), its sound (wav) and both in motion (mp4).

The same scene, seed and libraries give the same bytes.
"""

import multiprocessing
import os
import pickle
import signal
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imod_core.console import track
from imod_core.media import SAMPLE_RATE
from imod_core.scenes.composition import Scene, stream
from imod_core.scenes.pictures import Sprites, draw_sprites, paint
from imod_core.scenes.sounds import SECONDS, Bank, mix, play_takes

FRAME_RATE = 4
"""Video frames a second."""
FRAMES = int(SECONDS * FRAME_RATE)
VIDEO_OPTIONS = {"preset": "veryfast", "qp": "24"}
"""A constant quantiser: x264's rate control by quality looks ahead, and not the same way twice."""
SOUND_BIT_RATE = 64_000
SOUND_OPTIONS = {"aac_coder": "fast"}
"""The default search takes four times as long as all other rendering together."""

_stock: "Stock"
"""Of a worker process."""


@dataclass(frozen=True)
class Stock:
    """What all scenes are made of, drawn and played once."""

    sprites: Sprites
    bank: Bank


def take_stock(parts: str) -> Stock:
    """The stock of `real` parts, fetched if need be, or of `drawn` ones."""
    return Stock(draw_sprites(parts), play_takes(parts))


def render(scene: Scene, stock: Stock, seed: int, folder: Path) -> None:
    """Write `<id>.png`, `<id>.wav` and `<id>.mp4` of a scene into `folder`."""
    frames = paint(scene, stock.sprites, stream(seed, "picture", scene.id), FRAMES)
    sound = mix(scene, stock.bank, stream(seed, "sound", scene.id))
    pcm = np.rint(sound * 32767).astype("<i2")
    frames[0].save(folder / f"{scene.id}.png", compress_level=6)
    (folder / f"{scene.id}.wav").write_bytes(_wav(pcm))
    _write_mp4(folder / f"{scene.id}.mp4", frames, pcm)


def render_all(scenes: list[Scene], stock: Stock, seed: int, folder: Path, workers: int) -> None:
    """Render scenes into `folder` with `workers` processes, with progress; an interrupt stops them all."""
    if workers <= 1:
        for scene in track(scenes, "Rendering clips"):
            render(scene, stock, seed, folder)
        return
    shelf = folder / "stock.pickle"
    shelf.write_bytes(pickle.dumps(stock))
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(shelf,))
    jobs = [(scene, seed, folder) for scene in scenes]
    try:
        with _interrupts_held():
            done = pool.map(_render_one, jobs, chunksize=8)
        for _ in track(done, "Rendering clips", total=len(jobs)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
        shelf.unlink()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back for a moment; processes started meanwhile never get it, so only the parent reacts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(shelf: Path) -> None:
    """Load the stock; end when the parent is gone."""
    global _stock
    _stock = pickle.loads(shelf.read_bytes())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _render_one(job: tuple[Scene, int, Path]) -> None:
    scene, seed, folder = job
    render(scene, _stock, seed, folder)


def _wav(pcm: NDArray[np.int16]) -> bytes:
    """A RIFF file of 16-bit stereo samples (n, 2)."""
    data = pcm.tobytes()
    form = struct.pack("<IHHIIHH", 16, 1, 2, SAMPLE_RATE, SAMPLE_RATE * 4, 4, 16)
    body = b"WAVEfmt " + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _write_mp4(path: Path, frames: list[Image.Image], pcm: NDArray[np.int16]) -> None:
    """H.264 and AAC; one thread and bit-exact flags, so that the bytes are the same again."""
    import av

    with av.open(str(path), "w", options={"fflags": "+bitexact", "movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=FRAME_RATE, options=VIDEO_OPTIONS)
        video.width, video.height, video.pix_fmt = *frames[0].size, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="stereo", options=SOUND_OPTIONS)
        audio.bit_rate = SOUND_BIT_RATE
        for one in (video, audio):
            one.codec_context.thread_count = 1
            one.codec_context.flags |= av.codec.context.Flags.bitexact
        for image in frames:
            container.mux(video.encode(av.VideoFrame.from_image(image)))
        container.mux(video.encode(None))
        container.mux(audio.encode(_sound_frame(pcm)))
        container.mux(audio.encode(None))


def _sound_frame(pcm: NDArray[np.int16]) -> Any:
    import av

    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(pcm).reshape(1, -1), format="s16", layout="stereo")
    frame.sample_rate = SAMPLE_RATE
    frame.time_base = Fraction(1, SAMPLE_RATE)
    frame.pts = 0
    return frame
