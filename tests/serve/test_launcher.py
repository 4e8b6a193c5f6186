"""Starts that must fail, and what is left behind: nothing. A start that succeeds is in test_server.py."""

import json
import socket
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from helpers import imod as call

from imod_core.cli import imod
from imod_core.errors import CheckFailed, ImodError, InputError
from imod_serve.client import Client
from imod_serve.launcher import Server
from imod_serve.process import VllmProcess

from .conftest import gone


def test_vllm_dying_at_its_start_ends_in_its_own_reason(base, tmp_path):
    server = Server(base, extra=["--no-such-flag"], log=tmp_path / "log")
    with pytest.raises(CheckFailed, match=r"unrecognized arguments: --no-such-flag.*log"):
        server.start()
    assert server.process is None


def test_a_start_that_takes_too_long_is_given_up_and_cleaned_away(base, monkeypatch, tmp_path):
    server = Server(base, log=tmp_path / "log", timeout=1.0)
    started = []
    wait = VllmProcess.wait_until_it_answers
    monkeypatch.setattr(VllmProcess, "wait_until_it_answers", lambda self, t: (started.append(self.pid), wait(self, t)))
    with pytest.raises(CheckFailed, match="not ready within 1 s"):
        server.start()
    assert gone(started)


@pytest.mark.parametrize("log", ["no/such/folder/log", "."])
def test_a_log_that_cannot_be_written_is_one_sentence(log, base, tmp_path):
    with pytest.raises(InputError, match=r"The log .* cannot be written \((No such file or|Is a) directory\)"):
        Server(base, log=tmp_path / log)


def test_another_host_needs_a_key(base, monkeypatch, tmp_path):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(InputError, match="IMOD_API_KEY"):
        Server(base, host="0.0.0.0", log=tmp_path / "log")
    assert Server(base, host="0.0.0.0", api_key="k", log=tmp_path / "log").url.startswith("http://127.0.0.1:")


def test_a_port_in_use_is_named(base, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=f"port {taken.getsockname()[1]}"):
            Server(base, port=taken.getsockname()[1], log=tmp_path / "log").start()


def test_a_restart_that_cannot_begin_is_one_that_failed_and_not_the_last_word(base, monkeypatch, tmp_path):
    monkeypatch.setattr("imod_serve.launcher.FIRST_PAUSE", 0.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = Server(base, port=taken.getsockname()[1], log=tmp_path / "log", restarts=5)
        assert "port" in server._restart(1, "it died")


def test_engines_of_a_further_host_are_vllm_itself_with_the_first_hosts_flags(base):
    """Up to where vLLM refuses what only a host with HTTP may have."""
    result = call("serve", base, "--name", "m", "--", "--headless", "--api-server-count", "2")
    assert result.returncode == 1
    assert "--limit-mm-per-prompt" in result.stderr
    assert "cannot be used with --headless" in result.stderr


def test_a_launcher_that_is_killed_takes_its_server_along():
    """The watch alone, without vLLM: a child in its own session whose parent gets SIGKILL."""
    child = "from imod_serve.vllm_main import end_with_parent; import time; end_with_parent(); time.sleep(60)"
    parent = (
        "import os, subprocess, sys, time\n"
        "environment = {**os.environ, 'IMOD_SERVE_PARENT': str(os.getpid())}\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], env=environment, start_new_session=True)\n"
        "print(child.pid, flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    time.sleep(2.0)
    assert not gone([pid], seconds=0)
    process.kill()
    process.wait()
    assert gone([pid])


def test_no_server_is_one_sentence_that_says_how_to_start_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ImodError, match="imod serve DIR"):
        Client(url).ask("Hello?")
    with pytest.raises(InputError, match="expected one like"):
        Client("localhost:8000")


def test_the_command_refuses_a_missing_or_empty_key_file(base, tmp_path):
    empty = tmp_path / "key"
    empty.touch()
    for path, words in ((tmp_path / "none", "does not exist"), (empty, "is empty")):
        result = CliRunner().invoke(imod, ["serve", str(base), "--api-key-file", str(path)])
        assert isinstance(result.exception, ImodError)
        assert words in str(result.exception)


def test_in_json_the_reason_of_an_end_is_a_record_too():
    done = call("serve", "--log-format", "json")
    record = json.loads(done.stderr)
    assert (done.returncode, record["levelname"]) == (2, "ERROR")
    assert "Neither a model folder nor --lora" in record["message"]


@pytest.mark.parametrize(("flags", "reason"), [
    (["--limit", "seconds=1"], "video_seconds"), (["--limit", "images=x"], "whole number"),
    (["--", "--api-key", "k"], "IMOD_API_KEY"), (["--", "--allowed-local-media-path", "/"], "read files"),
])  # fmt: skip
def test_flags_that_are_refused_end_in_one_sentence(base, flags, reason):
    result = CliRunner().invoke(imod, ["serve", str(base), *flags])
    assert isinstance(result.exception, InputError)
    assert reason in str(result.exception)


def test_imod_ask_answers_from_a_folder_without_a_server(base, media):
    command = ["ask", "Which?", "--model", str(base), "--image", str(media.image), "--max-tokens", "2"]
    result = CliRunner().invoke(imod, command, catch_exceptions=False)
    assert result.exit_code == 0
    both = CliRunner().invoke(imod, [*command, "--url", "http://127.0.0.1:1"])
    assert isinstance(both.exception, InputError)
