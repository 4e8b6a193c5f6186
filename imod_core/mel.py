"""Log-mel spectrograms in numpy, as Whisper's feature extractor makes them.

Letters: `n` samples, `F` frames, `M` mel bands, `K` frequencies (`n_fft / 2 + 1`).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOOR = 1e-10
"""Least power before the logarithm."""
RANGE = 8.0
"""Decades below the loudest that are kept."""
TOP_HZ = 8000.0
LINEAR_HZ, LINEAR_MELS, LOG_STEP = 1000.0, 15.0, np.log(6.4) / 27
"""Slaney's scale: linear below 1000 Hz (mel 15), then 27 mels for a factor of 6.4."""


@dataclass(frozen=True)
class MelSettings:
    """The feature extractor's numbers; read from its JSON."""

    bands: int = 80
    rate: int = 16_000
    """Hz."""
    hop: int = 160
    """Samples a frame."""
    n_fft: int = 400
    samples: int = 480_000
    """Of one window; shorter sounds are filled with silence."""

    @classmethod
    def read(cls, values: dict[str, Any]) -> "MelSettings":
        """From a WhisperFeatureExtractor's JSON."""
        rate = values.get("sampling_rate", cls.rate)
        return cls(
            bands=values.get("feature_size", cls.bands),
            rate=rate,
            hop=values.get("hop_length", cls.hop),
            n_fft=values.get("n_fft", cls.n_fft),
            samples=int(values.get("chunk_length", 30) * rate),
        )


def log_mel(sound: NDArray[np.float32], settings: MelSettings) -> NDArray[np.float32]:
    """`(n,)` to `(M, n / hop)`: power in mel bands, log10, the loudest `RANGE` decades, shifted to about [-1, 1]."""
    half = settings.n_fft // 2
    padded = np.pad(sound.astype(np.float64), half, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, settings.n_fft)[:: settings.hop][: -1 or None]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(settings.n_fft) / settings.n_fft)
    power = np.abs(np.fft.rfft(frames * window, axis=-1)) ** 2
    levels = np.log10(np.maximum(power @ mel_filters(settings).T, FLOOR)).T
    return ((np.maximum(levels, levels.max() - RANGE) + 4.0) / 4.0).astype(np.float32)


@lru_cache(maxsize=8)
def mel_filters(settings: MelSettings) -> NDArray[np.float64]:
    """Triangles `(M, K)` evenly spaced on Slaney's scale up to 8 kHz, each of area one."""
    edges = _hertz(np.linspace(0.0, _mel(TOP_HZ), settings.bands + 2))
    frequencies = np.linspace(0.0, settings.rate / 2, settings.n_fft // 2 + 1)
    rising = (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequencies) / np.diff(edges)[1:, None]
    area = (edges[2:] - edges[:-2])[:, None] / 2
    return np.maximum(0.0, np.minimum(rising, falling)) / area


def _mel(hertz: float) -> float:
    if hertz < LINEAR_HZ:
        return hertz * LINEAR_MELS / LINEAR_HZ
    return LINEAR_MELS + float(np.log(hertz / LINEAR_HZ) / LOG_STEP)


def _hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = mels * LINEAR_HZ / LINEAR_MELS
    return np.where(mels < LINEAR_MELS, linear, LINEAR_HZ * np.exp(LOG_STEP * (mels - LINEAR_MELS)))
