"""Pictures to pixel values, in numpy what torchvision does inside transformers' processors.

Resizing bytes is integer arithmetic there: filter weights rounded to 16 bits, first along the width, then along the
height, each rounded to bytes. A product of float64 matrices of such integers is exact, so the bytes are the same.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imod_core.errors import InputError

WEIGHT_BITS = 15
"""A weight fits into a signed 16-bit integer."""
MAX_PRECISION = 22
BILINEAR, BICUBIC = 2, 3
"""PIL's numbers of the filters."""


@dataclass(frozen=True)
class PictureSettings:
    """How a processor prepares pictures; read from its JSON."""

    resample: int
    scale: float
    """Byte values times this are in [0, 1]."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: dict[str, int]
    """As the processor has it: `height` and `width`, or limits on the area."""

    @classmethod
    def read(cls, values: dict[str, Any]) -> "PictureSettings":
        """From an image or video processor's JSON.

        Raises:
            InputError: a step that this runtime does not have.
        """
        resample = values.get("resample", BILINEAR)
        if resample not in (BILINEAR, BICUBIC) or values.get("do_center_crop"):
            raise InputError(f"The processor resizes with filter {resample} or crops: expected bilinear or bicubic.")
        mean, std = (tuple(values.get(key) or [0.5] * 3) for key in ("image_mean", "image_std"))
        return cls(resample, values.get("rescale_factor") or 1 / 255, mean, std, dict(values.get("size") or {}))


def resize(picture: NDArray[np.uint8], height: int, width: int, resample: int = BILINEAR) -> NDArray[np.uint8]:
    """`(..., H, W, 3)` to `(..., height, width, 3)`, antialiased."""
    wide = _along(picture, -2, width, resample)
    return _along(wide, -3, height, resample)


def pixel_values(pictures: NDArray[np.uint8], settings: PictureSettings) -> NDArray[np.float32]:
    """`(..., H, W, 3)` bytes to normalised `(..., 3, H, W)`."""
    factor = np.float32(1.0 / settings.scale)
    mean, std = (np.array(values, np.float32) * factor for values in (settings.mean, settings.std))
    return np.ascontiguousarray(np.moveaxis((pictures.astype(np.float32) - mean) / std, -1, -3))


def _along(picture: NDArray[np.uint8], axis: int, size: int, resample: int) -> NDArray[np.uint8]:
    if picture.shape[axis] == size:
        return picture
    weights, precision = _weights(picture.shape[axis], size, resample)
    moved = np.moveaxis(picture, axis, -1).astype(np.float64)
    summed = moved @ weights.T + (1 << (precision - 1))
    bytes_ = np.clip(np.floor(summed / (1 << precision)), 0, 255).astype(np.uint8)
    return np.moveaxis(bytes_, -1, axis)


@lru_cache(maxsize=64)
def _weights(old: int, new: int, resample: int) -> tuple[NDArray[np.float64], int]:
    """Integer weights `(new, old)` and by how many bits they are scaled up."""
    scale = old / new
    stretch = max(scale, 1.0)
    support = (1.0 if resample == BILINEAR else 2.0) * stretch
    centre = scale * (np.arange(new) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), old)
    column = np.arange(old)
    inside = (column >= first[:, None]) & (column < last[:, None])
    shape = _triangle if resample == BILINEAR else _cubic
    weights = np.where(inside, shape((column - centre[:, None] + 0.5) / stretch), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    precision = 0
    while precision < MAX_PRECISION and int(0.5 + weights.max() * (1 << (precision + 1))) < 1 << WEIGHT_BITS:
        precision += 1
    scaled = weights * (1 << precision)
    return np.trunc(scaled + np.copysign(0.5, scaled)), precision


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1 - np.abs(x), 0.0)


def _cubic(x: NDArray[np.float64], a: float = -0.5) -> NDArray[np.float64]:
    """Keys' cubic convolution."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
