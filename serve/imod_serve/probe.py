"""Questions asked of a server before it counts as ready: does a picture, sound or video reach the model at
all?

A server that drops a medium still answers, and sounds sure of itself. What gives it away is the length of the
prompt: every medium adds its placeholder tokens to it.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np

from imod_core.errors import CheckFailed
from imod_serve.client import Client

QUESTION = "What is this?"
SIDE = 64
"""Pixels of the probe's picture and video."""


def probe(client: Client, modalities: tuple[str, ...]) -> dict[str, int]:
    """Prompt tokens of one question without media (`text`) and one with a medium of each kind.

    Raises CheckFailed naming the modality that does not lengthen the prompt.
    """
    found = {"text": client.ask(QUESTION, max_tokens=1).prompt_tokens}
    for kind in modalities:
        media: dict[str, Any] = {f"{kind}s": [EXAMPLES[kind]()]}
        found[kind] = client.ask(QUESTION, max_tokens=1, **media).prompt_tokens
        if found[kind] <= found["text"]:
            raise CheckFailed(
                f"The server drops {kind} input: a question with it has {found[kind]} prompt tokens, "
                f"without it {found['text']}; check the chat template and --limit-mm-per-prompt."
            )
    return found


def picture() -> bytes:
    """A picture with a colour gradient, as PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(_gradient()).save(file, "PNG")
    return file.getvalue()


def sound() -> bytes:
    """One second of a falling tone, as WAV."""
    import soundfile

    time = np.arange(16_000) / 16_000
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * (880 - 220 * time) * time), 16_000, format="WAV")
    return file.getvalue()


def video() -> bytes:
    """One second of a moving gradient without sound, as MP4."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for step in range(8):
            frame = av.VideoFrame.from_ndarray(np.roll(_gradient(), 8 * step, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def _gradient() -> np.ndarray:
    """(SIDE, SIDE, 3) uint8."""
    ramp = np.linspace(0, 255, SIDE).astype(np.uint8)
    rows, columns = np.meshgrid(ramp, ramp, indexing="ij")
    return np.stack([rows, columns, 255 - rows], axis=-1)


EXAMPLES: dict[str, Callable[[], bytes]] = {"image": picture, "audio": sound, "video": video}
