"""Media with their contents taken away: of the same size and length, so of as many tokens."""

from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from imod_core.media.video import Clip

GREY = 127
"""Of 255: the middle."""


def blank_medium(medium: Any) -> Any:
    """A decoded picture, sound or `Clip`, grey or silent."""
    if isinstance(medium, Image.Image):
        return Image.new("RGB", medium.size, (GREY,) * 3)
    if isinstance(medium, Clip):
        return replace(medium, frames=np.full_like(medium.frames, GREY))
    return np.zeros_like(medium)
