"""From a sample to AVT's token ids without its media: the rendered text, its expansions, which tokens are answers.

Used where tower states are cached: training and evaluation read a medium once and then only count its tokens. The
ids equal those of `AvtProcessor` on the media themselves.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from imod_core.avt.processing_avt import AvtProcessor
from imod_core.samples import Message, Sample, check_text, conversation, token_pattern

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Encoded:
    """Token ids of one sample."""

    input_ids: torch.Tensor
    """(L,) int64."""
    labels: torch.Tensor
    """(L,) int64: the id where it is part of an answer, -100 elsewhere."""


def encode(processor: AvtProcessor, sample: Sample, audio_tokens: list[int], with_answers: bool = True) -> Encoded:
    """Ids and labels of a sample whose sounds have `audio_tokens` placeholders each.

    Labels cover each assistant turn and its end marker. With `with_answers=False` the ids stop where the last answer
    would begin and nothing is labelled: a prompt for generation.
    """
    messages = sample.messages
    if not with_answers and messages[-1].role == "assistant":
        messages = messages[:-1]
    expansions = _Expansions(processor, audio_tokens)
    text, answers = "", []
    for piece, supervised in _pieces(processor, messages, with_answers):
        expanded = expansions.expand(piece)
        if supervised:
            answers.append((len(text), len(text) + len(expanded)))
        text += expanded
    tokens = processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = torch.tensor(tokens["input_ids"])
    starts = torch.tensor([start for start, _ in tokens["offset_mapping"]])
    learned = torch.zeros_like(ids, dtype=torch.bool)
    for first, last in answers:
        learned |= (starts >= first) & (starts < last)
    return Encoded(ids, ids.where(learned, IGNORED_LABEL))


def check_texts(processor: Any, samples: Iterable[Sample]) -> None:
    """Refuse samples whose text spells a special token; raises as `check_text`."""
    special = special_tokens(processor)
    for sample in samples:
        for message in sample.messages:
            check_text(message.content, special, f"The sample '{sample.id}'")


def special_tokens(processor: Any) -> re.Pattern[str]:
    """What finds the special tokens that matter to a processor: its tokenizer's, and those that its template writes."""
    tokenizer, template = processor.tokenizer, str(processor.chat_template)
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return token_pattern({*tokenizer.all_special_tokens, *(token for token in added if token in template)})


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
