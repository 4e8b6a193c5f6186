"""What is to be merged: a training run or a bare PEFT adapter, and the base that belongs to it."""

from dataclasses import dataclass
from pathlib import Path

from imod_core.artifacts import MANIFEST, model_identity, read_manifest, sha256
from imod_core.console import console
from imod_core.errors import InputError, MissingFileError
from imod_export.adapter import CONFIG, WEIGHTS
from imod_export.tensors import read_json


@dataclass(frozen=True)
class Source:
    """An adapter and its base, both folders that exist."""

    adapter: Path
    base: Path
    base_sha256: str
    """Identity of `base`, compared with the one the adapter was trained on where that is known."""
    base_verified: bool
    """Whether it was known."""
    method: str | None
    """How the run was trained (`imod`, `lora`); None for a bare adapter."""


def find_source(path: Path, base: Path | None) -> Source:
    """The adapter at `path`, a run folder or a PEFT adapter folder, with its recorded base or the one given.

    Raises:
        MissingFileError: `path` or the base is not there.
        InputError: the run's adapter was changed, or the base is not the one it was trained on.
    """
    if (path / CONFIG).is_file():
        return _bare(path, base)
    if not path.is_dir():
        raise MissingFileError(f"{path} does not exist: expected a run folder of imod train or a PEFT adapter folder.")
    if not (path / "adapter").is_dir() and not (path / MANIFEST).is_file():
        raise MissingFileError(f"{path} is neither a run folder nor an adapter folder: it has no {CONFIG}.")
    return _run(path, base)


def _run(run: Path, base: Path | None) -> Source:
    manifest = read_manifest(run, "run")
    for name in (CONFIG, WEIGHTS):
        if not (run / "adapter" / name).is_file():
            raise MissingFileError(f"{run / 'adapter'} has no {name}: the run is not whole, train it again.")
        if sha256(run / "adapter" / name) != manifest.get("files", {}).get(f"adapter/{name}"):
            raise InputError(
                f"{run / 'adapter' / name} was changed after the run ended: "
                f"to merge it all the same, give --merge {run / 'adapter'}."
            )
    trained_on = manifest.get("base", {})
    folder = _base_folder(base or trained_on.get("path"), run)
    identity = model_identity(folder)
    if identity != trained_on.get("sha256"):
        raise InputError(
            f"{folder} is not the base that {run} was trained on (its digest is {identity[:12]}, expected "
            f"{str(trained_on.get('sha256'))[:12]}): give the original with --base."
        )
    return Source(run / "adapter", folder, identity, True, manifest.get("method"))


def _bare(adapter: Path, base: Path | None) -> Source:
    folder = _base_folder(base or read_json(adapter / CONFIG).get("base_model_name_or_path"), adapter)
    console.print(
        f"{adapter} does not record its base's digest: that {folder} is the right one is not checked.", soft_wrap=True
    )
    return Source(adapter, folder, model_identity(folder), False, None)


def _base_folder(name: Path | str | None, owner: Path) -> Path:
    if not name:
        raise MissingFileError(f"{owner} does not name its base: give it with --base DIR.")
    if (folder := Path(name)).is_dir():
        return folder
    if isinstance(name, str) and name.count("/") == 1 and name[0] not in "./~":
        return _from_hub(name, owner)
    raise MissingFileError(f"The base {name} is no folder: give the base of {owner} with --base DIR.")


def _from_hub(name: str, owner: Path) -> Path:
    """The local copy of a hub model, downloaded if need be; pickles are left there."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=["*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.gguf"]))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MissingFileError(
            f"The base {name} of {owner} is neither a folder nor to be had from the hub ({reason}): give --base DIR."
        ) from None
