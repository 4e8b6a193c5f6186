"""What is to be merged: training runs or bare PEFT adapters, and the one base that belongs to them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

from imod_core.artifacts import MANIFEST, blake3_of, model_identity, read_json, read_manifest
from imod_core.console import console
from imod_core.errors import ImodError, InputError, MissingFileError
from imod_core.hub import download, is_hub_name
from imod_export.adapter import CONFIG, WEIGHTS
from imod_export.quantised import quantisation

LIMITS = ("image_pixels", "video_pixels", "video_frames")
"""What a run's manifest tells of media that a processor can be told too."""


@dataclass(frozen=True)
class Source:
    """An adapter and what is known of its origin."""

    adapter: Path
    weight: float
    trained_on: str | None
    """Identity of the base it was trained on, where that was recorded and the merge goes into that base."""
    method: str | None
    """How the run was trained (`imod`, `lora`); None for a bare adapter."""
    run: dict[str, Any]
    """The run's manifest; empty for a bare adapter."""


@dataclass(frozen=True)
class Sources:
    """Adapters and their base, all folders that exist."""

    adapters: tuple[Source, ...]
    base: Path

    @property
    def verified(self) -> bool:
        """Whether every adapter's base is recorded, so that its identity is checked."""
        return all(source.trained_on for source in self.adapters)

    @property
    def method(self) -> str | None:
        return self.adapters[0].method

    @property
    def media(self) -> dict[str, Any]:
        """How much of a medium the runs read, where they agree; empty if that was as the base's processor says."""
        first, *others = (source.run.get("media") or {} for source in self.adapters)
        return {
            name: first[name] for name in LIMITS if name in first and all(o.get(name) == first[name] for o in others)
        }

    def check(self, identity: str) -> None:
        """Refuse a base that is not the one of every run that recorded its own.

        Raises:
            InputError: it is another.
        """
        for source in self.adapters:
            if source.trained_on and source.trained_on != identity:
                raise InputError(
                    f"{self.base} is not the base that {source.adapter.parent} was trained on (its digest is "
                    f"{identity[:12]}, expected {source.trained_on[:12]}): give the original with --base."
                )


class Identity:
    """A base's identity, found beside other work: a large base takes a while to read.

    Only where an adapter recorded its base's is there anything to compare it with; elsewhere it is not looked for.
    """

    def __init__(self, sources: Sources):
        self.sources = sources
        self._found: str | None = None
        self._error: ImodError | OSError | None = None
        self._thread = Thread(target=self._find, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Stop at once for a wrong base, if that is known already."""
        if not self._thread.is_alive():
            self.get()

    def get(self) -> str | None:
        """Wait for the identity and check it; None where no adapter recorded one."""
        self._thread.join()
        if self._error:
            raise self._error
        if self._found:
            self.sources.check(self._found)
        return self._found

    def _find(self) -> None:
        if not any(source.trained_on for source in self.sources.adapters):
            return
        try:
            self._found = model_identity(self.sources.base)
        except (ImodError, OSError) as error:
            self._error = error


def find_sources(paths: Sequence[Path], base: Path | None, weights: Sequence[float] = ()) -> Sources:
    """The adapters at `paths`, run folders or PEFT adapter folders, with their recorded base or the one given.

    Raises:
        MissingFileError: a path or the base is not there.
        InputError: a run's adapter was changed, or the adapters name different bases.
    """
    if weights and len(weights) != len(paths):
        raise InputError(f"{len(weights)} weights were given for {len(paths)} adapters: give --weight once for each.")
    found = [_find(path, base) for path in paths]
    bases = {folder.resolve(): folder for _, folder in found}
    if len(bases) > 1:
        raise InputError(
            f"The adapters belong to different bases ({', '.join(map(str, bases.values()))}): "
            "say with --base which one they are merged into."
        )
    shares = list(weights) or [1.0] * len(paths)
    sources = [replace(source, weight=weight) for (source, _), weight in zip(found, shares, strict=True)]
    return Sources(tuple(sources), next(iter(bases.values())))


def _find(path: Path, base: Path | None) -> tuple[Source, Path]:
    if (path / CONFIG).is_file():
        return _bare(path, base)
    if not path.is_dir():
        raise MissingFileError(f"{path} does not exist: expected a run folder of imod train or a PEFT adapter folder.")
    if not (path / "adapter").is_dir() and not (path / MANIFEST).is_file():
        raise MissingFileError(f"{path} is neither a run folder nor an adapter folder: it has no {CONFIG}.")
    return _run(path, base)


def _run(run: Path, base: Path | None) -> tuple[Source, Path]:
    manifest = read_manifest(run, "run")
    for name in (CONFIG, WEIGHTS):
        if not (run / "adapter" / name).is_file():
            raise MissingFileError(f"{run / 'adapter'} has no {name}: the run is not whole, train it again.")
        if blake3_of(run / "adapter" / name) != manifest.get("files", {}).get(f"adapter/{name}"):
            raise InputError(
                f"{run / 'adapter' / name} was changed after the run ended: "
                f"to merge it all the same, give --merge {run / 'adapter'}."
            )
    trained_on = manifest.get("base", {})
    folder = _model_folder(base or trained_on.get("path"), run)
    identity = str(trained_on.get("blake3"))
    if base and _is_quantised(trained_on.get("path")):
        console.print(f"{run} was trained on a quantised base: {folder} is taken as what that was made from.")
        return Source(run / "adapter", 1.0, None, manifest.get("method"), manifest), folder
    return Source(run / "adapter", 1.0, identity, manifest.get("method"), manifest), folder


def _bare(adapter: Path, base: Path | None) -> tuple[Source, Path]:
    folder = _model_folder(base or read_json(adapter / CONFIG).get("base_model_name_or_path"), adapter)
    console.print(
        f"{adapter} does not record its base's digest: that {folder} is the right one is not checked.", soft_wrap=True
    )
    return Source(adapter, 1.0, None, None, {}), folder


def _is_quantised(folder: str | None) -> bool:
    path = Path(folder or "") / "config.json"
    return bool(folder) and path.is_file() and quantisation(read_json(path)) is not None


def _model_folder(name: Path | str | None, owner: Path) -> Path:
    folder = _base_folder(name, owner)
    if not (folder / "config.json").is_file():
        raise MissingFileError(f"{folder} is not a model folder: it has no config.json; give the base with --base.")
    return folder


def _base_folder(name: Path | str | None, owner: Path) -> Path:
    if not name:
        raise MissingFileError(f"{owner} does not name its base: give it with --base DIR.")
    if (folder := Path(name)).is_dir():
        return folder
    if is_hub_name(name):
        return download(str(name), f"The base {name} of {owner}")
    raise MissingFileError(f"The base {name} is no folder: give the base of {owner} with --base DIR.")
