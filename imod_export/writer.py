"""A file written, synced and hashed behind the back of whoever makes its contents: none waits for the others."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from threading import Event, Thread
from types import TracebackType
from typing import Any

from blake3 import blake3

HANDOVER_BYTES = 4 << 20
"""Blocks are handed over together: waking a thread costs as much as making a small block."""
AHEAD = 4
"""Handovers that may wait to be written or hashed."""
WRITE_BYTES = 1 << 20
"""Of one call: from 2 MB on the kernel caches a file in huge pages, and finding those took three times as long."""
SYNC_BYTES = 64 << 20
"""What is written goes to the disk in portions of this size: left to the end, all would wait for the disk."""


class HashedWriter:
    """A new file at `path`, which takes what is written within the context; `finish` has it on disk.

    What a thread stumbles over is raised by the next `write`, or by `finish`.
    """

    def __init__(self, path: Path):
        self.path, self._digest = path, blake3()
        self._error: BaseException | None = None
        self._pending: list[bytes | memoryview] = []
        self._pending_bytes = 0
        self._queues: list[Queue[Any]] = [Queue(AHEAD), Queue(AHEAD)]
        self._threads = [
            Thread(target=self._work, args=(work, iter(queue.get, None)), daemon=True)
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

    def finish(self) -> str:
        """Wait until all that was written is on disk and hashed; its BLAKE3."""
        for thread in self._threads:
            thread.join()
        if self._error:
            raise self._error
        return self._digest.hexdigest()

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
        if error:
            for thread in self._threads:
                thread.join()

    def _work(self, work: Callable[[Iterator[Any]], None], handovers: Iterator[Any]) -> None:
        try:
            work(handovers)
        except BaseException as error:
            self._error = error
            for _ in handovers:
                pass  # nobody may wait for room in the queue

    def _write(self, handovers: Iterator[Any]) -> None:
        with self.path.open("wb", buffering=0) as file, Syncing(file.fileno()) as syncing:
            for block in (memoryview(block) for blocks in handovers for block in blocks):
                for first in range(0, len(block), WRITE_BYTES):
                    piece = block[first : first + WRITE_BYTES]
                    while piece:  # a full disk takes some of it, and refuses the rest the next time
                        piece = piece[file.write(piece) :]
                syncing.wrote(len(block))

    def _hash(self, handovers: Iterator[Any]) -> None:
        for blocks in handovers:
            for block in blocks:
                self._digest.update(block)


class Syncing:
    """Sends what is written to a file to the disk, beside the writing; at the end all of it is there, or it raises."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self._unsynced, self._due, self._ended = 0, Event(), False
        self._error: BaseException | None = None
        self._thread = Thread(target=self._sync, daemon=True)

    def wrote(self, count: int) -> None:
        """Note that `count` more bytes were written."""
        self._unsynced += count
        if self._unsynced >= SYNC_BYTES:
            self._unsynced = 0
            self._due.set()

    def __enter__(self) -> "Syncing":
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended = True
        self._due.set()
        self._thread.join()
        if error is None:
            if self._error:
                raise self._error
            os.fsync(self.descriptor)

    def _sync(self) -> None:
        try:
            while self._due.wait():
                self._due.clear()  # before looking: a signal that comes later is seen in the next round
                if self._ended:
                    return
                os.fsync(self.descriptor)
        except BaseException as error:
            self._error = error
