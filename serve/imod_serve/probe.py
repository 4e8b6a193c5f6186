"""Questions asked of a server before it counts as ready: does a picture, sound or video reach the model, and does the
model look at it?

A server that drops a medium still answers, and sounds sure of itself. It gives itself away twice: the prompt is not
longer by the medium's placeholder tokens, or another medium of the same size leaves the first token's probabilities as
they were.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imod_core.errors import CheckFailed
from imod_serve.client import Client
from imod_serve.messages import Turn, turn_messages

QUESTION = "What is this?"
SIDE = 64
"""Pixels of the probe's pictures and videos."""
BEST_TOKENS = 10
"""Whose probabilities are compared; vLLM tells up to 20 if not told otherwise."""
LEAST_CHANGE = 1e-4
"""Of a log probability. Repeats of one question differ by 1e-6 in float32; where they differ more, that counts."""

Logprobs = dict[str, float]
"""Log probability of the likeliest first tokens of an answer."""


@dataclass(frozen=True)
class Findings:
    """What the probe saw, by kind of question: `text` and the modalities."""

    tokens: dict[str, int]
    """In the prompt."""
    changes: dict[str, float]
    """Largest difference of a first token's log probability under another medium; modalities alone."""

    def __str__(self) -> str:
        tokens = ", ".join(f"{kind} {count}" for kind, count in self.tokens.items())
        changes = ", ".join(f"{kind} {change:.2g}" for kind, change in self.changes.items())
        return f"Prompt tokens of the test questions: {tokens}" + (
            f"; another medium changes the first token's log probabilities by: {changes}" if changes else ""
        )


def probe(client: Client, modalities: Sequence[str]) -> Findings:
    """Ask one question without media, and with two media of each kind.

    Raises CheckFailed naming the modality that does not lengthen the prompt or does not change the answer's logits.
    """
    tokens, changes = {"text": _ask(client)[0]}, {}
    for kind in modalities:
        first, other = EXAMPLES[kind](False), EXAMPLES[kind](True)
        tokens[kind], seen = _ask(client, kind, first)
        if tokens[kind] <= tokens["text"]:
            raise CheckFailed(
                f"The server drops {kind} input: a question with it has {tokens[kind]} prompt tokens, "
                f"without it {tokens['text']}; check the chat template and --limit."
            )
        noise, changes[kind] = (distance(seen, _ask(client, kind, medium)[1]) for medium in (first, other))
        if changes[kind] <= max(LEAST_CHANGE, noise):
            raise CheckFailed(
                f"The model does not look at {kind} input: another {kind} changes the first token's log probabilities "
                f"by {changes[kind]:.1g}, the same one asked again by {noise:.1g}; check the projector's weights."
            )
    return Findings(tokens, changes)


def probe_adapter(client: Client, base: Client, modalities: Sequence[str]) -> float:
    """Largest difference of a first token's log probability between an adapter and its base on the same server.

    Raises CheckFailed if they answer alike, so that the adapter is not loaded or does nothing.
    """
    questions: list[tuple[Any, ...]] = [(), *((kind, EXAMPLES[kind](False)) for kind in modalities)]
    change = max(distance(_ask(client, *question)[1], _ask(base, *question)[1]) for question in questions)
    if change <= LEAST_CHANGE:
        raise CheckFailed(
            f"The adapter does nothing: it changes the first token's log probabilities by {change:.1g}; "
            "check that it is trained, and that it belongs to this base."
        )
    return change


def distance(one: Logprobs, other: Logprobs) -> float:
    """Largest difference over the tokens that both name; infinite if there are none."""
    return max((abs(one[token] - other[token]) for token in one.keys() & other.keys()), default=math.inf)


def picture(other: bool = False) -> bytes:
    """A picture with a colour gradient, or its negative, as PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(_gradient(other)).save(file, "PNG")
    return file.getvalue()


def sound(other: bool = False) -> bytes:
    """One second of a falling tone, or of a hiss, as WAV."""
    import soundfile

    time = np.arange(16_000) / 16_000
    tone = 0.3 * np.sin(2 * np.pi * (880 - 220 * time) * time)
    hiss = np.random.default_rng(0).normal(0, 0.1, len(time))
    file = io.BytesIO()
    soundfile.write(file, hiss if other else tone, 16_000, format="WAV")
    return file.getvalue()


def video(other: bool = False) -> bytes:
    """One second of a moving gradient, or its negative, without sound, as MP4."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for step in range(8):
            frame = av.VideoFrame.from_ndarray(np.roll(_gradient(other), 8 * step, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


EXAMPLES: dict[str, Callable[[bool], bytes]] = {"image": picture, "audio": sound, "video": video}


def _ask(client: Client, kind: str | None = None, medium: bytes = b"") -> tuple[int, Logprobs]:
    """Prompt tokens of a question, and the first token's likeliest values."""
    media: dict[str, Any] = {f"{kind}s": (medium,)} if kind else {}
    messages = turn_messages([Turn("user", QUESTION, **media)])
    with client._explained():
        reply = client._create(messages, 1, 0.0, logprobs=True, top_logprobs=BEST_TOKENS)
    best = reply.choices[0].logprobs.content[0].top_logprobs
    return reply.usage.prompt_tokens, {entry.token: entry.logprob for entry in best}


def _gradient(other: bool) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8."""
    ramp = np.linspace(0, 255, SIDE).astype(np.uint8)
    rows, columns = np.meshgrid(ramp, ramp, indexing="ij")
    picture = np.stack([rows, columns, 255 - rows], axis=-1)
    return 255 - picture if other else picture
