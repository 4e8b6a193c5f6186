"""A writer's file is what was written, however its pieces lie; and one whose threads fail says so.

No merge waits for them, and none is published that they did not finish.
"""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

import imod_export.writer as writer
from imod_core.errors import InputError
from imod_export.export import ExportSettings, export
from imod_export.writer import ROOM_BYTES, HashedWriter

NO_PARITY = ExportSettings(parity=False)
SIZES = {
    "nothing": [],
    "empty pieces": [0, 0],
    "less than a page": [5, 0, 7],
    "whole pages": [4096, 8192],
    "across pages": [8, 4090, 1, 4096, 5000, 3],
    "many": [977] * 3000,
    "larger than a room": [24, ROOM_BYTES, ROOM_BYTES + 1, 100, ROOM_BYTES // 2],
}


def write(path: Path, sizes: list[int], seed: int = 0) -> tuple[bytes, str]:
    """Pieces of random bytes, made by threads in any order; what the file should hold, and its digest."""
    draw = np.random.default_rng(seed)
    pieces = [draw.integers(0, 256, size, np.uint8) for size in sizes]
    with HashedWriter(path) as target, ThreadPoolExecutor(3) as pool:
        for first in range(0, len(pieces), 4):
            rooms = [target.room(len(piece)) for piece in pieces[first : first + 4]]
            list(
                pool.map(lambda room, piece: np.copyto(room.data, piece), rooms[::-1], pieces[first : first + 4][::-1])
            )
            for room in rooms:
                target.write(room)
    return b"".join(piece.tobytes() for piece in pieces), target.finish()


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_file_is_what_was_written(tmp_path, sizes):
    content, digest = write(tmp_path / "file", sizes)
    assert (tmp_path / "file").read_bytes() == content
    assert digest == blake3(content).hexdigest()


@pytest.mark.parametrize("refused", ["at once", "when it writes"])
def test_where_the_page_cache_is_the_only_way_it_is_taken(tmp_path, monkeypatch, refused):
    calls = []
    pwrite, fcntl = os.pwrite, writer.fcntl.fcntl

    def cached_only(descriptor, *words):
        direct = fcntl(descriptor, writer.fcntl.F_GETFL) & os.O_DIRECT
        calls.append(direct)
        if direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return pwrite(descriptor, *words)

    def no_direct(descriptor, command, flags=0):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return fcntl(descriptor, command, flags)

    monkeypatch.setattr(writer.os, "pwrite", cached_only)
    if refused == "at once":
        monkeypatch.setattr(writer.fcntl, "fcntl", no_direct)
    content, digest = write(tmp_path / "file", SIZES["across pages"])
    assert (tmp_path / "file").read_bytes() == content
    assert digest == blake3(content).hexdigest()
    assert calls
    assert not calls[-1]


def test_a_full_device_is_told_of():
    with pytest.raises(OSError, match="No space left"):
        write(Path("/dev/full"), SIZES["many"])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("busy", [writer.BUSY_BYTES, 100], ids=["few waits", "many waits"])
@pytest.mark.parametrize("error", [RuntimeError("It died."), MemoryError("It died.")], ids=repr)
@pytest.mark.parametrize("work", ["_write", "_hash"])
def test_a_thread_that_dies_ends_the_merge(adapter, sharded_base, tmp_path, monkeypatch, work, error, busy):
    def die(*arguments):
        raise error

    monkeypatch.setattr(writer, "BUSY_BYTES", busy)
    monkeypatch.setattr(HashedWriter, work, die)
    with pytest.raises(type(error), match="It died"):
        export(adapter, tmp_path / "out", sharded_base, NO_PARITY)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out.partial/model/*.safetensors"))
    monkeypatch.undo()
    assert export(adapter, tmp_path / "out", sharded_base, NO_PARITY).is_dir()


@pytest.mark.timeout(120)
def test_a_sync_that_dies_ends_the_merge(adapter, sharded_base, tmp_path, monkeypatch):
    def die(descriptor):
        raise MemoryError("It died.")

    monkeypatch.setattr(writer.os, "fsync", die)
    with pytest.raises(MemoryError, match="It died"):
        export(adapter, tmp_path / "out", sharded_base, NO_PARITY)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_whole_is_not_published(adapter, sharded_base, tmp_path, monkeypatch):
    ftruncate = os.ftruncate
    monkeypatch.setattr(writer.os, "ftruncate", lambda descriptor, count: ftruncate(descriptor, count - 1))
    with pytest.raises(InputError, match=r"partial has \d+ bytes, not \d+"):
        export(adapter, tmp_path / "out", sharded_base, NO_PARITY)
    assert not list(tmp_path.iterdir())
