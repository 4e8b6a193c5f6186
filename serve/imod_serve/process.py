"""The process group of one vLLM server: started, waited for, watched, ended with all it spawned."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import httpx

from imod_core.console import console
from imod_core.errors import CheckFailed
from imod_serve.log import LogTail
from imod_serve.notes import note, warn
from imod_serve.vllm_main import PARENT

STOP_SECONDS = 20.0
"""Between asking the processes to end and killing them."""
POLL_SECONDS = 0.5
HEALTH_SECONDS = 5.0
"""Between two looks at /health."""
SICK_SECONDS = 30.0
"""A server that says for so long that its engine is dead, and does not end by itself, is ended."""
SILENT_SECONDS = 180.0
"""So is one that does not answer at all for so long; less may be a busy machine."""
DYING_SECONDS = 5.0
"""Between an engine's death, of which a request may be told first, and its server's."""


def vllm_command(flags: Sequence[str]) -> list[str]:
    """`vllm serve`; -P keeps a folder `vllm` or `serve` in the working directory from being imported instead."""
    return [sys.executable, "-P", "-m", "imod_serve.vllm_main", "serve", *flags]


class VllmProcess:
    """`vllm serve` with all that it spawns, in a session of its own.

    Args:
        flags: of `vllm serve`, the folder first.
        environment: of the process.
        url: where it will answer.
        log: where its output goes.
    """

    def __init__(self, flags: Sequence[str], environment: dict[str, str], url: str, log: LogTail):
        self.url, self.log = url, log
        self.log.begin()
        with self.log.path.open("ab") as output:
            self.process = subprocess.Popen(
                vllm_command(flags),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment, PARENT: str(os.getpid())},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_until_it_answers(self, timeout: float) -> None:
        """Tell of its stages meanwhile. Raises CheckFailed if it ends, or if `timeout` seconds are over."""
        started = time.monotonic()
        with console.status(f"vLLM: starting (log: {self.log.path})") as status:
            report = _reporter(started, status.update)
            while self.health() != 200:
                if not self.alive:
                    raise CheckFailed(self.death("did not start"))
                if time.monotonic() - started > timeout:
                    raise CheckFailed(
                        f"vLLM was not ready within {timeout:.0f} s: see {self.log.path}, or raise --timeout."
                    )
                for stage in self.log.new_stages():
                    report(stage)
                time.sleep(POLL_SECONDS)
        note(f"vLLM answers at {self.url} after {time.monotonic() - started:.0f} s")

    def watch(self) -> str:
        """Block until it is dead, or says for long that its engine is; returns why."""
        looked = well = heard = time.monotonic()
        while self.alive:
            time.sleep(POLL_SECONDS)
            self.log.follow()
            if time.monotonic() - looked < HEALTH_SECONDS:
                continue
            looked, health = time.monotonic(), self.health()
            heard = looked if health is not None else heard
            well = looked if health != 503 else well  # vLLM's word for a dead engine
            if looked - well > SICK_SECONDS:
                return self.death("has a dead engine and does not end")
            if looked - heard > SILENT_SECONDS:
                return self.death(f"has not answered for {SILENT_SECONDS:.0f} s")
        return self.death("stopped serving")

    def is_dying(self) -> bool:
        """Whether it is dead, says that its engine is, or comes to that within a few seconds."""
        until = time.monotonic() + DYING_SECONDS
        while self.alive and time.monotonic() < until:
            if self.health() == 503:
                return True
            time.sleep(POLL_SECONDS)
        return not self.alive

    def health(self) -> int | None:
        """HTTP status of /health; None if there is no answer."""
        try:
            return httpx.get(f"{self.url}/health", timeout=HEALTH_SECONDS, trust_env=False).status_code
        except httpx.HTTPError:
            return None

    def end(self) -> None:
        """End it and every process it started."""
        self._signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            warn(f"vLLM did not end within {STOP_SECONDS:.0f} s and is killed.")
        finally:  # also when somebody cannot wait and interrupts again
            self._signal(signal.SIGKILL)
            self.process.wait()
        self.log.follow()

    def death(self, what: str) -> str:
        """A sentence on why it `what`."""
        code = self.process.poll()
        if code is not None and code < 0:
            reason = f"it was ended by {signal.Signals(-code).name}"
        else:
            reason = self.log.last_error() or ("it is still there" if code is None else f"it ended with code {code}")
        return f"vLLM {what}: {reason} (log: {self.log.path})"

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def _reporter(started: float, show: Callable[[str], None]) -> Callable[[str], None]:
    """A terminal keeps one line up to date; a file gets a line for each stage."""

    def report(stage: str) -> None:
        line = f"vLLM: {stage} ({time.monotonic() - started:.0f} s)"
        show(line) if console.is_terminal else note(line, stage=stage)

    return report
