"""Qwen2.5-Omni in vLLM with the positions that the model was made with, for a video with its sound woven in.

The two signs that open such a video share a position, and so do the two that close it. vLLM (seen in 0.32) leaves the
sound's own signs out of what it numbers: every frame and every sound in between gets the position of its predecessor,
see docs/vllm-differences.md. `SERVED` is vLLM's own class where that is put right.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm.model_executor.models.qwen2_5_omni_thinker import Qwen2_5OmniThinkerForConditionalGeneration as Thinker

SIGNS = 3
"""The sound's beginning, its end and the video's end, numbered together with what lies between."""


class MendedThinker(Thinker):
    """vLLM's thinker, woven videos numbered as in the model's first release."""

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[torch.Tensor, int]:
        positions, _ = Thinker.get_mrope_input_positions(self, input_tokens, mm_features)
        for offset, kind, data in self.iter_mm_features(mm_features):
            if kind == "video" and data["use_audio_in_video"]:
                # What follows goes on from the closing signs, even where the video's last frames stand further on.
                end = offset + self._compute_interleaved_positions(0, data)[1]
                positions[:, end:] += positions[0, end - 1] + 1 - positions[0, end : end + 1]
        return positions, int(positions.max()) + 1 - len(input_tokens)

    def _compute_interleaved_positions(self, start_idx: int, data: dict[str, Any]) -> tuple[np.ndarray, int]:
        inner, count = Thinker._compute_interleaved_positions(self, start_idx, data)
        opening = np.full((3, 1), start_idx - 1)
        closing = np.full((3, SIGNS - 1), inner[:, -1].max() + 1)
        return np.concatenate([opening, inner, closing], axis=1), count + SIGNS


def woven_positions(thinker: Any) -> list[int]:
    """Positions in time that a class gives to a video of two moments and one sound after four tokens: of the sound's
    beginning, the moments, the sound, its end, the video's end and a last token. The second moment comes late."""
    sizes = {"grid_t": 2, "grid_h": 1, "grid_w": 1, "t_factor": 9.0, "audio_feature_length": 1}
    config = SimpleNamespace(vision_config=SimpleNamespace(), seconds_per_chunk=2)
    stub = SimpleNamespace(config=config, _compute_audio_token_count=lambda length: 1)
    stub.iter_mm_features = lambda features: iter([(4, "video", {**sizes, "use_audio_in_video": True})])
    stub._compute_interleaved_positions = thinker._compute_interleaved_positions.__get__(stub)
    found, _ = thinker.get_mrope_input_positions(stub, [0] * 11, [])
    return found[0, 4:].tolist()


def _is_right() -> bool:
    try:
        return woven_positions(Thinker) == [3, 4, 13, 4, 5, 5, 6]
    except (AttributeError, KeyError, TypeError):  # another interface: nothing is known to be wrong
        return True


SERVED = Thinker if _is_right() else MendedThinker
