"""An answer that is broken off, by the visitor or because its server is killed, and what comes after."""

import os
import re
import signal
import time
from contextlib import suppress

import httpx
import psutil
import pytest

from imod_serve.client import Client
from imod_serve.messages import Turn

from .conftest import ANSWER_SECONDS, opened
from .visitor import bubbles, finished

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]


LENGTH = 1024
"""Tokens of a long answer; the model makes them in a second or less."""


def talkative(client):
    """A question that the model answers at length."""
    questions = (f"Tell me more, part {part}." for part in range(40))
    return next(q for q in questions if client.chat([Turn("user", q)], max_tokens=LENGTH).completion_tokens == LENGTH)


@pytest.fixture
def halted():
    """Processes that a test has halted, which go on when it ends."""
    found = []
    yield found
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.resume()


def begin_long_answer(page, client, pid, halted):
    """Ask for a long answer and leave the server's engine, below process `pid`, halted in the middle of it.

    The engine runs ahead of what the server has told, so it is let go for moments only, until a few tokens came.
    """
    engine = next(p for p in psutil.Process(pid).children(recursive=True) if p.name().startswith("VLLM::Engine"))
    halted.append(engine)
    question = talkative(client)
    page.click("#more > button")
    page.fill("#length input[type=number]", str(LENGTH))
    page.keyboard.press("Tab")
    before = settled(client)
    engine.suspend()
    page.fill("#question textarea", question)
    page.click("#ask")
    while (told := settled(client)) < before + 4:
        engine.resume()
        time.sleep(0.02)
        engine.suspend()
    assert told < before + LENGTH / 2, "the answer was whole before it could be broken off"
    page.locator("#chat-1 .message.bot .md").wait_for()


def settled(client):
    """`generated`, once it no longer grows."""
    told = None
    while told != (told := generated(client)):
        time.sleep(0.2)
    return told


def generated(client):
    """Tokens that the server has told so far."""
    return metric(client, "vllm:generation_tokens_total")


def metric(client, name):
    metrics = httpx.get(f"{client.url}/metrics", trust_env=False).text
    return sum(float(n) for n in re.findall(rf"^{name}\{{.*\}} (\S+)", metrics, re.M))


def test_stop_keeps_what_was_said_and_frees_the_server(page, demo, client, halted):
    begin_long_answer(page, client, demo.process.pid, halted)
    told = generated(client)
    page.click("#stop")
    page.locator("#stop[disabled]").wait_for()
    stopped = bubbles(page)[-1]
    assert stopped
    halted.pop().resume()
    until = time.monotonic() + ANSWER_SECONDS
    while metric(client, "vllm:num_requests_running") and time.monotonic() < until:
        time.sleep(0.2)
    assert metric(client, "vllm:num_requests_running") == 0
    assert generated(client) < told + 500, "it was not computed to its end"
    assert bubbles(page)[-1] == stopped
    page.fill("#length input[type=number]", "8")
    page.keyboard.press("Tab")
    page.fill("#question textarea", "And now?")
    page.click("#ask")
    page.locator("#chat-1 .message.bot").nth(1).wait_for()


def test_a_server_killed_in_mid_answer_is_a_sentence_and_retry_works_once_it_is_back(browser, compared, other, halted):
    context = browser.new_context()
    context.set_default_timeout(ANSWER_SECONDS * 1000)
    page = opened(context.new_page(), compared[0].url.removesuffix("/imod"))
    begin_long_answer(page, Client(other.url), other.process.pid, halted)
    os.killpg(other.process.pid, signal.SIGKILL)
    notice = page.locator("#notice-1 [role=alert]")
    notice.wait_for()
    assert re.search(r"broke off|No server answers", notice.inner_text())
    assert "Traceback" not in notice.inner_text()
    page.locator("#stop[disabled]").wait_for()
    page.fill("#length input[type=number]", "8")
    page.keyboard.press("Tab")
    page.click("#retry")
    page.wait_for_function("document.querySelector('#notice-1')?.innerText.includes('No server answers')")
    other.start()
    page.locator("#stop[disabled]").wait_for()
    page.click("#retry")
    finished(page, 2)
    assert page.locator("#notice-1 [role=alert]").count() == 0
    assert bubbles(page)[-1]
    context.close()
