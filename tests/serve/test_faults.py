"""A server whose model is blind, and one whose processes are killed while it answers."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file, save_file

from imod_core.errors import CheckFailed, ImodError
from imod_serve.client import Client
from imod_serve.launcher import Server
from imod_serve.messages import Turn

from .conftest import API_KEY, descendants, gone

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]
BOUND = 120.0
"""Seconds within which a client hears of a dead engine, on a machine that does other things too."""


def test_a_model_with_a_zeroed_projector_is_refused(base, tmp_path):
    """Its prompts have all their placeholders, so that counting tokens finds nothing."""
    folder = tmp_path / "blind"
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).symlink_to(path)
    weights = load_file(base / "model.safetensors")
    zeroed = [name for name in weights if "vision_projector" in name]
    assert zeroed
    (folder / "model.safetensors").unlink()
    save_file(
        {n: w * 0 if n in zeroed else w for n, w in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    server = Server(folder, log=tmp_path / "log")
    with pytest.raises(CheckFailed, match=r"does not look at image input.*projector"):
        server.start()
    assert server.process is None


@dataclass(frozen=True)
class Outcome:
    """What became of one request; times by the monotonic clock, in seconds."""

    kind: str
    begun: float
    ended: float
    error: str | None


class Asking:
    """Clients that ask without end, one for each kind of request, and what becomes of the requests."""

    def __init__(self, url: str, media):
        self.client = Client(url, "tiny", API_KEY, timeout=2 * BOUND, retries=0)
        self.stopped, self.flowing = threading.Event(), threading.Event()
        self.outcomes: list[Outcome] = []
        requests = {
            "text": self._asked(),
            "picture": self._asked(images=[media.image]),
            "sound": self._asked(audios=[media.audio]),
            "video": self._asked(videos=[media.video]),
            "stream": partial(self._stream, media.image),
        }
        self.threads = [threading.Thread(target=self._ask, args=pair) for pair in requests.items()]
        for thread in self.threads:
            thread.start()

    def answered(self, kind: str, since: float = 0.0) -> bool:
        return any(one.error is None for one in self.outcomes if one.kind == kind and one.begun > since)

    def stop(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(3 * BOUND)
            assert not thread.is_alive(), "a client hangs"

    def _asked(self, **media: list) -> Callable[[], object]:
        return partial(self.client.ask, "Hello?", **media, max_tokens=64)

    def _stream(self, image: Path) -> None:
        with self.client.stream([Turn("user", "Hello?", images=(image,))], max_tokens=512) as stream:
            for _ in stream:
                self.flowing.set()
        self.flowing.clear()

    def _ask(self, kind: str, request: Callable[[], object]) -> None:
        while not self.stopped.is_set():
            begun, error = time.monotonic(), None
            try:
                request()
            except ImodError as raised:
                error = str(raised)
            self.outcomes.append(Outcome(kind, begun, time.monotonic(), error))
            if error:
                time.sleep(0.2)


def test_a_killed_engine_ends_requests_in_time_and_is_started_again_as_often_as_asked(base, media, tmp_path):
    notes = tmp_path / "notes"
    command = [sys.executable, "-m", "imod_core.cli", "serve", base, "--name", "tiny", "--port", "0"]
    command += ["--restart", "1", "--log-format", "json", "--log", "-"]
    with notes.open("w") as stderr:
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, "IMOD_API_KEY": API_KEY}
        )
    url = server.stdout.readline().split()[-1]
    assert url.startswith("http"), notes.read_text()
    asking = Asking(url, media)
    kinds = ("text", "picture", "sound", "video", "stream")
    try:
        wait_for(lambda: all(asking.answered(kind) for kind in kinds[:-1]) and asking.flowing.is_set(), "answers")
        first = descendants(server.pid)
        engine = next(pid for pid in first if comm(pid).startswith("VLLM::Engine"))
        os.kill(engine, signal.SIGSTOP)  # in the middle of a stream; from now on whoever asks waits
        time.sleep(2)
        killed = time.monotonic()
        os.kill(engine, signal.SIGKILL)
        wait_for(lambda: "restart 1 of 1" in notes.read_text(), "the restart")
        assert ready(url) != 200
        wait_for(lambda: ready(url) == 200, "readiness after the restart", seconds=600)
        wait_for(lambda: all(asking.answered(kind, killed) for kind in kinds), "answers after the restart")
        assert gone(first), "processes of the dead server are left"
        struck = {one.kind: one for one in asking.outcomes if one.begun < killed < one.ended}
        assert set(struck) == set(kinds), "a kind had no request under way, so the kill proves nothing"
        assert all(one.ended - killed < BOUND and one.error for one in struck.values()), struck
        second = descendants(server.pid)
        for pid in second:
            os.kill(pid, signal.SIGKILL)
        assert server.wait(BOUND) == 1, "the second death is one too many"
        assert gone(second)
    finally:
        asking.stop()
        server.kill()
    check_notes(notes.read_text())


def check_notes(text: str) -> None:
    """One JSON object a line, the launcher's and vLLM's alike, without the key."""
    records = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert {"imod.serve", "uvicorn.access"} <= {record["name"] for record in records}
    assert any(record["name"].startswith("vllm") for record in records)
    assert all(record["levelname"] and record["asctime"] for record in records)
    assert len(records) > 0.8 * len(text.splitlines())
    assert API_KEY not in text
    assert "SIGKILL" in text.splitlines()[-1]


def wait_for(condition, what: str, seconds: float = BOUND) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.2)


def ready(url: str) -> int | None:
    try:
        return httpx.get(f"{url}/ready", timeout=5.0, trust_env=False).status_code
    except httpx.HTTPError:
        return None


def comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text()
