"""Which frames of a video the Qwen processors read, as `imod_core.sampling` chooses them, without transformers."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from imod_core.errors import InputError
from imod_core.sampling import FPS

LIMITS = {"min_frames": 4, "max_frames": 768}
"""Qwen2VLVideoProcessor's own, where the settings do not say."""


@dataclass(frozen=True)
class QwenFrames:
    """`sample_frames` of transformers' Qwen2VLVideoProcessor: `num_frames` of any video, or `fps` of each second."""

    num_frames: int | None
    fps: float
    min_frames: int
    max_frames: int
    depth: int
    """Frames that share a patch: as many, or a multiple of them, are taken."""

    def __post_init__(self) -> None:
        most = self.max_frames if self.num_frames is None else self._whole(round, self.num_frames)
        if most < self.depth or self.fps <= 0:
            raise InputError(
                f"The video_processor in processor_config.json takes {self.num_frames or self.max_frames} frames of a "
                f"video and {self.fps:g} a second: expected at least {self.depth}, and more than 0 a second."
            )

    @classmethod
    def read(cls, settings: dict[str, Any], depth: int) -> "QwenFrames":
        """From the `video_processor` of processor_config.json.

        Raises:
            InputError: it takes no frames.
        """
        limits = {name: settings.get(name, default) for name, default in LIMITS.items()}
        return cls(settings.get("num_frames") or None, float(settings.get("fps") or FPS), depth=depth, **limits)

    def places(self, total: int, fps: float) -> list[int]:
        """Indices of the frames to read of a video with `total` frames at `fps`."""
        if total < 2 or (self.num_frames is not None and total <= self.num_frames):
            return list(range(total))
        step = total / self._count(total, fps)
        places = (np.arange(math.ceil(total / step)) * step).astype(np.float32)  # as torch.arange makes them
        return np.minimum(places.astype(int), total - 1).tolist()

    def _count(self, total: int, fps: float) -> int:
        if self.num_frames is not None:
            return self._whole(round, self.num_frames)
        most = self._whole(math.floor, min(self.max_frames, total))
        wanted = min(max(total / fps * self.fps, self.min_frames), most, total)
        return self._whole(math.floor, wanted)

    def _whole(self, towards: Any, frames: float) -> int:
        """`frames` as a multiple of `depth`."""
        return towards(frames / self.depth) * self.depth
