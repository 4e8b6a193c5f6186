"""A file made in memory piece by piece, written past the page cache and hashed, behind the back of whoever makes it.

What goes through the page cache is copied once more, waits for the disk all the same, and pushes out the base that is
read beside it. So pieces are made where the disk takes them from. A file system that knows no other way gets them
through the cache.
"""

import errno
import fcntl
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, mmap
from pathlib import Path
from types import TracebackType

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

ROOM_BYTES = (16 << 20) + PAGESIZE
"""Of the memory that serves one large piece after the other; a larger piece has memory of its own."""
SMALL_BYTES = 1 << 20
"""A piece up to this has memory of its own too: there may be many at a time."""
BUSY_BYTES, BUSY_ROOMS = 16 << 20, 32
"""Of pieces that may wait to be written or hashed."""


@dataclass(frozen=True)
class Room:
    """Where a piece of a file is to be made."""

    data: NDArray[np.uint8]
    """Its bytes."""
    memory: mmap
    """Whole pages as they will lie on the disk; the piece begins within the first."""
    page: int
    """Position of the first page in the file."""


class HashedWriter:
    """A new file at `path`, whose pieces are written within the context; `finish` has it on disk.

    What a thread stumbles over is raised by a later `write`, or by `finish`.
    """

    def __init__(self, path: Path):
        self.path, self.nbytes = path, 0
        self._digest = blake3()
        self._begun = np.empty(0, np.uint8)
        self._free: list[mmap] = []
        self._busy: deque[tuple[Room, Sequence[Future[None]]]] = deque()
        self._writing, self._hashing = ThreadPoolExecutor(1, "write"), ThreadPoolExecutor(1, "hash")

    def room(self, nbytes: int) -> Room:
        """Where the next `nbytes` of the file are to be made, by any thread."""
        page, first = self.nbytes // PAGESIZE * PAGESIZE, self.nbytes % PAGESIZE
        size = ((first + nbytes) // PAGESIZE + 1) * PAGESIZE
        if SMALL_BYTES < size <= ROOM_BYTES:
            size = ROOM_BYTES
        memory = self._free.pop() if size == ROOM_BYTES and self._free else _pages(size)
        self.nbytes += nbytes
        return Room(np.frombuffer(memory, np.uint8)[first : first + nbytes], memory, page)

    def write(self, room: Room) -> None:
        """Take a room that is filled, in the order in which they were asked for; it is not to be changed any more."""
        pages = np.frombuffer(room.memory, np.uint8)
        pages[: len(self._begun)] = self._begun
        end = len(self._begun) + len(room.data)
        whole = end // PAGESIZE * PAGESIZE
        self._begun = pages[whole:end].copy()
        tasks = [self._writing.submit(self._write, memoryview(room.memory)[:whole], room.page)] if whole else []
        self._busy.append((room, [*tasks, self._hashing.submit(self._hash, room)]))
        while len(self._busy) > BUSY_ROOMS or sum(len(room.data) for room, _ in self._busy) > BUSY_BYTES:
            self._end_oldest()

    def finish(self) -> str:
        """Wait until all that was written is on disk and hashed; its BLAKE3."""
        try:
            while self._busy:
                self._end_oldest()
            last = _pages(PAGESIZE)
            last.write(self._begun.data)
            self._write(memoryview(last), self.nbytes - len(self._begun))
            os.ftruncate(self._descriptor, self.nbytes)
            os.fsync(self._descriptor)
        finally:
            self._close()
        return self._digest.hexdigest()

    def _end_oldest(self) -> None:
        room, tasks = self._busy.popleft()
        for task in tasks:
            task.result()
        if len(room.memory) == ROOM_BYTES:
            self._free.append(room.memory)

    def __enter__(self) -> "HashedWriter":
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        _bypass_cache(self._descriptor, True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error:
            self._close()

    def _close(self) -> None:
        for pool in (self._writing, self._hashing):
            pool.shutdown(cancel_futures=True)
        os.close(self._descriptor)

    def _write(self, pages: memoryview, position: int) -> None:
        while pages:  # a full disk takes some of it, and refuses the rest the next time
            try:
                written = os.pwrite(self._descriptor, pages, position)
            except OSError as error:
                if error.errno != errno.EINVAL or not _bypass_cache(self._descriptor, False):
                    raise
            else:
                pages, position = pages[written:], position + written

    def _hash(self, room: Room) -> None:
        self._digest.update(room.data.data)


def _pages(size: int) -> mmap:
    return mmap(-1, size, MAP_PRIVATE | MAP_ANONYMOUS)


def _bypass_cache(descriptor: int, wanted: bool) -> bool:
    """Write past the page cache from now on, or through it; whether that is a change."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    changed = flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, changed)
    except OSError:  # this file system has no other way than the cache
        return False
    return changed != flags
