"""vLLM's log, read while it grows: which stage of the start it tells of, and what it says when it dies."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

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

KEPT_BYTES = 16 << 20
"""Of a log, in which the reason of a death is looked for; one that is passed on is kept no longer."""
PREFIX = re.compile(r"^(\(\S+ pid=\d+\) )?((DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:.]+ \[\S+\] )?")
"""What vLLM puts before a message: process, level, time, place."""
ERROR = re.compile(r"^([\w.]*(Error|Exception|Interrupt|Exit)\b.*|.*\berror: .+|.*(Killed|Segmentation fault).*)$")
CONSEQUENCE = re.compile(r"Engine core initialization failed|cancelled|EngineDeadError|See root cause above")
"""Errors that only follow from another one, further up."""


class LogTail:
    """A log file that another process writes, one start after the other.

    Args:
        path: the file.
        echo: pass on what comes in to this stream, and keep the file short, since nobody reads it.
    """

    def __init__(self, path: Path, echo: TextIO | None = None):
        self.path, self.echo = path, echo
        self._position = self._begin = 0
        self._seen: set[str] = set()

    def begin(self) -> None:
        """Another process starts to write; what is there already tells nothing about it."""
        self._begin = self._position = self.path.stat().st_size if self.path.exists() else 0
        self._seen.clear()

    def new_stages(self) -> Iterator[str]:
        """Stages that the log has announced since the last call, each once."""
        for line in self._new_text().splitlines():
            for part, stage in STAGES.items():
                if part in line and stage not in self._seen:
                    self._seen.add(stage)
                    yield stage

    def follow(self) -> None:
        """Pass on what came in since the last call, and cut a file that grew long."""
        self._new_text()
        if self.echo and self._position > KEPT_BYTES:
            os.truncate(self.path, 0)  # the writer appends, so it goes on at the new end
            self._begin = self._position = 0

    def last_error(self) -> str | None:
        """The last line that names an error which is not a consequence of another; None if there is none."""
        with self.path.open("rb") as file:
            file.seek(max(self._begin, self.path.stat().st_size - KEPT_BYTES))
            text = file.read().decode(errors="replace")
        lines = [line.strip() for raw in text.splitlines() for line in _message(raw).splitlines()]
        errors = [line for line in lines if ERROR.match(line)]
        causes = [line for line in errors if not CONSEQUENCE.search(line)]
        return next(reversed(causes or errors), None)

    def _new_text(self) -> str:
        with self.path.open("rb") as file:
            file.seek(self._position)
            text = file.read().decode(errors="replace")
            self._position = file.tell()
        if self.echo and text:
            self.echo.write(text)
            self.echo.flush()
        return text


def _message(line: str) -> str:
    """What a line says, without what vLLM puts before it or, in a JSON log, around it."""
    if line.startswith("{"):
        with suppress(ValueError):
            entry = json.loads(line)
            return "\n".join(str(entry[key]) for key in ("message", "exc_info") if entry.get(key))
    return PREFIX.sub("", line)
