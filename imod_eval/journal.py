"""Answers kept as they come, so that a command that was interrupted goes on where it stopped.

    OUT/.NAME.CONDITION.<digest>.partial    what was asked in the first line, then an answer a line

The digest is of what was asked: another model, other questions or other media never meet these answers.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from imod_core.console import console
from imod_core.samples import MEDIA_KEYS, Sample, to_record
from imod_eval.prediction import Prediction


class Journal:
    """The answers to one set of questions under one condition.

    Args:
        folder: where the file lies; without one the answers are kept in memory alone.
        name: of the sample file and condition.
        asked: all that the answers depend on; must be JSON.
    """

    def __init__(self, folder: Path | None, name: str, asked: dict[str, Any]):
        self.done: dict[str, Prediction] = {}
        """By the sample's id."""
        self._header = json.dumps(asked, sort_keys=True).encode()
        digest = hashlib.sha256(self._header).hexdigest()[:12]
        self.path = folder / f".{name}.{digest}.partial" if folder else None

    def __enter__(self) -> "Journal":
        if self.path:
            kept = self._read(self.path)
            self._file = self.path.open("ab")
            self._file.truncate(kept)
            if not kept:
                self._write(self._header)
            if self.done:
                console.print(f"Going on after {len(self.done)} answers of an earlier run.")
        return self

    def __exit__(self, *_: object) -> None:
        if self.path:
            self._file.close()

    def add(self, prediction: Prediction) -> None:
        """Keep an answer."""
        self.done[prediction.id] = prediction
        if self.path:
            self._write(json.dumps(asdict(prediction)).encode())

    def remove(self) -> None:
        """Forget the file, once its answers stand in a whole one."""
        if self.path:
            self.path.unlink(missing_ok=True)

    def _write(self, line: bytes) -> None:
        self._file.write(line + b"\n")
        self._file.flush()

    def _read(self, path: Path) -> int:
        """Take over the answers of an earlier run; the bytes that hold them, without a line that was cut off."""
        content = path.read_bytes() if path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        header, *lines = whole.split(b"\n")[:-1] or [b""]
        try:
            found = [Prediction(**json.loads(line)) for line in lines]
        except (ValueError, TypeError):
            return 0
        if header != self._header:
            return 0
        self.done = {prediction.id: prediction for prediction in found}
        return len(whole)


def digest_of_questions(samples: Iterable[Sample]) -> str:
    """Of samples and of the state of their media's files."""
    digest = hashlib.sha256()
    for sample in samples:
        media = [path for key in MEDIA_KEYS.values() for path in getattr(sample, key)]
        record = json.dumps(to_record(sample, Path("/")), sort_keys=True)
        digest.update(f"{record}{digest_of_files(media)}".encode())
    return digest.hexdigest()


def digest_of_files(paths: Iterable[Path]) -> str:
    """Of names, sizes and times of change: reading gigabytes of weights would take longer than some evaluations."""
    states = [(str(path), path.stat()) for path in paths]
    return hashlib.sha256(repr([(name, s.st_size, s.st_mtime_ns) for name, s in states]).encode()).hexdigest()
