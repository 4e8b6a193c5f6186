"""Clips to try: from a folder of `imod data scenes`, or rendered once into the cache if the extra `scenes` is there."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imod_core.console import console
from imod_core.errors import ImodError, MissingFileError
from imod_core.parts import cache_folder
from imod_core.samples import Sample, read_samples
from imod_demo.medium import Medium, take

WANTED = (
    *("where-loudest", "count-playing", "which-place-first", "see-where", "hear-which-louder", "is-outside"),
    *("where-first", "which-playing", "hear-count", "see-what"),
)
"""Kinds of question, the ones that need picture and sound first."""
FORMS = (("mp4",), ("mp4",), ("png", "wav"), ("mp4",), ("wav",), ("png",))
"""In which files the examples come, one after the other."""
HEARD, SEEN = ("hear",), ("see",)
"""How the kinds of question begin that a sound or a picture alone can answer."""
COUNT = 6
RENDERED_CLIPS = 18


@dataclass(frozen=True)
class Example:
    """Media and a question about them."""

    question: str
    media: tuple[Medium, ...]
    thumbnail: Path | None
    """A picture; None for what is only heard."""


def examples_from(folder: Path, shelf: Path) -> list[Example]:
    """A few different questions from the test split of a scenes folder, their files copied into `shelf`."""
    path = Path(folder) / "test.jsonl"
    if not path.is_file():
        raise MissingFileError(f"{folder} has no test.jsonl: expected a folder as `imod data scenes` makes it.")
    shelf.mkdir(parents=True, exist_ok=True)
    return list(_chosen(read_samples(path), Path(folder) / "media", shelf))


def credits_of(folder: Path) -> str:
    """Whose drawings and sounds a scenes folder is made of, as its notice says."""
    notice = Path(folder) / "NOTICE.txt"
    return notice.read_text(encoding="utf-8") if notice.is_file() else ""


def rendered(parts: str | None = None) -> Path | None:
    """A folder of a few scenes, rendered at first use; None without the extra or when it fails."""
    if parts is None and any(importlib.util.find_spec(name) is None for name in ("resvg_py", "midirenderer")):
        return None
    from imod_core.scenes.dataset import build_scenes
    from imod_core.scenes.plan import ScenesSettings

    for kind in [parts] if parts else ["real", "drawn"]:
        settings = ScenesSettings(clips=1, val_clips=1, test_clips=RENDERED_CLIPS, unseen_clips=1, seed=7, parts=kind)
        out = cache_folder() / f"examples-{kind}"
        if out.exists() and not _is_current(out, settings):
            shutil.rmtree(out)
        try:
            return build_scenes(out, settings, workers=1)
        except ImodError as error:
            console.print(f"No examples from {kind} parts: {error}")
    return None


def _is_current(folder: Path, settings: Any) -> bool:
    """Whether this version rendered it with these settings; the cache may be older."""
    from imod_core import __version__

    path = folder / "manifest.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found.get("imod") == __version__ and found.get("settings") == asdict(settings)


def _chosen(samples: list[Sample], media: Path, shelf: Path) -> Iterator[Example]:
    left = list(samples)
    for form in FORMS[:COUNT]:
        sample = next((s for name in WANTED for s in left if _fits(s, name, form)), None)
        if sample is None:
            continue
        scene = sample.meta["scene"]
        left = [s for s in left if s.meta["scene"] != scene and s.meta["template"] != sample.meta["template"]]
        yield _example(sample, form, media, shelf)


def _fits(sample: Sample, template: str, form: tuple[str, ...]) -> bool:
    """Whether a sample asks this kind of question, and the files alone can answer it."""
    if sample.meta.get("template") != template:
        return False
    if form == ("wav",):
        return template.startswith(HEARD)
    if form == ("png",):
        return template.startswith(SEEN)
    return not template.startswith(HEARD + SEEN)


def _example(sample: Sample, form: tuple[str, ...], media: Path, shelf: Path) -> Example:
    scene: Any = sample.meta["scene"]
    files = [take(media / f"{scene}.{suffix}", f"{scene}.{suffix}", shelf) for suffix in form]
    thumbnail = None if form == ("wav",) else shelf / f"{scene}.png"
    if thumbnail is not None:
        shutil.copyfile(media / f"{scene}.png", thumbnail)
    return Example(sample.question, tuple(files), thumbnail)
