"""How the frames of a video are to be turned, by the display matrix that phones and cameras write beside them."""

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Orientation:
    """What makes a decoded frame upright: first the mirror, then the turns."""

    mirrored: bool = False
    """Left and right change places."""
    quarter_turns: int = 0
    """Counter-clockwise, 0 to 3."""

    def upright(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pixels (H, W, 3) as they are to be seen; a view where it can be."""
        return np.rot90(pixels[:, ::-1] if self.mirrored else pixels, self.quarter_turns)

    def turned(self, size: tuple[int, int]) -> tuple[int, int]:
        """A width and height as they are after the turns, or were before them."""
        return size if self.quarter_turns % 2 == 0 else (size[1], size[0])


def orientation(frame: Any) -> Orientation:
    """Of a decoded frame. Its display matrix takes a point (x, y), y down, to (a x + c y, b x + d y).

    FFmpeg keeps it as nine int32: a b u, c d v, x y w, a to d in 16.16 fixed point (libavutil/display.h). A negative
    determinant is a mirror, which `frame.rotation` takes for a turn.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation()
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    mirrored = a * d - b * c < 0
    if mirrored:  # without its mirror, which comes first
        a, b = -a, -b
    return Orientation(mirrored, round(-math.atan2(b, a) / (math.pi / 2)) % 4)
