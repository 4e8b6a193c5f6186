"""The files of a scenes set: splits, samples, captions, facts, notice and manifest.

    OUT/train.jsonl, val.jsonl, test.jsonl   questions; no composition is shared between files
    OUT/test_unseen_style.jsonl              a drawing style, phrases and programs that training never has
    OUT/captions.jsonl                       captions of training pictures and sounds, for aligning projectors
    OUT/scenes.jsonl                         what is true of every clip
    OUT/media/<clip>.png .wav .mp4           every clip in all three forms
    OUT/NOTICE.txt, manifest.json            licences of the parts; settings and hashes, written last

Everything is made in a temporary folder beside OUT and renamed when complete; nothing of one that was interrupted is
used again.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from imod_core import __version__
from imod_core.artifacts import blake3_of, new_folder, read_json, write_json, write_text
from imod_core.console import console
from imod_core.errors import InputError
from imod_core.parts import PARTS
from imod_core.samples import Message, Sample, write_samples
from imod_core.scenes.captions import (
    PICTURE_PROMPT,
    SOUND_PROMPT,
    picture_caption,
    sound_caption,
)
from imod_core.scenes.composition import Scene
from imod_core.scenes.pictures import TRAINING_STYLES, UNSEEN_STYLE
from imod_core.scenes.plan import SPLITS, Clip, ScenesSettings, plan
from imod_core.scenes.render import render_all, take_stock

MEDIA_SUFFIXES = (".png", ".wav", ".mp4")
"""Of every clip."""
VIDEO_ONE_IN = 4
"""One clip in so many is given as a video with its sound track, the others as a picture and a sound."""


def build_scenes(out: Path, settings: ScenesSettings, workers: int = 2) -> Path:
    """Make the set at `out` with `workers` processes; return `out`.

    A finished set of the same settings is left as it is, also one that somebody else finished meanwhile.

    Raises:
        InputError: `out` holds anything else, or cannot be written.
    """
    out = Path(out).resolve()
    if _is_finished(out, settings):
        console.print(f"{out} already holds this set; nothing to do.")
        return out
    try:
        with new_folder(out) as folder:
            (folder / "media").mkdir()
            clips = plan(settings)
            stock = take_stock(settings.parts)
            render_all([clip.scene for clip in clips], stock, settings.seed, folder / "media", workers)
            _write_files(folder, clips, settings)
    except (InputError, OSError):
        if not _is_finished(out, settings):
            raise
        console.print(f"{out} holds this set by now, made by another command.")
    return out


def _write_files(folder: Path, clips: list[Clip], settings: ScenesSettings) -> None:
    for split in SPLITS:
        of_split = [clip for clip in clips if clip.split == split]
        samples = [sample for clip in of_split for sample in _question_samples(clip, folder)]
        write_samples(folder / f"{split}.jsonl", samples)
    training = [clip for clip in clips if clip.split == "train"]
    captions = [sample for clip in training for sample in _caption_samples(clip, folder)]
    write_samples(folder / "captions.jsonl", captions)
    facts = [{"id": c.scene.id, "split": c.split, "style": c.scene.style, **c.scene.facts()} for c in clips]
    write_text(folder / "scenes.jsonl", "".join(json.dumps(fact) + "\n" for fact in facts))
    write_text(folder / "NOTICE.txt", notice(settings.parts))
    write_json(folder / "manifest.json", _manifest(folder, clips, settings))


def _question_samples(clip: Clip, folder: Path) -> Iterator[Sample]:
    for number, question in enumerate(clip.questions, start=1):
        template = question.template
        meta = {
            "type": list(template.type),
            "template": template.id,
            "scene": clip.scene.id,
            "style": clip.scene.style,
            "facts": clip.scene.facts(),
        }
        yield _sample(f"{clip.scene.id}-q{number}", clip.scene, folder, question.text, question.answer, meta)


def _caption_samples(clip: Clip, folder: Path) -> Iterator[Sample]:
    scene = clip.scene
    for kind, prompt, caption in (
        ("picture", PICTURE_PROMPT, picture_caption(scene)),
        ("sound", SOUND_PROMPT, sound_caption(scene)),
    ):
        meta = {"type": ["Caption", kind], "template": f"caption-{kind}", "scene": scene.id}
        yield _sample(f"{scene.id}-{kind}", scene, folder, prompt, caption, meta, kind)


def _sample(
    identity: str, scene: Scene, folder: Path, asked: str, answer: str, meta: dict[str, Any], shown: str = "both"
) -> Sample:
    """A sample that shows the `picture`, the `sound` or `both` of a scene, some of them as a video."""
    stem = folder / "media" / scene.id
    as_video = zlib.crc32(scene.id.encode()) % VIDEO_ONE_IN == 0
    clip, picture, sound = (stem.with_suffix(suffix) for suffix in (".mp4", ".png", ".wav"))
    images = () if as_video or shown == "sound" else (picture,)
    videos = (clip,) if as_video and shown != "sound" else ()
    audios = () if shown == "picture" else (clip if as_video else sound,)
    tags = "<image>" * len(images) + "<video>" * len(videos) + "<audio>" * len(audios)
    messages = (Message("user", tags + asked), Message("assistant", answer))
    return Sample(identity, messages, images, audios, videos, meta)


def notice(parts: str) -> str:
    """Whose work the media are made of, under which licences."""
    if parts == "drawn":
        return "The shapes and tones of this set were made by imod data scenes --parts drawn; no third-party parts.\n"
    used = [*TRAINING_STYLES.values(), UNSEEN_STYLE[1], "pretty_midi"]
    lines = [f"- {p.what}: {p.licence} ({p.registry} {p.name} {p.version})" for p in map(PARTS.get, used) if p]
    return "The pictures and sounds of this set were rendered from these works:\n\n" + "\n".join(lines) + "\n"


def _manifest(folder: Path, clips: list[Clip], settings: ScenesSettings) -> dict[str, Any]:
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return {
        "kind": "scenes",
        "imod": __version__,
        "settings": asdict(settings),
        "clips": {split: sum(clip.split == split for clip in clips) for split in SPLITS},
        "questions": {split: sum(len(c.questions) for c in clips if c.split == split) for split in SPLITS},
        "files": {name: blake3_of(folder / name) for name in names},
    }


def _is_finished(out: Path, settings: ScenesSettings) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    manifest = out / "manifest.json"
    found = read_json(manifest) if manifest.is_file() else {}
    if found.get("kind") != "scenes":
        raise InputError(f"{out} exists and is no scenes set: choose another --out, or empty it.")
    made = found.get("settings", {})
    different = [f.name for f in fields(settings) if made.get(f.name) != getattr(settings, f.name)]
    if different or found.get("imod") != __version__:
        raise InputError(
            f"{out} holds a scenes set made with other settings ({', '.join(different) or 'imod version'}): "
            "choose another --out, or remove it."
        )
    _check_whole(out, found)
    return True


def _check_whole(out: Path, manifest: dict[str, Any]) -> None:
    """Refuse a set that lost files since it was made, by their number alone: reading all media would take minutes."""
    lost = [name for name in manifest["files"] if not (out / name).is_file()]
    wanted = len(MEDIA_SUFFIXES) * sum(manifest["clips"].values())
    there = sum(path.suffix in MEDIA_SUFFIXES for path in (out / "media").glob("*"))
    if lost or there < wanted:
        fault = f"lacks {', '.join(lost)}" if lost else f"has {there} of its {wanted} media"
        raise InputError(f"{out} holds a scenes set that {fault}: remove it, and the command makes it anew.")
