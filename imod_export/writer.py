"""A file written and hashed behind the back of whoever makes its contents, so that none waits for the others."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from threading import Thread
from types import TracebackType
from typing import Any

AHEAD = 16
"""Blocks that may wait to be written or hashed."""


class HashedWriter:
    """A new file at `path`; `sha256` holds its digest once the context is left, the data being on disk."""

    def __init__(self, path: Path):
        self.path, self.sha256 = path, ""
        self._error: OSError | None = None
        self._queues: list[Queue[Any]] = [Queue(AHEAD), Queue(AHEAD)]
        self._threads = [
            Thread(target=work, args=(iter(queue.get, None),), daemon=True)
            for work, queue in zip((self._write, self._hash), self._queues, strict=True)
        ]

    def write(self, block: bytes | memoryview) -> None:
        """Hand over a block, which must not be changed afterwards."""
        if self._error:
            raise self._error
        for queue in self._queues:
            queue.put(block)

    def __enter__(self) -> "HashedWriter":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for queue, thread in zip(self._queues, self._threads, strict=True):
            queue.put(None)
            thread.join()
        if self._error and error is None:
            raise self._error

    def _write(self, blocks: Iterator[Any]) -> None:
        try:
            with self.path.open("wb") as file:
                for block in blocks:
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._error = error
            for _ in blocks:
                pass  # nobody may wait for room in the queue

    def _hash(self, blocks: Iterator[Any]) -> None:
        digest = hashlib.sha256()
        for block in blocks:
            digest.update(block)
        self.sha256 = digest.hexdigest()
