"""The API key: from a file or the environment, never from a command line, and never in a message."""

import os
from pathlib import Path

from imod_core.errors import InputError, MissingFileError

VARIABLE = "IMOD_API_KEY"


def read_api_key(file: Path | None = None) -> str | None:
    """The key from a file, else from IMOD_API_KEY, else none.

    Raises:
        MissingFileError: there is no such file.
        InputError: what is there is no key.
    """
    if file is None:
        return checked_key(os.environ.get(VARIABLE), VARIABLE)
    if not file.is_file():
        raise MissingFileError(f"--api-key-file is {file}, which does not exist.")
    key = checked_key(file.read_bytes().decode("utf-8", "replace"), str(file))
    if key is None:
        raise InputError(f"--api-key-file is {file}, which is empty: expected one line with the key.")
    return key


def checked_key(key: str | None, place: str) -> str | None:
    """`key` without white space around it, None if nothing is left; `place` is where it came from.

    Raises:
        InputError: it could not stand in an HTTP header.
    """
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InputError(f"The API key in {place} is not one word of printable ASCII characters: write it anew.")
    return key or None
