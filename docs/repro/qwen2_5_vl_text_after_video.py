"""Where transformers lets the text after a Qwen2.5-VL video begin. Needs transformers and torch, no weights.

A video of 8 temporal steps of one second, 2 × 2 merged patches, then one text token. The model's first release (and
vLLM) put that token at 17: one after the last moment, 1 + 2 · 7 = 15, and the sign that closes the video.
"""

from types import SimpleNamespace

import torch
import transformers
from transformers import Qwen2_5_VLModel

TEXT, VIDEO = 0, 2
kinds = torch.tensor([[TEXT, *[VIDEO] * 8 * 4, TEXT, TEXT]])
model = SimpleNamespace(
    config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=2)),
    get_vision_position_ids=lambda *args, **kwargs: Qwen2_5_VLModel.get_vision_position_ids(None, *args, **kwargs),
)
positions, _ = Qwen2_5_VLModel.get_rope_index(
    model, kinds, kinds, video_grid_thw=torch.tensor([[8, 4, 4]]), second_per_grid_ts=torch.ones(1)
)
print(f"transformers {transformers.__version__}: last moment {positions[0, 0, -3]}, text at {positions[0, 0, -1]}")
print("first release: last moment 15, text at 17")
