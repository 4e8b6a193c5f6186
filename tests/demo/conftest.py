"""Two tiny models behind real servers, the page on each as its command serves it, and a headless Chromium."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import imod
from playwright.sync_api import Browser, Page, sync_playwright

from imod_serve.client import Client
from imod_serve.launcher import Server

from .chromium import launch_options
from .proxy import Proxy

ANSWER_SECONDS = 120
"""Within which an answer has to come on a busy machine."""


@dataclass(frozen=True)
class Running:
    """`imod demo` as a user started it."""

    process: subprocess.Popen
    url: str
    log: Path


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**launch_options())
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_base`, with other random weights."""
    folder = tmp_path_factory.mktemp("other") / "other"
    done = imod("base", "build", "--preset", "tiny", "--seed", "1", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="package")
def stage(tmp_path_factory, tiny_base, other_base, scenes) -> Iterator[tuple[Running, Server]]:
    """`imod demo DIR` with a server of its own, and a second server; both start at the same time."""
    folder = tmp_path_factory.mktemp("stage")
    other = Server(other_base, log=folder / "other.log", probe=False)
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(other.start)
        page = start_demo(folder, tiny_base, "--examples", scenes)
        starting.result()
    yield page, other
    other.stop()
    stop_demo(page)


@pytest.fixture(scope="package")
def demo(stage) -> Running:
    """The page of `imod demo DIR`."""
    return stage[0]


@pytest.fixture(scope="package")
def client(demo) -> Client:
    """The API of the server that `imod demo DIR` started."""
    return Client(re.search(r"vLLM answers at (\S+)", demo.log.read_text()).group(1))


@pytest.fixture(scope="package")
def other(stage) -> Server:
    """The second server, whose processes tests may kill if they start it again."""
    return stage[1]


@pytest.fixture(scope="package")
def compared(tmp_path_factory, stage, client, other) -> Iterator[tuple[Running, str]]:
    """The page on the second server beside the first one, and its address behind a reverse proxy's path."""
    folder = tmp_path_factory.mktemp("compared")
    page = start_demo(folder, "--url", other.url, "--compare", client.url, "--no-examples", "--root-path", "/imod")
    with Proxy("/imod", page.url.removesuffix("/imod")) as proxy:
        yield page, proxy.url
    stop_demo(page)


@pytest.fixture
def page(browser, demo) -> Iterator[Page]:
    """The page in a new browser window, once it can be used."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(ANSWER_SECONDS * 1000)
    yield opened(context.new_page(), demo.url)
    context.close()


def opened(page: Page, url: str) -> Page:
    """The page loaded; whatever its scripts complain about fails the test."""
    page.on("pageerror", lambda error: pytest.fail(f"the page's script failed: {error}"))
    page.goto(url)
    page.wait_for_selector("#ask")
    return page


def start_demo(folder: Path, *words: object) -> Running:
    log = folder / "demo.log"
    command = [sys.executable, "-m", "imod_core.cli", "demo", *map(str, words), "--port", str(free_port())]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, "TMPDIR": str(folder)}
        )
    line = process.stdout.readline()
    assert "The page is at" in line, log.read_text()
    return Running(process, line.split()[-1], log)


def stop_demo(running: Running) -> None:
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0, running.log.read_text()
    assert not list(running.log.parent.glob("imod-demo-*")), "files are left behind"


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return chosen.getsockname()[1]
