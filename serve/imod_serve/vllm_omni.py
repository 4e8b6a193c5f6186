"""Qwen2.5-Omni in vLLM with the positions that the model was made with, for a video with its sound woven in.

The two signs that open such a video share a position, and so do the two that close it. vLLM (seen in 0.32) leaves the
sound's own signs out of what it numbers: every frame and every sound in between gets the position of its predecessor,
see docs/vllm-differences.md. `SERVED` is vLLM's own class where that is put right.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm.model_executor.models.qwen2_5_omni_thinker import Qwen2_5OmniThinkerForConditionalGeneration as Thinker

SIGNS = 3
"""The sound's beginning, its end and the video's end, numbered together with what lies between."""


class MendedThinker(Thinker):
    """vLLM's thinker, woven videos numbered as in the model's first release."""

    def _compute_interleaved_positions(self, start_idx: int, data: dict[str, Any]) -> tuple[np.ndarray, int]:
        inner, count = Thinker._compute_interleaved_positions(self, start_idx, data)
        opening = np.full((3, 1), start_idx - 1)
        closing = np.full((3, SIGNS - 1), inner[:, -1].max() + 1)
        return np.concatenate([opening, inner, closing], axis=1), count + SIGNS


def woven_positions(thinker: Any) -> list[int]:
    """Positions in time that a class gives to a video of one patch and one sound after four tokens, its first sign
    among them: of the sound's beginning, the patch, the sound, its end and the video's end."""
    sizes = {"grid_t": 1, "grid_h": 1, "grid_w": 1, "t_factor": 1.0, "audio_feature_length": 1}
    config = SimpleNamespace(vision_config=SimpleNamespace(), seconds_per_chunk=2)
    stub = SimpleNamespace(config=config, _compute_audio_token_count=lambda length: 1)
    stub.iter_mm_features = lambda features: iter([(4, "video", {**sizes, "use_audio_in_video": True})])
    stub._compute_interleaved_positions = thinker._compute_interleaved_positions.__get__(stub)
    found, _ = thinker.get_mrope_input_positions(stub, [0] * 9, [])
    return found[0, 4:].tolist()


def _is_right() -> bool:
    try:
        return woven_positions(Thinker) == [3, 4, 4, 5, 5]
    except (AttributeError, KeyError, TypeError):  # another interface: nothing is known to be wrong
        return True


SERVED = Thinker if _is_right() else MendedThinker
