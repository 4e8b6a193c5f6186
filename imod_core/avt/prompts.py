"""From a sample to AVT's token ids without its media: the text pieces, which of them are answers, the expansions.

Used where tower states are cached: training and evaluation read a medium once and then only count its tokens. The
ids equal those of `AvtProcessor` on the media themselves.
"""

import re
from dataclasses import dataclass

import torch

from imod_core.avt.processing_avt import AvtProcessor
from imod_core.samples import Message, Sample

KINDS = {"<image>": "image", "<audio>": "audio", "<video>": "video"}
"""Media kind of each tag of a sample."""
IGNORED_LABEL = -100
_TAG = re.compile("(" + "|".join(KINDS) + ")")


@dataclass(frozen=True)
class Encoded:
    """Token ids of one sample."""

    input_ids: torch.Tensor
    """(L,) int64."""
    labels: torch.Tensor
    """(L,) int64: the id where it is part of an answer, -100 elsewhere."""


def conversation(messages: tuple[Message, ...]) -> list[dict]:
    """Messages as chat templates want them: contents as lists of parts in the order of the text."""
    return [{"role": m.role, "content": [_part(p) for p in _TAG.split(m.content) if p]} for m in messages]


def encode(processor: AvtProcessor, sample: Sample, audio_tokens: list[int], with_answers: bool = True) -> Encoded:
    """Ids and labels of a sample whose sounds have `audio_tokens` placeholders each.

    Labels cover each assistant turn and its end marker. With `with_answers=False` the ids stop where the last answer
    would begin and nothing is labelled: a prompt for generation.
    """
    messages = sample.messages
    if not with_answers and messages[-1].role == "assistant":
        messages = messages[:-1]
    expansions = _Expansions(processor, audio_tokens)
    ids: list[int] = []
    labels: list[int] = []
    for text, supervised in _pieces(processor, messages, with_answers):
        piece = processor.tokenizer.encode(expansions.expand(text), add_special_tokens=False)
        ids += piece
        labels += piece if supervised else [IGNORED_LABEL] * len(piece)
    return Encoded(torch.tensor(ids), torch.tensor(labels))


def _pieces(processor: AvtProcessor, messages: tuple[Message, ...], with_answers: bool) -> list[tuple[str, bool]]:
    """The rendered conversation cut at the borders of its answers."""
    turns = conversation(messages)
    if not with_answers:
        return [(processor.apply_chat_template(turns, add_generation_prompt=True), False)]
    pieces, done = [], ""
    for i, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt = processor.apply_chat_template(turns[:i], add_generation_prompt=True)
        closed = processor.apply_chat_template(turns[: i + 1])
        answer = closed[len(prompt) :].rstrip("\n")
        pieces += [(prompt[len(done) :], False), (answer, True)]
        done = prompt + answer
    return pieces


class _Expansions:
    """Placeholders to their expansions, sounds in order with their own lengths."""

    def __init__(self, processor: AvtProcessor, audio_tokens: list[int]):
        windows = [n // processor.audio_window_tokens for n in audio_tokens]
        frames = range(processor.video_processor.num_frames)
        self.image = processor.replace_image_token({}, 0)
        self.video = processor.replace_video_token({"pixel_values_videos": [frames]}, 0)
        self.audios = iter([processor.replace_audio_token({"audio_windows": [w]}, 0) for w in windows])
        self.tokens = (processor.image_token, processor.video_token, processor.audio_token)
        self.pattern = re.compile("|".join(re.escape(token) for token in self.tokens))

    def expand(self, text: str) -> str:
        return self.pattern.sub(self._expansion, text)

    def _expansion(self, match: re.Match) -> str:
        image, video, _ = self.tokens
        if match.group() == image:
            return self.image
        return self.video if match.group() == video else next(self.audios)


def _part(piece: str) -> dict:
    return {"type": KINDS[piece]} if piece in KINDS else {"type": "text", "text": piece}
