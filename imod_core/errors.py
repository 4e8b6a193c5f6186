"""The errors that a user can cause, and the exit code each ends the command with.

    ImodError                 base of all; the command prints its sentence and exits with `exit_code`
    ├── InputError            a file, option or request is not as it must be (exit 2); also a ValueError
    ├── MissingFileError      something named does not exist (exit 2); also a FileNotFoundError
    ├── MissingExtraError     an optional package is not installed (exit 2); also an ImportError
    └── CheckFailed           a check ran and did not pass: parity, doctor (exit 1)

A message says what was found, what was expected and what to do, in one sentence where it can.
"""


class ImodError(Exception):
    """Base of every error that is the user's to mend. Never carries a traceback to the terminal."""

    exit_code = 2


class InputError(ImodError, ValueError):
    """A value, file or request that cannot be used as it is."""


class MissingFileError(ImodError, FileNotFoundError):
    """A file or folder that was named and does not exist."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MissingExtraError(ImodError, ImportError):
    """An optional dependency is missing; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str):
        super().__init__(
            f"The package '{package}' is needed here and is not installed: run pip install 'imod-lora[{extra}]'."
        )


class CheckFailed(ImodError):
    """A comparison or inspection ran to its end and found something wrong."""

    exit_code = 1


def first_line(error: Exception) -> str:
    """What an error of somebody else's says in its first line, or its type where it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__
