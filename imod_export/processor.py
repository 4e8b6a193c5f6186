"""The processor's files of a merged folder: pictures and videos read as in training.

A recipe may lower how much of a medium is read. The base's processor does not know; a server that follows it would
show the model larger pictures and more frames than it was trained on.
"""

from pathlib import Path
from typing import Any

from imod_core.artifacts import read_json, write_json
from imod_core.pixels import PARTS, pixel_settings
from imod_export.folder import link_files

NESTED = "processor_config.json"
"""Of transformers 5: all parts in one file, each under its key."""
SHARED = "preprocessor_config.json"
"""Of transformers 4: pictures, often sounds, and videos where there is no file of their own."""
VIDEOS = "video_preprocessor_config.json"
FILES = {"image": (SHARED,), "video": (VIDEOS, SHARED)}
"""Where transformers looks for a part after `NESTED`, first to last."""


def set_media(folder: Path, media: dict[str, Any]) -> None:
    """Make the processor of `folder` keep to `media`, the limits in the manifest of a run.

    Args:
        folder: a model folder whose files may be written.
        media: any of `image_pixels`, `video_pixels` (most pixels of a picture, of a frame) and `video_frames`.

    Raises:
        InputError: the folder's processor has no such limit.
    """
    limits = {part: media.get(f"{part}_pixels") for part in PARTS}
    frames = media.get("video_frames")
    if frames is None and not any(limits.values()):
        return
    from imod_core.families.load import load_processor

    processor = load_processor(folder)
    told = pixel_settings(processor, limits)
    if frames is not None:
        told["video"] = {**told.get("video", {}), "num_frames": frames, "fps": None}
    for part in reversed(PARTS):  # videos first, while the shared file is as it was
        if hasattr(processor, f"{part}_processor"):
            _tell(folder, part, told.get(part, {}))


def view(base: Path, merged: Path, folder: Path) -> Path:
    """`folder`, made to be links to the files of `base`, but to those of the processor in `merged`."""
    ours = (NESTED, SHARED, VIDEOS)
    link_files(base, folder, but=ours)
    for path in (merged / name for name in ours):
        if path.exists():
            (folder / path.name).symlink_to(path.resolve())
    return folder


def _tell(folder: Path, part: str, told: dict[str, Any]) -> None:
    """Write settings where transformers reads the part from; videos get a file of their own, for what pictures share
    with them would change with theirs."""
    nested = _read(folder / NESTED)
    key = f"{part}_processor"
    if nested.get(key):
        write_json(folder / NESTED, {**nested, key: _with(nested[key], told)})
    else:
        found = next((name for name in FILES[part] if (folder / name).is_file()), FILES[part][0])
        write_json(folder / FILES[part][0], _with(_read(folder / found), told))


def _with(settings: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """`min_pixels` and `max_pixels`, an older way to give a size, would win."""
    older = ("min_pixels", "max_pixels") if "size" in told else ()
    return {**{name: value for name, value in settings.items() if name not in older}, **told}


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
