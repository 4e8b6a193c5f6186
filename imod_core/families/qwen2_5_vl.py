"""Qwen2.5-VL: pictures and videos. The hub's checkpoint has the language model's names of transformers before 4.52."""

from typing import Any

from imod_core.families.family import Blueprint, Family, Ids
from imod_core.families.templates import chat_template

SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
TEXT = {
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.1,
    "intermediate_size": 96,
    "max_position_embeddings": 4096,
    "max_window_layers": 2,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "use_cache": True,
    "use_sliding_window": False,
}
"""The language model's sizes; a wide spread of random weights, so that what one token changes is seen in the logits."""
VISION = {
    "depth": 3,
    "fullatt_block_indexes": [1],
    "hidden_act": "silu",
    "hidden_size": 32,
    "in_chans": 3,
    "initializer_range": 0.1,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 64,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
    "window_size": 56,
}
PICTURES = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 64 * 28 * 28,
    "merge_size": 2,
    "min_pixels": 4 * 28 * 28,
    "patch_size": 14,
    "temporal_patch_size": 2,
}
"""The hub's, with fewer pixels at most."""


def config(ids: Ids, rows: int) -> dict[str, Any]:
    """config.json, flat as on the hub: the language model's settings stand beside `vision_config`."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        **TEXT,
        "model_type": "qwen2_5_vl",
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vision_config": {**VISION, "model_type": "qwen2_5_vl", "tokens_per_second": 2},
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "vocab_size": rows,
    }


def generation(ids: Ids) -> dict[str, Any]:
    """generation_config.json, as Qwen's chat models have it."""
    return {
        "bos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "do_sample": True,
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "repetition_penalty": 1.05,
        "temperature": 0.000001,
    }


TOKENIZER = {
    "add_bos_token": False,
    "add_prefix_space": False,
    "bos_token": None,
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|im_end|>",
    "errors": "replace",
    "model_max_length": 131072,
    "pad_token": "<|endoftext|>",
    "tokenizer_class": "Qwen2Tokenizer",
    "unk_token": None,
}

FAMILY = Family(
    name="qwen2.5-vl",
    title="Qwen2.5-VL",
    model_type="qwen2_5_vl",
    trains="Qwen2_5_VLForConditionalGeneration",
    serves="Qwen2_5_VLForConditionalGeneration",
    blueprint=Blueprint(
        trainer="byte_level",
        specials=SPECIALS,
        tokenizer=TOKENIZER,
        config=config,
        model="Qwen2_5_VLForConditionalGeneration",
        generation=generation,
        template=chat_template(
            {
                "image": "<|vision_start|><|image_pad|><|vision_end|>",
                "video": "<|vision_start|><|video_pad|><|vision_end|>",
            },
            system="You are a helpful assistant.",
        ),
        template_file="chat_template.json",
        files={"preprocessor_config.json": {**PICTURES, "processor_class": "Qwen2_5_VLProcessor"}},
    ),
)
