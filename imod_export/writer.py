"""A file written and hashed behind the back of whoever makes its contents, so that neither waits for the other."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from threading import Thread
from types import TracebackType
from typing import Any

AHEAD = 8
"""Blocks that may wait to be written."""


class HashedWriter:
    """A new file at `path`; `sha256` holds its digest once the context is left, the data being on disk."""

    def __init__(self, path: Path):
        self.path, self.sha256 = path, ""
        self._queue: Queue[bytes | memoryview | None] = Queue(AHEAD)
        self._error: BaseException | None = None
        self._thread = Thread(target=self._work, daemon=True)

    def write(self, block: bytes | memoryview) -> None:
        """Hand over a block, which must not be changed afterwards."""
        if self._error:
            raise self._error
        self._queue.put(block)

    def __enter__(self) -> "HashedWriter":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._error and error is None:
            raise self._error

    def _work(self) -> None:
        blocks = iter(self._queue.get, None)
        try:
            self._write(blocks)
        except OSError as error:
            self._error = error
            for _ in blocks:
                pass  # nobody may wait for room in the queue

    def _write(self, blocks: Iterator[Any]) -> None:
        digest = hashlib.sha256()
        with self.path.open("wb") as file:
            for block in blocks:
                file.write(block)
                digest.update(block)
            file.flush()
            os.fsync(file.fileno())
        self.sha256 = digest.hexdigest()
