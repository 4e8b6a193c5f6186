"""Sample files: one JSON object a line, in the messages format that LLaMA-Factory and ms-swift also read.

    {"id": "scene-0007-q2",
     "messages": [{"role": "user", "content": "<image><audio>Where is the louder instrument?"},
                  {"role": "assistant", "content": "left"}],
     "images": ["media/scene-0007.png"], "audios": ["media/scene-0007.wav"], "videos": [],
     "meta": {"type": ["Audio-Visual", "Location"]}}

The tags `<image>`, `<audio>` and `<video>` in the contents name the media in order. Paths are relative to the
file's folder. The sound track of a video is an `<audio>` directly after its `<video>`, with the same path.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imod_core.errors import InputError, MissingFileError, first_line

MEDIA_KEYS = {"<image>": "images", "<audio>": "audios", "<video>": "videos"}
"""Which list of a sample each tag draws from."""

KINDS = {"<image>": "image", "<audio>": "audio", "<video>": "video"}
"""Which kind of part of a conversation each tag stands for."""

TAG = re.compile("(" + "|".join(MEDIA_KEYS) + ")")
"""Any tag; splitting a content by it keeps the tags."""

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str
    """Text with media tags."""


@dataclass(frozen=True)
class Sample:
    """One conversation with its media; what training, prediction and scoring all read."""

    id: str
    messages: tuple[Message, ...]
    images: tuple[Path, ...] = ()
    audios: tuple[Path, ...] = ()
    videos: tuple[Path, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The last user turn without its media tags."""
        return strip_tags(next(m.content for m in reversed(self.messages) if m.role == "user")).strip()

    @property
    def answer(self) -> str | None:
        """The closing assistant turn; None where the sample only asks."""
        return self.messages[-1].content if self.messages[-1].role == "assistant" else None


def conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates want them: contents as lists of parts in the order of the text."""
    return [{"role": m.role, "content": [_part(p) for p in TAG.split(m.content) if p]} for m in messages]


def _part(piece: str) -> dict[str, str]:
    return {"type": KINDS[piece]} if piece in KINDS else {"type": "text", "text": piece}


def token_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of a tokenizer's special tokens; longer ones first, none at all for no tokens."""
    return re.compile("|".join(map(re.escape, sorted(filter(None, tokens), key=len, reverse=True))) or "(?!)")


def check_text(content: str, special: re.Pattern[str], what: str) -> None:
    """Refuse text that spells a special token: it would be read as a placeholder, a marker or the end of a turn.

    Raises:
        InputError: naming `what` and the token.
    """
    if found := special.search(TAG.sub("\n", content)):
        raise InputError(f"{what} has {found.group()} in its text, which is a special token.")


def strip_tags(content: str) -> str:
    """`content` without media tags."""
    for tag in MEDIA_KEYS:
        content = content.replace(tag, "")
    return content


def read_samples(path: Path | str) -> list[Sample]:
    """All samples of a JSONL file, validated, with absolute media paths.

    Raises InputError naming file, line and fault (no samples, bad JSON, missing key, wrong role, tags that do
    not match the media lists, an id used twice) and MissingFileError for the file or a medium that is absent.
    """
    path = Path(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise MissingFileError(f"{path} {found}: expected a sample file, one JSON object a line.")
    samples, seen = [], _Seen(path.resolve().parent)
    for number, record in _records(path):
        samples.append(_parse(record, f"{path}, line {number}", seen))
    if not samples:
        raise InputError(f"{path} holds no samples: expected one JSON object a line.")
    return samples


def write_samples(path: Path | str, samples: Iterable[Sample]) -> None:
    """Write samples as JSONL, media paths relative to the file's folder; all of the file or none of it."""
    path = Path(path)
    folder = path.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for sample in samples:
                file.write(json.dumps(to_record(sample, folder), ensure_ascii=False) + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def to_record(sample: Sample, folder: Path) -> dict[str, Any]:
    """The JSON object of a sample, media relative to `folder`."""
    return {
        "id": sample.id,
        "messages": [{"role": m.role, "content": m.content} for m in sample.messages],
        **{key: [_relative(p, folder) for p in getattr(sample, key)] for key in MEDIA_KEYS.values()},
        "meta": sample.meta,
    }


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: expected one JSON object a line.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is not JSON ({error.msg} at column {error.colno}).") from None
        except (RecursionError, ValueError) as error:  # nested without end, numbers of thousands of digits
            raise InputError(f"{path}, line {number} is not read ({first_line(error)}).") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number} is not a JSON object but {type(record).__name__}.")
        if "\\ud" in line.lower():  # the only way that half a character gets into UTF-8
            check_unicode(record, f"{path}, line {number}")
        yield number, record


def check_unicode(record: Mapping[str, Any], where: str) -> None:
    """Refuse half of a surrogate pair, which JSON can spell and neither a file nor a tokenizer can take."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise InputError(f"{where} has half a character in its text ({half}): remove it.") from None


class _Seen:
    """What earlier lines have established: used ids and media that are known to exist."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.ids: set[str] = set()
        self.media: dict[str, Path] = {}


def _parse(record: dict[str, Any], where: str, seen: _Seen) -> Sample:
    identity = record.get("id")
    if not isinstance(identity, str | int) or identity == "":
        raise InputError(f"{where} has id {identity!r}: expected a text that names the sample.")
    if str(identity) in seen.ids:
        raise InputError(f"{where} repeats the id {identity!r}: ids must be unique.")
    seen.ids.add(str(identity))
    messages = _messages(record, where)
    media = {}
    for tag, key in MEDIA_KEYS.items():
        media[key] = _media(record, key, where, seen)
        _check_count(tag, key, messages, len(media[key]), where)
    meta = record.get("meta", {})
    if not isinstance(meta, dict):
        raise InputError(f"{where} has a meta that is not an object but {type(meta).__name__}.")
    return Sample(id=str(identity), messages=messages, meta=meta, **media)


def _messages(record: dict[str, Any], where: str) -> tuple[Message, ...]:
    raw = record.get("messages")
    if not isinstance(raw, list) or not raw:
        raise InputError(f"{where} has no 'messages': expected a list of role and content.")
    messages = tuple(_message(entry, where) for entry in raw)
    check_turns(messages, where)
    return messages


def check_turns(messages: Sequence[Message], where: str) -> None:
    """Refuse a conversation that is not user and assistant in turn, after a system message or none."""
    turns = messages[1:] if messages[0].role == "system" else messages
    expected = ("user", "assistant")
    if not turns or any(turn.role != expected[i % 2] for i, turn in enumerate(turns)):
        found = ", ".join(m.role for m in messages)
        raise InputError(f"{where} has the roles {found}: expected user and assistant in turn, system only first.")


def _message(entry: Any, where: str) -> Message:
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise InputError(f"{where} has a message without text: expected an object with role and content.")
    if entry.get("role") not in ROLES:
        raise InputError(f"{where} has the role {entry.get('role')!r}: allowed are {', '.join(ROLES)}.")
    return Message(entry["role"], entry["content"])


def _media(record: dict[str, Any], key: str, where: str, seen: _Seen) -> tuple[Path, ...]:
    names = record.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{where} has {key} {names!r}: expected a list of paths.")
    return tuple(_existing(name, where, seen) for name in names)


def _existing(name: str, where: str, seen: _Seen) -> Path:
    if name not in seen.media:
        path = Path(os.path.abspath(seen.folder / name))  # noqa: PTH100  (keeps links, drops "..")
        try:
            there = path.is_file()
        except (OSError, ValueError):  # longer than any path, or with a null
            raise InputError(f"{where} names {name[:40]!r}…, which is no path.") from None
        if not there:
            raise MissingFileError(f"{where} names {name}, and {path} is no file.")
        seen.media[name] = path
    return seen.media[name]


def _check_count(tag: str, key: str, messages: tuple[Message, ...], given: int, where: str) -> None:
    wanted = sum(message.content.count(tag) for message in messages)
    if wanted != given:
        fault = "more media than placeholders" if given > wanted else "more placeholders than media"
        raise InputError(
            f"{where} has {fault}: {given} in '{key}' and {wanted} {tag} in the messages; they must be equal."
        )
