"""Parts from package registries: fetched by the ordinary clients, checked by hash, cached."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from imod_core import parts
from imod_core.errors import InputError, MissingFileError
from imod_core.parts import PARTS, Part, extract, fetch, read, sha256

SMALL = PARTS["iconify-fluent-emoji-flat"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("IMOD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_every_part_names_licence_and_a_whole_hash() -> None:
    for part in PARTS.values():
        assert len(bytes.fromhex(part.sha256)) == 32
        assert part.licence
        assert part.what


def test_a_registry_that_is_not_known_is_refused() -> None:
    with pytest.raises(InputError, match="registry is 'conda': allowed are pypi and npm"):
        replace(SMALL, registry="conda")


def test_a_part_comes_from_npm_once_and_is_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = fetch(SMALL)
    assert archive.parent == cache
    assert sha256(archive) == SMALL.sha256
    monkeypatch.setattr(parts, "_download", lambda part, folder: pytest.fail("fetched twice"))
    icons = json.loads(read(SMALL, "package/icons.json"))
    assert "violin" in icons["icons"]
    assert extract(SMALL, "package/info.json").read_bytes() == read(SMALL, "package/info.json")
    assert list(cache.glob(".fetch-*")) == []


def test_a_part_comes_from_pypi(cache: Path) -> None:
    member = extract(PARTS["pretty_midi"], "pretty_midi/TimGM6mb.sf2")
    assert member.read_bytes()[:4] == b"RIFF"
    assert member.is_relative_to(cache)


def test_fetching_from_pypi_leaves_setuptools_usable_in_the_same_process(cache: Path) -> None:
    program = "from imod_core.parts import PARTS, fetch; fetch(PARTS['pretty_midi']); import setuptools"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_npm_of_the_python_package_serves_where_there_is_no_other(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert parts._npm(SMALL, cache)[0] == sys.executable
    assert sha256(fetch(SMALL)) == SMALL.sha256


def test_another_archive_than_the_pinned_one_is_refused(cache: Path) -> None:
    with pytest.raises(InputError, match=f"has sha256 {SMALL.sha256}, expected {'0' * 64}"):
        fetch(replace(SMALL, sha256="0" * 64))
    assert list(cache.iterdir()) == []


def test_a_damaged_archive_in_the_cache_is_fetched_anew(cache: Path) -> None:
    cache.mkdir()
    (cache / SMALL.file_name).write_bytes(b"cut")
    assert sha256(fetch(SMALL)) == SMALL.sha256


@pytest.mark.parametrize("part", [
    Part("imod-lora", "999.0.0", "pypi", "0" * 64, "none", "a version that is not there"),
    replace(SMALL, version="999.0.0"),
])  # fmt: skip
def test_a_part_that_cannot_be_fetched_says_what_to_do(part: Part, cache: Path) -> None:
    with pytest.raises(InputError) as caught:
        fetch(part)
    message = str(caught.value)
    assert "could not be fetched" in message
    assert str(cache / part.file_name) in message
    assert "\n" not in message
    assert list(cache.iterdir()) == []


def test_a_member_that_is_not_there_is_named() -> None:
    with pytest.raises(MissingFileError, match=r"has no member package/none\.json"):
        read(SMALL, "package/none.json")
