"""Official annotation files to sample files: MUSIC-AVQA and LLaVA-style JSON.

Both look for media under one folder and refuse rows whose media is missing, unless told to skip them.
"""

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from imod_core.errors import InputError, MissingFileError
from imod_core.media import has_sound
from imod_core.samples import MEDIA_KEYS, Message, Sample, check_turns, check_unicode, to_record, write_samples

SLOT = re.compile(r"<[^>\s]*>")
"""A blank of a MUSIC-AVQA question, for example `<Object>`."""
LLAVA_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
SHOWN = 3
"""How many missing files an error names."""


@dataclass(frozen=True)
class Converted:
    """What a conversion did."""

    written: int
    skipped: int
    """Rows left out because their media is missing."""


def convert_music_avqa(file: Path, media: Path, out: Path, skip_missing: bool = False) -> Converted:
    """A MUSIC-AVQA annotation file (`.json` or `.json.gz`), with videos at MEDIA/<video_id>.mp4, to JSONL.

    A video is given with its sound track, or alone where it has none.
    """
    has_track = cache(has_sound)

    def convert(row: dict[str, Any], where: str) -> Sample:
        return _music_avqa(row, media, where, has_track)

    return _convert(file, media, out, skip_missing, _music_avqa_media, convert)


def convert_llava(file: Path, media: Path, out: Path, skip_missing: bool = False) -> Converted:
    """LLaVA-style JSON: a list of `{"id", "image" | "video" | "audio", "conversations"}`, to JSONL.

    Media that no tag names come first in the first turn; `<image>` stands for a video where the entry has one
    and no image, as in LLaVA-Video; `<audio>` without `audio` is the sound track of the entry's video.
    """

    def convert(row: dict[str, Any], where: str) -> Sample:
        return _llava(row, media, where)

    return _convert(file, media, out, skip_missing, _llava_media, convert)


def fill_question(content: str, values: list[str]) -> str:
    """A MUSIC-AVQA question with each `<...>` replaced by the next template value, read as words."""
    slots = SLOT.findall(content)
    if len(slots) != len(values):
        raise InputError(f"the question {content!r} has {len(slots)} blanks and {len(values)} template values.")
    rest = iter(values)
    return SLOT.sub(lambda _: next(rest), content).strip()


def _convert(
    file: Path,
    media: Path,
    out: Path,
    skip_missing: bool,
    media_of: Callable[[dict[str, Any], str], list[str]],
    convert: Callable[[dict[str, Any], str], Sample],
) -> Converted:
    if not media.is_dir():
        raise MissingFileError(f"{media} is no folder: expected the folder of the media files.")
    _check_out(out, file)
    rows = [(row, f"{file}, row {number}") for number, row in enumerate(_read_rows(file), start=1)]
    there = cache(lambda name: (media / name).is_file())
    missing = {i: [n for n in media_of(row, where) if not there(n)] for i, (row, where) in enumerate(rows)}
    absent = [names for names in missing.values() if names]
    if absent and not skip_missing:
        raise _missing_media(absent, len(rows), media)
    kept = []
    for i, (row, where) in enumerate(rows):
        if not missing[i]:
            kept.append(convert(row, where))
            check_unicode(to_record(kept[-1], media), where)
    if not kept:
        raise InputError(f"No row of {file} has its media in {media}: nothing to write.")
    write_samples(out, _with_unique_ids(kept))
    return Converted(len(kept), len(absent))


def _check_out(out: Path, file: Path) -> None:
    if out.exists():
        found = "is the file to convert" if file.exists() and out.samefile(file) else "already exists"
        raise InputError(f"{out} {found}: give another --out, or remove it first.")


def _missing_media(absent: list[list[str]], rows: int, media: Path) -> MissingFileError:
    names = list(dict.fromkeys(name for group in absent for name in group))
    first = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return MissingFileError(
        f"{len(absent)} of {rows} rows name media that is not in {media} ({len(names)} files: {first}): "
        "add the files, or leave the rows out with --skip-missing."
    )


def _with_unique_ids(samples: list[Sample]) -> Iterator[Sample]:
    """Annotation files repeat ids; from the second on, a repeated one gets its count, or the next that is free."""
    taken, seen = {sample.id for sample in samples}, Counter[str]()
    for sample in samples:
        seen[sample.id] += 1
        if seen[sample.id] > 1:
            names = (f"{sample.id}#{number}" for number in count(seen[sample.id]))
            sample = replace(sample, id=next(name for name in names if name not in taken))
            taken.add(sample.id)
        yield sample


def _read_rows(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        found = "is a folder" if file.is_dir() else "does not exist"
        raise MissingFileError(f"{file} {found}: expected a JSON annotation file.")
    try:
        raw = file.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
        jsonl = ".jsonl" in file.suffixes
        rows = [json.loads(line) for line in text.split("\n") if line.strip()] if jsonl else json.loads(text)
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is not readable as JSON ({error}).") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{file} holds no list of annotations: expected a non-empty list of JSON objects.")
    return rows


def _field(row: dict[str, Any], key: str, where: str) -> Any:
    if key not in row:
        raise InputError(f"{where} has no {key!r}; its keys are {', '.join(map(repr, row))}.")
    return row[key]


# MUSIC-AVQA


def _music_avqa_media(row: dict[str, Any], where: str) -> list[str]:
    return [f"{_field(row, 'video_id', where)}.mp4"]


def _music_avqa(row: dict[str, Any], media: Path, where: str, has_track: Callable[[Path], bool]) -> Sample:
    """The official key of the answer really is `anser`; `type` and `templ_values` are JSON in a string."""
    video = (media / _music_avqa_media(row, where)[0]).absolute()
    try:
        kind = json.loads(_field(row, "type", where))
        values = json.loads(_field(row, "templ_values", where))
        question = fill_question(_field(row, "question_content", where), values)
    except (json.JSONDecodeError, TypeError) as error:
        raise InputError(f"{where} has a type or templ_values that is not JSON in a string ({error}).") from None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    audios = (video,) if has_track(video) else ()
    asked = "<video>" + "<audio>" * len(audios) + question
    messages = (Message("user", asked), Message("assistant", str(_field(row, "anser", where))))
    meta = {"type": kind, "template": row["question_content"].strip(), "video_id": row["video_id"]}
    return Sample(str(_field(row, "question_id", where)), messages, (), audios, (video,), meta)


# LLaVA


def _llava_media(row: dict[str, Any], where: str) -> list[str]:
    return [name for key in ("image", "audio", "video") for name in _names(row, key, where)]


def _names(row: dict[str, Any], key: str, where: str) -> list[str]:
    names = row.get(key) or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{where} has {key} {names!r}: expected a path or a list of paths.")
    return names


def _llava(row: dict[str, Any], media: Path, where: str) -> Sample:
    turns = _llava_turns(row, where)
    paths = {
        f"<{key}>": tuple((media / name).absolute() for name in _names(row, key, where))
        for key in ("image", "audio", "video")
    }
    if paths["<video>"] and not paths["<image>"] and not _count(turns, "<video>"):
        turns = [Message(m.role, m.content.replace("<image>", "<video>")) for m in turns]
    if not paths["<audio>"] and _count(turns, "<audio>") == len(paths["<video>"]):
        paths["<audio>"] = paths["<video>"]
    for tag, given in paths.items():
        turns = _with_tags(turns, tag, len(given), where)
    media_lists: dict[str, Any] = {MEDIA_KEYS[tag]: given for tag, given in paths.items()}
    return Sample(_llava_id(row, where), tuple(turns), **media_lists)


def _llava_id(row: dict[str, Any], where: str) -> str:
    """The row's own id, or its number where it has none."""
    identity = row.get("id")
    if identity is None or identity == "":
        return where.rsplit(" ", 1)[1]
    if not isinstance(identity, str | int):
        raise InputError(f"{where} has the id {identity!r}: expected a text or a number.")
    return str(identity)


def _llava_turns(row: dict[str, Any], where: str) -> list[Message]:
    raw = _field(row, "conversations", where)
    try:
        turns = [Message(LLAVA_ROLES[turn["from"]], turn["value"]) for turn in raw]
    except (KeyError, TypeError):
        turns = []
    if not turns or not all(isinstance(turn.content, str) for turn in turns):
        raise InputError(
            f"{where} has conversations that cannot be read: expected a list of "
            '{"from": "human" or "gpt", "value": text}.'
        )
    check_turns(turns, where)
    return turns


def _count(turns: list[Message], tag: str) -> int:
    return sum(turn.content.count(tag) for turn in turns)


def _with_tags(turns: list[Message], tag: str, given: int, where: str) -> list[Message]:
    found = _count(turns, tag)
    if found == given:
        return turns
    if found:
        raise InputError(f"{where} has {found} {tag} in its conversation and {given} such files.")
    first = next(i for i, turn in enumerate(turns) if turn.role == "user")
    opened = Message("user", tag * given + turns[first].content)
    return [*turns[:first], opened, *turns[first + 1 :]]
