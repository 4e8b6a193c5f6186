"""Qwen3-VL: pictures and videos, with time stamps between a video's frames. The hub has the names of run time."""

from typing import Any

from imod_core.families import qwen2_5_vl
from imod_core.families.family import Blueprint, Family, Ids
from imod_core.families.templates import chat_template

TEXT = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.1,
    "intermediate_size": 96,
    "max_position_embeddings": 4096,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"},
    "rope_theta": 5000000,
    "use_cache": True,
}
VISION = {
    "deepstack_visual_indexes": [0, 1],
    "depth": 3,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 32,
    "in_channels": 3,
    "initializer_range": 0.1,
    "intermediate_size": 48,
    "num_heads": 2,
    "num_position_embeddings": 64,
    "out_hidden_size": 64,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
FRAMES = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "merge_size": 2,
    "patch_size": 16,
    "processor_class": "Qwen3VLProcessor",
    "temporal_patch_size": 2,
}
MEDIA = {
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "video": "<|vision_start|><|video_pad|><|vision_end|>",
}


def config(ids: Ids, rows: int) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": ids["<|image_pad|>"],
        "model_type": "qwen3_vl",
        "text_config": {
            **TEXT,
            "bos_token_id": ids["<|endoftext|>"],
            "dtype": "float32",
            "eos_token_id": ids["<|im_end|>"],
            "model_type": "qwen3_vl_text",
            "vocab_size": rows,
        },
        "tie_word_embeddings": True,
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": {**VISION, "model_type": "qwen3_vl"},
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
    }


FAMILY = Family(
    name="qwen3-vl",
    title="Qwen3-VL",
    model_type="qwen3_vl",
    trains="Qwen3VLForConditionalGeneration",
    serves="Qwen3VLForConditionalGeneration",
    blueprint=Blueprint(
        trainer="byte_level",
        specials=(*qwen2_5_vl.SPECIALS, "<think>", "</think>"),
        tokenizer={**qwen2_5_vl.TOKENIZER, "model_max_length": 262144},
        config=config,
        model="Qwen3VLForConditionalGeneration",
        generation=lambda ids: {**qwen2_5_vl.generation(ids), "temperature": 0.7, "top_k": 20, "top_p": 0.8},
        template=chat_template(MEDIA),
        template_file="chat_template.json",
        files={
            "preprocessor_config.json": {
                **FRAMES,
                "image_processor_type": "Qwen2VLImageProcessorFast",
                "size": {"longest_edge": 64 * 32 * 32, "shortest_edge": 4 * 32 * 32},
            },
            "video_preprocessor_config.json": {
                **FRAMES,
                "size": {"longest_edge": 256 * 32 * 32, "shortest_edge": 4 * 32 * 32},
                "video_processor_type": "Qwen3VLVideoProcessor",
            },
        },
    ),
)
