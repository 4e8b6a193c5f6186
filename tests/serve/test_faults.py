"""A server whose model is blind, and one whose processes are killed while it answers."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file, save_file

from imod_core.errors import CheckFailed
from imod_serve.launcher import Server

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


class Asking:
    """Clients that ask without end, each request with its own time limit, and what becomes of the requests."""

    def __init__(self, url: str, clients: int = 4):
        self.url, self.stopped = url, threading.Event()
        self.outcomes: list[tuple[float, float, object]] = []
        self.threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def _ask(self) -> None:
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Hello?"}],
            "max_tokens": 64,
            "temperature": 0,
        }
        headers = {"authorization": f"Bearer {API_KEY}"}
        while not self.stopped.is_set():
            started = time.monotonic()
            try:
                outcome: object = httpx.post(
                    f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=2 * BOUND, trust_env=False
                ).status_code
            except httpx.HTTPError as error:
                outcome = type(error).__name__
            self.outcomes.append((started, time.monotonic(), outcome))
            if outcome != 200:
                time.sleep(0.2)

    def stop(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(3 * BOUND)
            assert not thread.is_alive(), "a client hangs"


def test_a_killed_engine_ends_requests_in_time_and_is_started_again_as_often_as_asked(base, tmp_path):
    notes = tmp_path / "notes"
    command = [sys.executable, "-m", "imod_core.cli", "serve", base, "--name", "tiny", "--port", "0"]
    command += ["--restart", "1", "--log-format", "json", "--log", "-"]
    with notes.open("w") as stderr:
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, "IMOD_API_KEY": API_KEY}
        )
    url = server.stdout.readline().split()[-1]
    assert url.startswith("http"), notes.read_text()
    asking = Asking(url)
    try:
        wait_for(lambda: any(outcome == 200 for *_, outcome in asking.outcomes), "an answer")
        first = descendants(server.pid)
        killed = time.monotonic()
        os.kill(next(pid for pid in first if comm(pid).startswith("VLLM::Engine")), signal.SIGKILL)
        wait_for(lambda: "restart 1 of 1" in notes.read_text(), "the restart")
        assert ready(url) != 200
        wait_for(lambda: ready(url) == 200, "readiness after the restart", seconds=600)
        wait_for(lambda: asking.outcomes[-1][2] == 200, "an answer after the restart")
        assert gone(first), "processes of the dead server are left"
        struck = [(begun, ended, outcome) for begun, ended, outcome in asking.outcomes if begun < killed < ended]
        assert struck, "no request was under way, so the kill proves nothing"
        assert all(ended - killed < BOUND for _, ended, _ in struck)
        assert any(outcome != 200 for *_, outcome in struck)
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
