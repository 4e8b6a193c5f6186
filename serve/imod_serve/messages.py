"""OpenAI chat messages from text and media, in the order in which the media tags stand in the text.

A picture travels as PNG, a sound as 16 kHz mono WAV of 32-bit floats, both exactly as the project's decoder
reads them, so that the server's model sees what training saw; a video travels as the file it is.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imod_core.errors import InputError
from imod_core.media import SAMPLE_RATE, has_sound, load_audio, load_image, load_video
from imod_core.samples import MEDIA_KEYS, TAG, Message, Sample

Media = Path | str | bytes
Part = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation, with its media."""

    role: str
    """`system`, `user` or `assistant`."""
    text: str
    """Media stand where `<image>`, `<video>`, `<audio>` in it say, or in front: pictures, videos, sounds."""
    images: tuple[Media, ...] = ()
    audios: tuple[Media, ...] = ()
    videos: tuple[Media, ...] = ()
    mute: bool = False
    """Leave out the videos' sound tracks."""


def image_part(source: Media) -> Part:
    """A picture as data URL."""
    file = io.BytesIO()
    load_image(source).save(file, "PNG", compress_level=1)
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_base64(file.getvalue())}"}}


def audio_part(source: Media) -> Part:
    """A sound, or the sound track of a video."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, load_audio(source), SAMPLE_RATE, format="WAV", subtype="FLOAT")
    return {"type": "input_audio", "input_audio": {"data": _base64(file.getvalue()), "format": "wav"}}


def video_part(source: Media) -> Part:
    """A video as data URL; its sound track is a part of its own."""
    load_video(source, 1)  # refuses what is no video, naming the file
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{_base64(content)}"}}


PARTS = {"<image>": image_part, "<audio>": audio_part, "<video>": video_part}


def tagged(
    question: str,
    images: Sequence[Media],
    audios: Sequence[Media],
    videos: Sequence[Media],
    *,
    mute: bool = False,
) -> tuple[str, dict[str, list[Media]]]:
    """The question with media tags in front, and the media by tag.

    Pictures come first, then videos, each followed by its sound track if it has one and is not to be mute,
    then sounds. A question that has tags already keeps them.

    Raises:
        InputError: a question's own tags and the media do not match in number.
    """
    tags, media = "", {"<image>": list(images), "<audio>": list(audios), "<video>": list(videos)}
    if TAG.search(question):
        for tag, given in media.items():
            _check_count(tag, question.count(tag), len(given))
        return question, media
    tracks: list[Media] = []
    for source in videos:
        heard = not mute and has_sound(source)
        tags += "<video><audio>" if heard else "<video>"
        tracks += [source] if heard else []
    media["<audio>"] = [*tracks, *audios]
    return "<image>" * len(images) + tags + "<audio>" * len(audios) + question, media


def content_parts(content: str, media: dict[str, list[Media]]) -> str | list[Part]:
    """Text and media parts of one message, in order; takes its media from the front of `media`'s lists."""
    pieces = [piece for piece in TAG.split(content) if piece]
    if not any(piece in PARTS for piece in pieces):
        return content
    return [PARTS[piece](media[piece].pop(0)) if piece in PARTS else _text(piece) for piece in pieces]


def turn_messages(turns: Sequence[Turn]) -> list[Part]:
    """A conversation. Raises as `tagged`."""
    messages = []
    for turn in turns:
        content, media = tagged(turn.text, turn.images, turn.audios, turn.videos, mute=turn.mute)
        messages.append({"role": turn.role, "content": content_parts(content, media)})
    return messages


def sample_messages(sample: Sample) -> list[Part]:
    """A sample's turns up to the answer it asks for."""
    turns, media = asked(sample)
    return [{"role": turn.role, "content": content_parts(turn.content, media)} for turn in turns]


def asked(sample: Sample) -> tuple[list[Message], dict[str, list[Media]]]:
    """A sample's turns up to the answer it asks for, and their media by tag."""
    turns = sample.messages[:-1] if sample.answer is not None else sample.messages
    media: dict[str, list[Media]] = {}
    for tag, key in MEDIA_KEYS.items():
        given, wanted = getattr(sample, key), sum(turn.content.count(tag) for turn in turns)
        _check_count(tag, wanted, min(wanted, len(given)))
        media[tag] = list(given[:wanted])
    return list(turns), media


def _check_count(tag: str, wanted: int, given: int) -> None:
    key = MEDIA_KEYS[tag]
    if wanted > given:
        raise InputError(f"The question has more {tag} tags than {key} were given: {wanted} and {given}.")
    if wanted < given:
        raise InputError(f"{given - wanted} of the {key} have no {tag} tag in the question: add it.")


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
