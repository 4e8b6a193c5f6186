"""vLLM's log, read while it grows: which stage of the start it tells of, and what it says when it dies."""

import re
from collections.abc import Iterator
from pathlib import Path

STAGES = {
    "Resolved architecture": "reading the model's configuration",
    "Initializing a V1 LLM engine": "starting the engine",
    "Starting to load model": "loading weights",
    "Loading weights took": "weights are loaded",
    "KV cache size": "measuring memory",
    "Starting vLLM": "opening the port",
    "Application startup complete": "ready",
}
"""A part of a log line, and the stage that it announces."""

PREFIX = re.compile(r"^(\(\S+ pid=\d+\) )?((DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:.]+ \[\S+\] )?")
"""What vLLM puts before a message: process, level, time, place."""
ERROR = re.compile(r"^([\w.]*(Error|Exception|Interrupt|Exit)\b.*|.*\berror: .+|.*(Killed|Segmentation fault).*)$")
CONSEQUENCE = re.compile(r"Engine core initialization failed|cancelled|EngineDeadError|See root cause above")
"""Errors that only follow from another one, further up."""


class LogTail:
    """A log file that another process writes."""

    def __init__(self, path: Path):
        self.path = path
        self._position = 0
        self._seen: set[str] = set()

    def new_stages(self) -> Iterator[str]:
        """Stages that the log has announced since the last call, each once."""
        with self.path.open("rb") as file:
            file.seek(self._position)
            text = file.read().decode(errors="replace")
            self._position = file.tell()
        for line in text.splitlines():
            for part, stage in STAGES.items():
                if part in line and stage not in self._seen:
                    self._seen.add(stage)
                    yield stage

    def last_error(self) -> str | None:
        """The last line that names an error which is not a consequence of another; None if there is none."""
        text = self.path.read_text(errors="replace")
        lines = [PREFIX.sub("", line).strip() for line in text.splitlines()]
        errors = [line for line in lines if ERROR.match(line)]
        causes = [line for line in errors if not CONSEQUENCE.search(line)]
        return next(reversed(causes or errors), None)
