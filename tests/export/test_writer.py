"""A writer whose threads fail says so: no merge waits for them, and none is published that they did not finish."""

import pytest

import imod_export.writer as writer
from imod_core.errors import InputError
from imod_export.export import ExportSettings, export

NO_PARITY = ExportSettings(parity=False)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("handover", [writer.HANDOVER_BYTES, 100], ids=["few handovers", "many handovers"])
@pytest.mark.parametrize("error", [RuntimeError("It died."), MemoryError("It died.")], ids=repr)
@pytest.mark.parametrize("work", ["_write", "_hash"])
def test_a_thread_that_dies_ends_the_merge(adapter, sharded_base, tmp_path, monkeypatch, work, error, handover):
    def die(self, handovers):
        next(handovers)
        raise error

    monkeypatch.setattr(writer, "HANDOVER_BYTES", handover)
    monkeypatch.setattr(writer.HashedWriter, work, die)
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

    monkeypatch.setattr(writer, "SYNC_BYTES", 1)
    monkeypatch.setattr(writer.os, "fsync", die)
    with pytest.raises(MemoryError, match="It died"):
        export(adapter, tmp_path / "out", sharded_base, NO_PARITY)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_whole_is_not_published(adapter, sharded_base, tmp_path, monkeypatch):
    write = writer.HashedWriter._write

    def lose(self, handovers):
        write(self, iter([next(handovers)]))
        for _ in handovers:
            pass

    monkeypatch.setattr(writer, "HANDOVER_BYTES", 1000)
    monkeypatch.setattr(writer.HashedWriter, "_write", lose)
    with pytest.raises(InputError, match=r"partial has \d+ bytes, not \d+"):
        export(adapter, tmp_path / "out", sharded_base, NO_PARITY)
    assert not list(tmp_path.iterdir())
