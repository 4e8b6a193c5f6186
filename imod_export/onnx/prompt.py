"""What a question becomes before any graph runs: token ids, positions and inputs for the encoders."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray
Arrange = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def flat(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """`(…, D)` to `(tokens, D)`, in the order in memory."""
    return features.reshape(-1, features.shape[-1])


@dataclass(frozen=True)
class Encoding:
    """All media of one kind, ready for their encoder."""

    kind: str
    """`image`, `audio` or `video`."""
    component: str
    """The graph that takes them."""
    feeds: dict[str, Array]
    """Its inputs."""
    token_id: int
    """The placeholder that each of its embeddings replaces."""
    arrange: Arrange = flat
    """From the graph's output to `(tokens, D)` in the order of the placeholders."""


@dataclass(frozen=True)
class Prompt:
    """A question for the runtime."""

    ids: list[int]
    positions: NDArray[np.int64]
    """`(L,)`, or `(3, L)` under M-RoPE."""
    next_position: int
    """Of the first token of the answer."""
    encodings: list[Encoding] = field(default_factory=list)
