"""Gemma 4 with eyes and ears (the E2B and E4B kind): pictures, sounds, videos as frames with time stamps."""

from typing import Any

from imod_core.families.family import Blueprint, Family, Ids
from imod_core.families.templates import chat_template

SPECIALS = (
    *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>", "<|image>", "<image|>", "<|image|>"),
    *("<|audio>", "<audio|>", "<|audio|>", "<|video|>"),
)
KINDS = ("sliding_attention", "full_attention", "sliding_attention", "full_attention")
"""Of the layers' attention; the last two take keys and values from the layers of their kind before them."""
TEXT = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_k_eq_v": False,
    "bos_token_id": 2,
    "dtype": "float32",
    "enable_moe_block": False,
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "global_head_dim": 64,
    "head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 64,
    "hidden_size_per_layer_input": 16,
    "initializer_range": 0.1,
    "intermediate_size": 96,
    "layer_types": list(KINDS),
    "max_position_embeddings": 4096,
    "model_type": "gemma4_text",
    "num_attention_heads": 4,
    "num_hidden_layers": len(KINDS),
    "num_key_value_heads": 1,
    "num_kv_shared_layers": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {
        "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "sliding_window": 512,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": None,
    "use_cache": True,
    "use_double_wide_mlp": True,
}
VISION = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "default_output_length": 70,
    "dtype": "float32",
    "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 32,
    "initializer_range": 0.1,
    "intermediate_size": 64,
    "max_position_embeddings": 4096,
    "model_type": "gemma4_vision",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "position_embedding_size": 512,
    "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
    "standardize": False,
    "use_clipped_linears": True,
}
AUDIO = {
    "attention_chunk_size": 12,
    "attention_context_left": 13,
    "attention_context_right": 0,
    "attention_invalid_logits_value": -1000000000.0,
    "attention_logit_cap": 50.0,
    "conv_kernel_size": 5,
    "dtype": "float32",
    "gradient_clipping": 10000000000.0,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.1,
    "model_type": "gemma4_audio",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "output_proj_dims": 48,
    "residual_weight": 0.5,
    "rms_norm_eps": 1e-06,
    "subsampling_conv_channels": [32, 4],
    "use_clipped_linears": True,
}
"""The first number of channels has to be the number of mel bands."""


def config(ids: Ids, rows: int) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "audio_config": AUDIO,
        "audio_token_id": ids["<|audio|>"],
        "boa_token_id": ids["<|audio>"],
        "boi_token_id": ids["<|image>"],
        "dtype": "float32",
        "eoa_token_id": ids["<audio|>"],
        "eoa_token_index": ids["<audio|>"],
        "eoi_token_id": ids["<image|>"],
        "eos_token_id": [ids["<eos>"], ids["<turn|>"]],
        "image_token_id": ids["<|image|>"],
        "initializer_range": 0.1,
        "model_type": "gemma4",
        "text_config": {**TEXT, "vocab_size": rows, "vocab_size_per_layer_input": rows},
        "tie_word_embeddings": True,
        "video_token_id": ids["<|video|>"],
        "vision_config": VISION,
        "vision_soft_tokens_per_image": 70,
    }


def pass_frame_counts(model: Any) -> None:
    """Let videos through `model`'s forward, which in transformers 5.19 keeps the number of their frames to itself.

    A hook encodes the videos and hands the result on; a transformers that passes the numbers is not disturbed.
    """

    def encode(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        pixels, counts = kwargs.get("pixel_values_videos"), kwargs.get("num_frames_per_video")
        done = kwargs.get("mm_encoder_outputs") or {}
        if pixels is None or counts is None or done.get("video") is not None:
            return args, kwargs
        found = {**done, "video": module.model.get_video_features(pixels, kwargs.get("video_position_ids"), counts)}
        if (pictures := kwargs.get("pixel_values")) is not None:
            found["image"] = module.model.get_image_features(pictures, kwargs.get("image_position_ids"))
        # The model takes pixels or what was made of them, not both.
        rest = {key: value for key, value in kwargs.items() if not key.startswith("pixel_values")}
        return args, {**rest, "mm_encoder_outputs": found}

    model.register_forward_pre_hook(encode, with_kwargs=True)


PICTURES = {
    "do_convert_rgb": True,
    "do_normalize": False,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.0, 0.0, 0.0],
    "image_std": [1.0, 1.0, 1.0],
    "max_soft_tokens": 70,
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
}
SOUNDS = {
    "feature_extractor_type": "Gemma4AudioFeatureExtractor",
    "feature_size": 32,
    "frame_length_ms": 20.0,
    "hop_length_ms": 10.0,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": 16000,
}
PROCESSOR = {
    "audio_ms_per_token": 40,
    "audio_seq_length": 750,
    "feature_extractor": SOUNDS,
    "image_processor": {**PICTURES, "image_processor_type": "Gemma4ImageProcessor", "image_seq_length": 70},
    "image_seq_length": 70,
    "processor_class": "Gemma4Processor",
    "video_processor": {
        **PICTURES,
        "do_sample_frames": True,
        "num_frames": 8,
        "return_metadata": False,
        "video_processor_type": "Gemma4VideoProcessor",
    },
}
TOKENIZER = {
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "boi_token": "<|image>",
    "bos_token": "<bos>",
    "clean_up_tokenization_spaces": False,
    "eoa_token": "<audio|>",
    "eoi_token": "<image|>",
    "eos_token": "<eos>",
    "image_token": "<|image|>",
    "mask_token": "<mask>",
    "model_max_length": 1000000000000000019884624838656,
    "pad_token": "<pad>",
    "padding_side": "left",
    "processor_class": "Gemma4Processor",
    "tokenizer_class": "GemmaTokenizer",
    "unk_token": "<unk>",
}

FAMILY = Family(
    name="gemma4",
    title="Gemma 4",
    model_type="gemma4",
    trains="Gemma4ForConditionalGeneration",
    serves="Gemma4ForConditionalGeneration",
    sound_of_video="beside",
    blueprint=Blueprint(
        trainer="gemma",
        specials=SPECIALS,
        tokenizer=TOKENIZER,
        config=config,
        model="Gemma4ForConditionalGeneration",
        generation=lambda ids: {
            "bos_token_id": ids["<bos>"],
            "do_sample": True,
            "eos_token_id": [ids["<eos>"], ids["<turn|>"]],
            "pad_token_id": ids["<pad>"],
            "temperature": 1.0,
            "top_k": 64,
            "top_p": 0.95,
        },
        template=chat_template(
            {"image": "<|image|>", "video": "<|video|>", "audio": "<|audio|>"},
            begin="<|turn>",
            end="<turn|>\n",
            assistant="model",
            start="<bos>",
        ),
        files={"processor_config.json": PROCESSOR},
    ),
)
