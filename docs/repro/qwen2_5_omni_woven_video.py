"""What vLLM makes of the positions of a Qwen2.5-Omni video with its sound woven in. Needs vLLM, no weights, no GPU.

Four tokens, the last of them <|vision_bos|>, then <|audio_bos|>, a patch at 0 s, a patch at 9/25 s, a sound token,
<|audio_eos|>, <|vision_eos|> and a word.
"""

from types import SimpleNamespace

import vllm
from vllm.model_executor.models.qwen2_5_omni_thinker import Qwen2_5OmniThinkerForConditionalGeneration as Thinker

video = {"grid_t": 2, "grid_h": 1, "grid_w": 1, "t_factor": 9.0, "audio_feature_length": 1, "use_audio_in_video": True}
model = SimpleNamespace(
    config=SimpleNamespace(vision_config=SimpleNamespace(), seconds_per_chunk=2),
    _compute_audio_token_count=lambda length: 1,
    iter_mm_features=lambda features: iter([(4, "video", video)]),
)
model._compute_interleaved_positions = Thinker._compute_interleaved_positions.__get__(model)
positions, _ = Thinker.get_mrope_input_positions(model, [0] * 11, [])
print(f"vLLM {vllm.__version__}:     ", positions[0].tolist())
print("transformers:     [0, 1, 2, 3, 3, 4, 13, 4, 5, 5, 6]")
