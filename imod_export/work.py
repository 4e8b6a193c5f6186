"""A folder in the making that survives a kill: one hidden place beside the target, with a journal of what is done.

.OUT.partial/journal.json    what is being made, and which files are whole
.OUT.partial/model/          becomes OUT when all of it is there
.OUT.partial/lock            held while a process works on it

Running the same command again goes on where the last one ended. Another command for the same OUT begins anew. What is
whole outlives a kill, and once all of it is `kept` also an error.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imod_core.artifacts import write_json
from imod_core.errors import CheckFailed, ImodError, InputError

JOURNAL, MODEL, LOCK = "journal.json", "model", "lock"


class Work:
    """The folder in the making and its journal."""

    def __init__(self, place: Path, fingerprint: str):
        self.place, self.folder = place, place / MODEL
        journal = _read(place / JOURNAL)
        if journal.get("fingerprint") != fingerprint:
            shutil.rmtree(self.folder, ignore_errors=True)
            journal = {"fingerprint": fingerprint, "done": {}}
            write_json(place / JOURNAL, journal)
        self.folder.mkdir(exist_ok=True)
        self._journal = journal
        for path in self.folder.iterdir():
            if path.name not in journal["done"]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @property
    def done(self) -> Container[str]:
        """Names of the files that are whole and on disk."""
        return self._journal["done"]

    def record(self, name: str) -> dict[str, Any] | None:
        """What was noted about a file that is whole; None if it is yet to be made."""
        found = self._journal["done"].get(name)
        path = self.folder / name
        return found if found and path.is_file() and path.stat().st_size == found["bytes"] else None

    def finish(self, name: str, partial: Path, facts: dict[str, Any]) -> None:
        """Give a file that is whole and on disk its name, then note it with `facts`."""
        partial.replace(self.folder / name)
        self._journal["done"][name] = {"bytes": (self.folder / name).stat().st_size, **facts}
        write_json(self.place / JOURNAL, self._journal)

    def keep(self) -> None:
        """From here on an error leaves the work as it is: what takes long is done."""
        self._journal["kept"] = True
        write_json(self.place / JOURNAL, self._journal)


@contextmanager
def work_on(out: Path, fingerprint: str) -> Iterator[Work]:
    """The work on `out`, new or gone on with where the fingerprint is the same; at the end it becomes `out`.

    After a user's mistake nothing is left, unless the work is kept; after an interruption it stays, to be gone on with.

    Raises:
        InputError: the place cannot be written, or another process works on it; whatever stopped work that is kept.
    """
    place = place_of(out)
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = (place / LOCK).open("a")
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}): give another --out.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"Another export writes {out} now: wait for it, or give another --out.") from None
        try:
            with _in_a_sentence():
                work = Work(place, fingerprint)
                yield work
                _publish(work, out)
        except ImodError as error:
            if (place / MODEL).exists() and _read(place / JOURNAL).get("kept"):
                kind = CheckFailed if isinstance(error, CheckFailed) else InputError
                told = f"{error} The merged weights are kept in {place}: the same command goes on with them."
                raise kind(told) from None
            shutil.rmtree(place, ignore_errors=True)
            raise
        shutil.rmtree(place)


def place_of(out: Path) -> Path:
    """Where the work on `out` lies."""
    return out.absolute().parent / f".{out.name}.partial"


def sweep(out: Path) -> None:
    """Remove what a kill between the last two steps left beside an `out` that is whole."""
    place = place_of(out)
    if place.is_dir() and not (place / MODEL).exists():
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _in_a_sentence() -> Iterator[None]:
    """What the system refuses, as an error of ours."""
    try:
        yield
    except ImodError:  # a missing file's is an OSError too, and is a sentence already
        raise
    except OSError as error:
        raise InputError(f"The merge stopped ({error.strerror or error}): mend that and run it again.") from None


def _publish(work: Work, out: Path) -> None:
    if not work.folder.exists():
        return  # moved elsewhere by whoever rejected it
    for path in work.folder.rglob("*"):
        if path.is_dir() or path.name not in work.done:
            _sync(path)
    _sync(work.folder)
    if out.is_dir():
        out.rmdir()
    work.folder.rename(out)
    _sync(out.absolute().parent)


def _sync(path: Path) -> None:
    """Have a file, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
