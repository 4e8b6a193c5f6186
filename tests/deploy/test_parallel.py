"""Several engines behind one address, for real on the CPU: vLLM's own data parallelism under `imod serve`."""

import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from imod_core.avt.build import build_base
from imod_serve.client import Client
from imod_serve.launcher import Server
from imod_serve.local import LocalModel

QUESTIONS = [f"Question {number}: where is it?" for number in range(8)]
ASKED = re.compile(r'^vllm:request_success_total\{engine="(\d)",finished_reason="length".*\} (\S+)$', re.M)


@pytest.mark.server
@pytest.mark.timeout(600)
def test_two_engines_share_the_questions_and_answer_as_transformers_does(tmp_path):
    base = tmp_path / "base"
    build_base(base, preset="tiny", llm=None, vision=None, audio=None, seed=0, dtype="float32")
    with Server(base, extra=["--data-parallel-size", "2"], log=tmp_path / "log") as server:
        before = asked(server.url)
        with ThreadPoolExecutor(len(QUESTIONS)) as pool:
            client = Client(server.url)
            served = list(pool.map(lambda question: client.ask(question, max_tokens=8).text, QUESTIONS))
        after = asked(server.url)
    assert set(after) == {"0", "1"}
    assert all(after[engine] > before.get(engine, 0) for engine in after), (before, after)
    local = LocalModel(base)
    # Half a character at the end: vLLM waits for the rest, transformers shows a mark.
    assert served == [local.ask(question, max_tokens=8).text.rstrip("\ufffd") for question in QUESTIONS]
    assert len(set(served)) > 3, "the questions do not change the answers, so equality proves nothing"


def asked(url):
    """Engine -> questions that it has answered."""
    return {engine: float(count) for engine, count in ASKED.findall(httpx.get(f"{url}/metrics").text)}
