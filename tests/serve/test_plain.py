"""Plain `vllm serve` with both of our layers switched on by vLLM's own settings, as docs/threat-model.md says."""

import base64
import os
import re
import signal
import time

import httpx
import pytest

from imod_serve.address import free_port, local_url
from imod_serve.client import Client
from imod_serve.limits import LIMITS, Limits
from imod_serve.log import LogTail
from imod_serve.process import VllmProcess

from .conftest import API_KEY

pytestmark = pytest.mark.server
SECONDS = 20
"""For a request."""
QUESTION = "Where is the louder instrument?"


@pytest.fixture(scope="module")
def process(base, tmp_path_factory):
    port = free_port("127.0.0.1")
    address = local_url("127.0.0.1", port)
    flags = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny", "--max-model-len", "2048"]
    flags += ["--enforce-eager", "--max-num-seqs", "2", "--middleware", "imod_serve.guard.Guard"]
    limits = Limits(request_seconds=SECONDS).to_json()
    layers = {"VLLM_MEDIA_CONNECTOR": "imod", "VLLM_API_KEY": API_KEY, LIMITS: limits}
    cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCH_COMPILE_DISABLE": "1"}
    log = LogTail(tmp_path_factory.mktemp("plain") / "log")
    process = VllmProcess([str(base), *flags], {**os.environ, **layers, **cpu}, address, log)
    try:
        process.wait_until_it_answers(400)
        yield process
    finally:
        process.end()


@pytest.fixture(scope="module")
def url(process):
    return process.url


def test_it_answers_about_a_picture(url, media):
    client = Client(url, "tiny", API_KEY)
    seen, unseen = client.ask(QUESTION, images=[media.image], max_tokens=2), client.ask(QUESTION, max_tokens=2)
    assert seen.prompt_tokens > unseen.prompt_tokens


def test_the_guard_wants_the_key_where_vllm_does_not(url):
    reply = httpx.post(f"{url}/tokenize", json={"model": "tiny", "prompt": "a"}, trust_env=False)
    assert reply.status_code == 401


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/hostname",
        "http://127.0.0.1:9/a.png",
        "data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(),
    ],
)
def test_the_connector_refuses_what_it_refuses_behind_imod_serve(url, address):
    content = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": QUESTION}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    headers = {"authorization": f"Bearer {API_KEY}"}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, trust_env=False)
    assert reply.status_code == 400
    assert re.search("fetched|format", reply.json()["error"]["message"])


def test_what_takes_too_long_is_not_computed_to_its_end(url):
    headers = {"authorization": f"Bearer {API_KEY}"}
    body = {"model": "tiny", "prompt": "a", "n": 16, "max_tokens": 2000, "ignore_eos": True}
    reply = httpx.post(f"{url}/v1/completions", json=body, headers=headers, trust_env=False, timeout=10 * SECONDS)
    assert reply.status_code == 504
    until = time.monotonic() + SECONDS / 2
    while (running := _in_work(url)) and time.monotonic() < until:
        time.sleep(0.5)
    assert running == 0


def test_a_server_that_hangs_is_taken_for_dead(process, monkeypatch):
    monkeypatch.setattr("imod_serve.process.HEALTH_SECONDS", 1.0)
    monkeypatch.setattr("imod_serve.process.SILENT_SECONDS", 4.0)
    assert not process.is_dying()
    os.kill(process.pid, signal.SIGSTOP)
    try:
        assert "has not answered for 4 s: it is still there" in process.watch()
    finally:
        os.kill(process.pid, signal.SIGCONT)
    while process.health() != 200:
        time.sleep(0.2)


def _in_work(url):
    metrics = httpx.get(f"{url}/metrics", trust_env=False).text
    names = "vllm:num_requests_(?:running|waiting)"
    return sum(float(n) for n in re.findall(rf"^{names}\{{.*\}} (\S+)", metrics, re.M))
