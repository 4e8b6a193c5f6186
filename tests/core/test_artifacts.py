"""Artifact folders are there whole or not at all, and say what is in them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imod_core.artifacts import (
    MANIFEST,
    blake3_of,
    model_identity,
    new_folder,
    read_manifest,
    ready_folder,
    write_manifest,
)
from imod_core.errors import InputError, MissingFileError


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("a")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out/a.txt").read_text() == "a"


def test_everybody_may_read_what_a_folder_holds(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as folder:
        (folder / "sub").mkdir(mode=0o700)
        (folder / "sub/weights.safetensors").touch(mode=0o600)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "out/sub", tmp_path / "out/sub/weights.safetensors")]
    assert modes == [0o755, 0o644]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "a.txt").write_text("a")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_content_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(InputError, match="already exists"), new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out/mine.txt").read_text() == "mine"


def test_a_folder_to_write_into_keeps_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert ready_folder(tmp_path, "--out") == tmp_path
    assert ready_folder(tmp_path / "a/b", "--out").is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "a"}
    with pytest.raises(InputError, match=r"mine\.txt cannot be written \(File exists\): give another --out"):
        ready_folder(tmp_path / "mine.txt", "--out")


def test_text_is_utf_8_wherever_it_is_written(tmp_path: Path) -> None:
    code = "from pathlib import Path; from imod_core.artifacts import write_text; write_text(Path('a'), chr(252))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)
    assert (tmp_path / "a").read_text(encoding="utf-8") == "ü"


def test_the_manifest_names_every_file_with_its_digest(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.txt").write_text("a")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/x").write_text("work in progress")
    write_manifest(tmp_path, "run", method="imod")
    manifest = read_manifest(tmp_path, "run")
    assert manifest["files"] == {"sub/a.txt": blake3_of(tmp_path / "sub/a.txt")}
    assert manifest["method"] == "imod"


def test_a_manifest_of_another_kind_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, "scenes")
    with pytest.raises(InputError, match="'scenes', expected a 'run'"):
        read_manifest(tmp_path, "run")
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(MissingFileError, match="no finished run"):
        read_manifest(tmp_path, "run")


def test_identity_follows_weights_and_configuration_and_nothing_else(tmp_path: Path) -> None:
    def folder(name: str, weights: bytes = b"w", config: str = "{}", note: str = "") -> str:
        place = tmp_path / name
        place.mkdir()
        (place / "model.safetensors").write_bytes(weights)
        (place / "config.json").write_text(config)
        (place / "README.md").write_text(note)
        return model_identity(place)

    one = folder("one")
    assert folder("two", note="another place, another note") == one
    assert folder("three", weights=b"v") != one
    assert folder("four", config='{"a": 1}') != one
