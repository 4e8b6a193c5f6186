"""Artifact folders: written under a temporary name and renamed when whole, with a manifest that names their files."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blake3 import blake3

from imod_core import __version__
from imod_core.errors import InputError, MissingFileError

MANIFEST = "manifest.json"
CHUNK = 1 << 22


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out` and rename it to `out` at the end; on any error nothing is left.

    Everybody may read it, as a server in a container has to: safetensors makes files for their owner alone.

    Raises:
        InputError: `out` exists and is not an empty folder.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists and is not empty: give another --out or remove it first.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}): give another --out.") from None
    try:
        temporary.chmod(0o755)
        yield temporary
        for file in temporary.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        if out.is_dir():
            out.rmdir()
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def ready_folder(path: Path, option: str) -> Path:
    """A folder to write into, made if it is not there; what is in it stays.

    Raises:
        InputError: it cannot be made or written; `option` named it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): give another {option}.") from None
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: it is not JSON, or not an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not JSON: expected a JSON object.") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} holds {type(values).__name__}: expected a JSON object.")
    return values


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, values: Any) -> None:
    """Write `values` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(values, indent=2, default=str) + "\n")


def blake3_of(path: Path) -> str:
    """Hex digest of a file, as `b3sum` prints it; weights are many GB, and SHA-256 would take four times as long."""
    digest = blake3()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def model_identity(folder: Path) -> str:
    """One digest for a model folder: its configuration and its safetensors' names and contents.

    Two folders have the same identity if they hold the same weights under the same configuration, wherever they lie.

    Raises:
        MissingFileError: no such folder, or no config.json or safetensors in it.
    """
    folder = Path(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        raise MissingFileError(
            f"{folder} is not a model folder: expected config.json and *.safetensors in it; imod base build makes one."
        )
    digest = blake3()
    for path in (folder / "config.json", *weights):
        digest.update(f"{path.name}:{blake3_of(path)}\n".encode())
    return digest.hexdigest()


def write_manifest(folder: Path, kind: str, known: Mapping[str, str] | None = None, **values: Any) -> None:
    """Write `manifest.json`, last of all files: `kind`, version, `values` and the digest of every file in `folder`.

    `checkpoints/` and hidden files are work in progress and not listed. `known` are digests found while writing, by
    relative path, so that large files are not read again.
    """
    known = known or {}
    files = {
        str(path.relative_to(folder)): known.get(str(path.relative_to(folder))) or blake3_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and _is_listed(path.relative_to(folder))
    }
    write_json(folder / MANIFEST, {"kind": kind, "version": __version__, **values, "files": files})


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """The manifest of a finished artifact of `kind`.

    Raises:
        MissingFileError: no folder or no manifest: the artifact was never finished.
        InputError: the manifest is of another kind, or unreadable.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise MissingFileError(f"{folder} is no finished {kind}: it has no {MANIFEST}.")
    manifest = read_json(path)
    if manifest.get("kind") != kind:
        raise InputError(f"{folder} holds a {manifest.get('kind')!r}, expected a {kind!r}.")
    return manifest


def _is_listed(relative: Path) -> bool:
    return (
        relative.name != MANIFEST
        and relative.parts[0] not in ("checkpoints", "tensorboard")
        and not any(part.startswith(".") for part in relative.parts)
    )
