"""What the launcher tells while it works, on stderr: sentences for people, or one JSON object a line for machines.

The JSON has the fields of vLLM's own JSON log, so that both can go to one place.
"""

import logging
from typing import Any

from imod_core.console import console

FIELDS = "%(asctime)s %(levelname)s %(name)s %(processName)s %(process)d %(message)s"

logger = logging.getLogger("imod.serve")
logger.setLevel(logging.INFO)
logger.propagate = False


class ConsoleHandler(logging.Handler):
    """Messages through the project's console, between its spinners."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(record.getMessage())


def use_json(chosen: bool) -> None:
    """Write JSON from now on, or sentences again."""
    handler: logging.Handler = ConsoleHandler()
    if chosen:
        from pythonjsonlogger.json import JsonFormatter

        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter(FIELDS))
    logger.handlers[:] = [handler]


def note(message: str, **values: Any) -> None:
    """Tell `message`; in JSON, `values` stand beside it."""
    logger.info(message, extra=values)


def warn(message: str, **values: Any) -> None:
    """As `note`, of something that went wrong."""
    logger.warning(message, extra=values)


def fail(message: str) -> None:
    """Tell why the command ends."""
    logger.error(message)


use_json(False)
