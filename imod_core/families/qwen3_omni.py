"""Qwen3-Omni, a mixture of experts: pictures, sounds, videos. The attention of its thinker is trained.

The hub has every expert's matrices as tensors of their own, transformers stacks them at run time and vLLM fuses them:
the experts take no adapter here (see docs/families.md), the attention's linears do.
"""

from typing import Any

from imod_core.families import qwen2_5_omni, qwen2_5_vl, qwen3_vl
from imod_core.families.family import ATTENTION_LINEARS, Blueprint, Family, Ids
from imod_core.families.templates import chat_template

SPECIALS = (
    *qwen2_5_vl.SPECIALS,
    *("<think>", "</think>", "<|audio_start|>", "<|audio_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>"),
    "<|audio_pad|>",
)
AUDIO = {
    **{key: value for key, value in qwen2_5_omni.AUDIO.items() if key != "model_type"},
    "conv_chunksize": 500,
    "downsample_hidden_size": 16,
    "model_type": "qwen3_omni_moe_audio_encoder",
    "n_window": 50,
    "n_window_infer": 200,
}
"""Its chunks cannot be shrunken: that 100 frames make 13 tokens is written into transformers and vLLM."""
EXPERTS = {
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
CODES = 64
GROUPS = 2
"""Codebooks of speech."""
ROPE = {"rope_theta": 1000000, "sliding_window": None}


def config(ids: Ids, rows: int) -> dict[str, Any]:
    """config.json: one part for each of the three models, and the ids that pass between them."""
    return {
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
        "assistant_token_id": ids["assistant"],
        "code2wav_config": _code2wav(),
        "dtype": "float32",
        "enable_audio_output": True,
        "im_end_token_id": ids["<|im_end|>"],
        "im_start_token_id": ids["<|im_start|>"],
        "model_type": "qwen3_omni_moe",
        "system_token_id": ids["system"],
        "talker_config": _talker(ids),
        "thinker_config": _thinker(ids, rows),
        "tts_bos_token_id": ids["<tts_text_bos>"],
        "tts_eos_token_id": ids["<tts_text_eod>"],
        "tts_pad_token_id": ids["<tts_pad>"],
        "user_token_id": ids["user"],
    }


def _thinker(ids: Ids, rows: int) -> dict[str, Any]:
    return {
        "audio_config": AUDIO,
        "audio_end_token_id": ids["<|audio_end|>"],
        "audio_start_token_id": ids["<|audio_start|>"],
        "audio_token_id": ids["<|audio_pad|>"],
        "dtype": "float32",
        "image_token_id": ids["<|image_pad|>"],
        "initializer_range": 0.1,
        "model_type": "qwen3_omni_moe_thinker",
        "position_id_per_seconds": 13,
        "seconds_per_chunk": 2,
        "text_config": {
            **qwen3_vl.TEXT,
            **EXPERTS,
            "model_type": "qwen3_omni_moe_text",
            "rope_scaling": {
                "interleaved": True,
                "mrope_interleaved": True,
                "mrope_section": [6, 5, 5],
                "rope_type": "default",
                "type": "default",
            },
            **ROPE,
            "shared_expert_intermediate_size": 0,
            "tie_word_embeddings": False,
            "vocab_size": rows,
        },
        "user_token_id": ids["user"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": {
            **qwen3_vl.VISION,
            "apply_vit_abs_pos_embed": True,
            "image_size": 128,
            "model_type": "qwen3_omni_moe_vision_encoder",
        },
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
    }


def _talker(ids: Ids) -> dict[str, Any]:
    sizes = {**qwen3_vl.TEXT, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    plain = {key: value for key, value in sizes.items() if key != "rope_scaling"}
    signs = (
        "codec_pad_id",
        "codec_bos_id",
        "codec_eos_token_id",
        "codec_nothink_id",
        "codec_think_bos_id",
        "codec_think_eos_id",
    )
    return {
        "accept_hidden_layer": 1,
        "audio_end_token_id": ids["<|audio_end|>"],
        "audio_start_token_id": ids["<|audio_start|>"],
        "audio_token_id": ids["<|audio_pad|>"],
        "code_predictor_config": {
            **plain,
            **ROPE,
            "model_type": "qwen3_omni_moe_talker_code_predictor",
            "num_code_groups": GROUPS,
            "vocab_size": CODES,
        },
        **{name: CODES - len(signs) + n for n, name in enumerate(signs)},
        "image_token_id": ids["<|image_pad|>"],
        "model_type": "qwen3_omni_moe_talker",
        "num_code_groups": GROUPS,
        "position_id_per_seconds": 13,
        "seconds_per_chunk": 2,
        "spatial_merge_size": 2,
        "speaker_id": {"chelsie": 1, "ethan": 2},
        "text_config": {
            **sizes,
            **EXPERTS,
            **ROPE,
            "model_type": "qwen3_omni_moe_talker_text",
            "shared_expert_intermediate_size": 32,
            "vocab_size": CODES,
        },
        "thinker_hidden_size": 64,
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
    }


def _code2wav() -> dict[str, Any]:
    return {
        "attention_bias": False,
        "codebook_size": CODES,
        "decoder_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 48,
        "layer_scale_initial_scale": 0.01,
        "max_position_embeddings": 800,
        "model_type": "qwen3_omni_moe_code2wav",
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "num_quantizers": GROUPS,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000,
        "sliding_window": 72,
        "upsample_rates": [2, 2],
        "upsampling_ratios": [2, 2],
    }


PICTURES = {**qwen2_5_vl.PICTURES, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 16}

FAMILY = Family(
    name="qwen3-omni",
    title="Qwen3-Omni",
    model_type="qwen3_omni_moe",
    trains="Qwen3OmniMoeThinkerForConditionalGeneration",
    serves="Qwen3OmniMoeThinkerForConditionalGeneration",
    core="thinker_config",
    linears=ATTENTION_LINEARS,
    # PEFT makes bare names of a pattern for models whose experts transformers stacks, and would adapt the ears too.
    exclude=rf"(?!(?:{ATTENTION_LINEARS})$).*",
    left_alone=("talker.", "code2wav."),
    sound_of_video="interleaved",
    reasons={"vllm:lora": "not on a CPU: vLLM 0.32's LoRA beside experts is a Triton kernel"},
    blueprint=Blueprint(
        trainer="byte_level",
        specials=SPECIALS,
        tokenizer={
            **qwen2_5_vl.TOKENIZER,
            "extra_special_tokens": {
                "audio_bos_token": "<|audio_start|>",
                "audio_eos_token": "<|audio_end|>",
                "audio_token": "<|audio_pad|>",
                "image_token": "<|image_pad|>",
                "video_token": "<|video_pad|>",
                "vision_bos_token": "<|vision_start|>",
                "vision_eos_token": "<|vision_end|>",
            },
        },
        config=config,
        model="Qwen3OmniMoeForConditionalGeneration",
        generation=lambda ids: {
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "talker_max_new_tokens": 64,
        },
        template=chat_template({**qwen3_vl.MEDIA, "audio": "<|audio_start|><|audio_pad|><|audio_end|>"}),
        template_file="chat_template.json",
        files={
            "preprocessor_config.json": {**PICTURES, **qwen2_5_omni.SOUNDS, "processor_class": "Qwen3OmniMoeProcessor"}
        },
    ),
)
