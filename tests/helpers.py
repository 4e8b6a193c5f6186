"""Functions that tests of several packages call."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import click

from imod_core.cli import imod as group
from imod_core.errors import ImodError


def imod(*words: Any, cwd: Path | None = None, **options: Any) -> subprocess.CompletedProcess:
    """Run the real command and wait for it."""
    command = [sys.executable, "-m", "imod_core.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, **options)


def listen_to_interrupts() -> None:
    """For `preexec_fn`: a process that a shell starts in its background ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    message: str


def call(*words: Any) -> Outcome:
    """Run a command in this process, where the heavy imports are done already; other errors are raised."""
    try:
        group([str(word) for word in words], standalone_mode=False)
    except (click.ClickException, ImodError) as error:
        return Outcome(error.exit_code, str(error))
    return Outcome(0, "")


def read_json(path: Path) -> Any:
    """The JSON in a file."""
    return json.loads(path.read_text())
