"""A file written and hashed behind the back of whoever makes its contents, so that none waits for the others."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from threading import Thread
from types import TracebackType
from typing import Any

HANDOVER_BYTES = 4 << 20
"""Blocks are handed over together: waking a thread costs as much as making a small block."""
AHEAD = 4
"""Handovers that may wait to be written or hashed."""


class HashedWriter:
    """A new file at `path`; `sha256` holds its digest once the context is left, the data being on disk."""

    def __init__(self, path: Path):
        self.path, self.sha256 = path, ""
        self._error: OSError | None = None
        self._pending: list[bytes | memoryview] = []
        self._pending_bytes = 0
        self._queues: list[Queue[Any]] = [Queue(AHEAD), Queue(AHEAD)]
        self._threads = [
            Thread(target=work, args=(iter(queue.get, None),), daemon=True)
            for work, queue in zip((self._write, self._hash), self._queues, strict=True)
        ]

    def write(self, block: bytes | memoryview) -> None:
        """Hand over a block, which must not be changed afterwards."""
        if self._error:
            raise self._error
        self._pending.append(block)
        self._pending_bytes += len(block)
        if self._pending_bytes >= HANDOVER_BYTES:
            self._hand_over()

    def _hand_over(self) -> None:
        for queue in self._queues:
            queue.put(self._pending)
        self._pending, self._pending_bytes = [], 0

    def __enter__(self) -> "HashedWriter":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hand_over()
        for queue in self._queues:
            queue.put(None)
        for thread in self._threads:
            thread.join()
        if self._error and error is None:
            raise self._error

    def _write(self, handovers: Iterator[Any]) -> None:
        try:
            with self.path.open("wb") as file:
                for blocks in handovers:
                    file.writelines(blocks)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._error = error
            for _ in handovers:
                pass  # nobody may wait for room in the queue

    def _hash(self, handovers: Iterator[Any]) -> None:
        digest = hashlib.sha256()
        for blocks in handovers:
            for block in blocks:
                digest.update(block)
        self.sha256 = digest.hexdigest()
