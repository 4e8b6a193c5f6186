"""Which tokens of a conversation are answers: found by rendering it with and without them.

A chat template tells where a prompt ends (rendered for generation) and where the answer to it does (rendered with it).
What lies between, up to the end marker, is learned. Characters become tokens by the tokenizer's own offsets; the
processor then expands each placeholder, which moves what follows but does not change it, so that answers are counted
from the end.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from imod_core.avt.prompts import IGNORED_LABEL
from imod_core.errors import InputError
from imod_core.samples import TAG, Message, conversation


def label_answers(
    processor: Any, messages: Sequence[Message], expand: Callable[[int], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of a conversation and their labels, (L,) int64 each: the id in an answer and its end marker, -100 elsewhere.

    Args:
        processor: renders and tokenises.
        messages: the conversation; only users' turns name media.
        expand: the ids, placeholders expanded, of the first so many messages, rendered and encoded with their media.

    Raises:
        InputError: the chat template does not let an answer be told from its prompt.
    """
    ids = expand(len(messages))
    labels = torch.full_like(ids, IGNORED_LABEL)
    first = 0
    for last in _blocks(messages):
        text, answers = _answers(processor, messages[:last], first)
        plain, starts = _tokens(processor, text)
        whole = ids if last == len(messages) else expand(last)
        moved = len(whole) - len(plain)
        for begin, end in answers:
            learned = (starts >= begin) & (starts < end)
            places = learned.nonzero().flatten() + moved
            if not torch.equal(ids[places], plain[learned]):
                raise InputError("The processor writes an answer with other tokens than the tokenizer alone does.")
            labels[places] = plain[learned]
        first = last
    return ids, labels


def render(processor: Any, messages: Sequence[Message], generate: bool = False) -> str:
    """A conversation by the chat template; for generation it ends where an answer would begin."""
    return processor.apply_chat_template(conversation(messages), add_generation_prompt=generate, tokenize=False)


def _blocks(messages: Sequence[Message]) -> list[int]:
    """Where to cut so that within a block no medium stands behind an answer: numbers of messages, the last is all."""
    later = [i for i, message in enumerate(messages) if i > 1 and TAG.search(message.content)]
    return [*later, len(messages)]


def _answers(processor: Any, messages: Sequence[Message], first: int) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation, and the begin and end of each answer from message `first` on, in characters."""
    text, found = render(processor, messages), []
    for i, message in enumerate(messages):
        if i < first or message.role != "assistant":
            continue
        closed = render(processor, messages[: i + 1])
        begin = _common(render(processor, messages[:i], generate=True), closed)
        end = _common(closed.rstrip("\n"), text)
        asks_on = render(processor, messages[: i + 1], generate=True) == closed
        if asks_on or message.content.strip() not in closed[begin:end]:
            raise InputError(
                f"The chat template does not tell where the answer {message.content[:40]!r} begins and ends: give the "
                "model one that ends a prompt where the answer begins, and writes that end only when it is asked to."
            )
        found.append((begin, end))
    return text, found


def _common(left: str, right: str) -> int:
    """Length of the common beginning of two texts."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def _tokens(processor: Any, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of a text as it stands, and the character at which each begins."""
    tokens = processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return torch.tensor(tokens["input_ids"]), torch.tensor([start for start, _ in tokens["offset_mapping"]])
