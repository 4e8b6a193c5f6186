"""A merge that is killed or interrupted: what is there is right or absent, and going on gives the same result."""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import time
from contextlib import contextmanager, suppress

import pytest

from imod_core.errors import CheckFailed, ImodError, InputError, MissingFileError
from imod_export.export import ExportSettings, export
from imod_export.work import place_of, work_on

NO_PARITY = ExportSettings(parity=False)
KILLS = 20


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def undisturbed(adapter, sharded_base, tmp_path_factory):
    """An undisturbed merge's files, and how long it took."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    started = time.monotonic()
    export(adapter, out, sharded_base, NO_PARITY)
    return contents(out), time.monotonic() - started


@pytest.fixture(scope="module")
def forked():
    """Processes that begin with everything imported, so that a kill hits the merge and not the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["imod_export.export", "imod_export.merge", "imod_export.card"])
    return context


def test_killed_at_twenty_random_moments_and_resumed_it_is_the_undisturbed_merge(
    adapter, sharded_base, tmp_path, undisturbed, forked
):
    expected, seconds = undisturbed
    moments, states = random.Random(0), set()
    for number in range(KILLS):
        place = tmp_path / str(number)
        place.mkdir()
        started = place / "started"
        process = forked.Process(target=merge_after_notice, args=(started, adapter, place / "out", sharded_base))
        process.start()
        while not started.exists():
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 1.2 * seconds))
        process.kill()
        process.join()
        started.unlink()
        states.add(state_of(place, expected))
        if (place / "out").exists():
            with pytest.raises(InputError, match="not empty"):  # and what lies beside it is swept away
                export(adapter, place / "out", sharded_base, NO_PARITY)
        else:
            export(adapter, place / "out", sharded_base, NO_PARITY)
        assert contents(place / "out") == expected
        assert [path.name for path in place.iterdir()] == ["out"]
    assert "partial" in states


def merge_after_notice(started, adapter, out, base):
    started.touch()
    export(adapter, out, base, NO_PARITY)


def state_of(place, expected):
    """What a kill left: nothing, a whole target or one hidden place, whose finished shards are right."""
    found = {path.name for path in place.iterdir()}
    assert found <= {"out", ".out.partial"}
    if "out" in found:
        assert contents(place / "out") == expected
        return "whole"
    for path in place.glob(".out.partial/model/*.safetensors"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == expected[path.name]
    return "partial" if any(place.glob(".out.partial/model/*.safetensors")) else "nothing"


@contextmanager
def interrupted(monkeypatch, tensors):
    """Ctrl-C after so many tensors of the merge within."""
    import imod_export.export as module

    seen = []

    def check(self):
        seen.append(1)
        if len(seen) == tensors:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(module.Identity, "check", check)
        yield
    assert len(seen) == tensors


def test_shards_that_were_whole_are_not_written_again(adapter, sharded_base, tmp_path, undisturbed, monkeypatch):
    with interrupted(monkeypatch, 60):
        export(adapter, tmp_path / "out", sharded_base, NO_PARITY)
    kept = {path.name: path.stat().st_ino for path in tmp_path.glob(".out.partial/model/*.safetensors")}
    assert kept
    out = export(adapter, tmp_path / "out", sharded_base, NO_PARITY)
    assert {name: (out / name).stat().st_ino for name in kept} == kept
    assert contents(out) == undisturbed[0]


def test_another_merge_into_the_same_place_begins_anew(adapter, sharded_base, tmp_path, undisturbed, monkeypatch):
    with interrupted(monkeypatch, 60):
        export(adapter, tmp_path / "out", sharded_base, ExportSettings(parity=False, dtype="bfloat16"))
    out = export(adapter, tmp_path / "out", sharded_base, NO_PARITY)
    assert contents(out) == undisturbed[0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_finished_shard_that_was_cut_is_written_again(adapter, sharded_base, tmp_path, undisturbed, monkeypatch):
    with interrupted(monkeypatch, 60):
        export(adapter, tmp_path / "out", sharded_base, NO_PARITY)
    cut = next(tmp_path.glob(".out.partial/model/*.safetensors"))
    cut.write_bytes(cut.read_bytes()[:-1])
    assert contents(export(adapter, tmp_path / "out", sharded_base, NO_PARITY)) == undisturbed[0]


def test_what_fails_after_the_merge_leaves_it_to_be_gone_on_with(adapter, sharded_base, tmp_path):
    base = shutil.copytree(sharded_base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    wrong = {**config, "text_config": {**config["text_config"], "intermediate_size": 8}}
    (base / "config.json").write_text(json.dumps(wrong))
    place = place_of(tmp_path / "out")
    with pytest.raises(InputError, match=rf"does not load .* kept in {place}: the same command goes on with them\.$"):
        export(adapter, tmp_path / "out", base)
    kept = {path.name: path.stat().st_ino for path in place.glob("model/*.safetensors")}
    assert len(kept) == len(list(base.glob("*.safetensors")))
    (place / "model" / "parity").mkdir()
    (place / "model" / "parity" / "old.json").touch()
    (base / "config.json").write_text(json.dumps(config))
    out = export(adapter, tmp_path / "out", base, NO_PARITY)
    assert {name: (out / name).stat().st_ino for name in kept} == kept
    assert json.loads((out / "config.json").read_text()) == config
    assert not (out / "parity").exists()
    assert not place.exists()


def stopped_by(error, out, kept):
    """What comes out of work that `error` stopped."""
    try:
        with work_on(out, "mine") as work:
            if kept:
                work.keep()
            raise error
    except ImodError as found:
        return found


ERRORS = [MissingFileError("It is gone."), InputError("It is wrong."), CheckFailed("It died.")]


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_an_error_is_told_in_its_own_sentence_and_leaves_nothing_that_is_not_kept(error, tmp_path):
    assert stopped_by(error, tmp_path / "out", kept=False) is error
    assert list(tmp_path.iterdir()) == []
    told = stopped_by(error, tmp_path / "out", kept=True)
    assert str(told).startswith(f"{error} The merged weights are kept in ")
    assert told.exit_code == error.exit_code
    assert place_of(tmp_path / "out").is_dir()


def test_every_file_and_folder_is_on_the_disk_before_it_is_published(adapter, sharded_base, tmp_path, monkeypatch):
    synced, sync = set(), os.fsync

    def noted(descriptor):
        assert not (tmp_path / "out").exists() or os.fstat(descriptor).st_ino == tmp_path.stat().st_ino
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    base = shutil.copytree(sharded_base, tmp_path / "base")
    (base / "more").mkdir()
    (base / "more" / "notes.txt").write_text("x")
    monkeypatch.setattr(os, "fsync", noted)
    out = export(adapter, tmp_path / "out", base, NO_PARITY)
    assert [str(path) for path in (tmp_path, out, *out.rglob("*")) if path.stat().st_ino not in synced] == []


def test_two_at_once_on_one_target_do_not_meet(adapter, sharded_base, tmp_path):
    with work_on(tmp_path / "out", "mine") as work:
        with pytest.raises(InputError, match="Another export writes"):
            export(adapter, tmp_path / "out", sharded_base, NO_PARITY)
        (work.folder / "file").write_text("x")
    assert (tmp_path / "out" / "file").read_text() == "x"


def test_what_a_kill_after_the_last_step_left_is_swept_away(adapter, sharded_base, tmp_path):
    export(adapter, tmp_path / "out", sharded_base, NO_PARITY)
    place_of(tmp_path / "out").mkdir()
    (place_of(tmp_path / "out") / "lock").touch()
    with pytest.raises(InputError, match="not empty"):
        export(adapter, tmp_path / "out", sharded_base, NO_PARITY)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
