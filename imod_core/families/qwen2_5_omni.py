"""Qwen2.5-Omni: pictures, sounds, videos. Its thinker is trained; talker and vocoder stay as they are."""

from pathlib import Path
from typing import Any

from imod_core.families import qwen2_5_vl
from imod_core.families.family import Blueprint, Family, Ids
from imod_core.families.templates import chat_template

SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_bos|>", "<|vision_eos|>", "<|vision_pad|>", "<|IMAGE|>"),
    *("<|VIDEO|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>"),
)
AUDIO = {
    "activation_dropout": 0.0,
    "activation_function": "gelu",
    "attention_dropout": 0.0,
    "d_model": 32,
    "dropout": 0.0,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "encoder_layers": 2,
    "initializer_range": 0.1,
    "max_source_positions": 400,
    "model_type": "qwen2_5_omni_audio_encoder",
    "n_window": 10,
    "num_mel_bins": 32,
    "output_dim": 64,
    "scale_embedding": False,
}
SOUNDS = {
    "chunk_length": 8,
    "dither": 0.0,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 32,
    "hop_length": 160,
    "n_fft": 400,
    "n_samples": 128000,
    "nb_max_frames": 800,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": 16000,
}
"""The hub's, for at most 8 seconds in place of 300, in 32 bands in place of 128."""
VOICES = ("Chelsie", "Ethan")
CODES = 64
"""Of speech; the last six are the talker's own signs."""
SPEECH = ("tts_codec_pad_token_id", "tts_codec_start_token_id", "tts_codec_end_token_id", "tts_codec_mask_token_id")


def config(ids: Ids, rows: int) -> dict[str, Any]:
    """config.json: one part for each of the three models."""
    return {
        "architectures": ["Qwen2_5OmniModel"],
        "enable_audio_output": True,
        "enable_talker": True,
        "model_type": "qwen2_5_omni",
        "talker_config": _talker(ids),
        "thinker_config": _thinker(ids, rows),
        "token2wav_config": _token2wav(),
        "torch_dtype": "float32",
    }


def _thinker(ids: Ids, rows: int) -> dict[str, Any]:
    vision = {**qwen2_5_vl.VISION, "embed_dim": 32, "model_type": "qwen2_5_omni_vision_encoder"}
    return {
        "architectures": ["Qwen2OmniNaViTThinkerForConditionalGeneration"],
        "audio_config": AUDIO,
        "audio_end_token_id": ids["<|audio_eos|>"],
        "audio_start_token_id": ids["<|audio_bos|>"],
        "audio_token_index": ids["<|AUDIO|>"],
        "bos_token_id": ids["<|im_start|>"],
        "eos_token_id": ids["<|im_end|>"],
        "image_token_index": ids["<|IMAGE|>"],
        "initializer_range": 0.1,
        "model_type": "qwen2_5_omni_thinker",
        "pad_token_id": ids["<|endoftext|>"],
        "position_id_per_seconds": 25,
        "seconds_per_chunk": 2,
        "text_config": {
            **qwen2_5_vl.TEXT,
            "model_type": "qwen2_5_omni_text",
            "rope_scaling": {"mrope_section": [4, 6, 6], "rope_type": "default", "type": "default"},
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": False,
            "vocab_size": rows,
        },
        "user_token_id": ids["user"],
        "video_token_index": ids["<|VIDEO|>"],
        "vision_config": vision,
        "vision_end_token_id": ids["<|vision_eos|>"],
        "vision_start_token_id": ids["<|vision_bos|>"],
        "vision_token_id": ids["<|vision_pad|>"],
    }


def _talker(ids: Ids) -> dict[str, Any]:
    signs = {name: CODES - len(SPEECH) + n for n, name in enumerate(SPEECH)}
    return {
        **qwen2_5_vl.TEXT,
        "architectures": ["Qwen2OmniTalkerForConditionalGeneration"],
        "attention_dropout": 0.0,
        "audio_end_token_id": ids["<|audio_eos|>"],
        "audio_start_token_id": ids["<|audio_bos|>"],
        "audio_token_index": ids["<|AUDIO|>"],
        "embedding_size": 64,
        "head_dim": 32,
        "hidden_size": 32,
        "image_token_index": ids["<|IMAGE|>"],
        "model_type": "qwen2_5_omni_talker",
        "num_hidden_layers": 1,
        "position_id_per_seconds": 25,
        "rope_scaling": {"mrope_section": [4, 6, 6], "rope_type": "default", "type": "default"},
        "rope_theta": 1000000.0,
        "seconds_per_chunk": 2,
        "spatial_merge_size": 2,
        **signs,
        "tts_text_end_token_id": ids["<tts_text_eod>"],
        "tts_text_pad_token_id": ids["<tts_pad>"],
        "tts_text_start_token_id": ids["<tts_text_bos>"],
        "video_token_index": ids["<|VIDEO|>"],
        "vision_end_token_id": ids["<|vision_eos|>"],
        "vision_start_token_id": ids["<|vision_bos|>"],
        "vocab_size": CODES,
    }


def _token2wav() -> dict[str, Any]:
    vocoder = {
        "mel_dim": 16,
        "model_type": "qwen2_5_omni_bigvgan",
        "resblock_dilation_sizes": [[1, 3, 5]],
        "resblock_kernel_sizes": [3],
        "upsample_initial_channel": 16,
        "upsample_kernel_sizes": [4, 4],
        "upsample_rates": [2, 2],
    }
    diffusion = {
        "block_size": 8,
        "depth": 1,
        "dim": 32,
        "dropout": 0.1,
        "emb_dim": 16,
        "enc_attention_channels": 8,
        "enc_channels": [16, 16, 16, 16, 24],
        "enc_dim": 16,
        "enc_emb_dim": 12,
        "enc_se_channels": 8,
        "enc_res2net_scale": 2,
        "ff_mult": 2,
        "head_dim": 32,
        "heads": 2,
        "hidden_size": 32,
        "look_ahead_layers": [0],
        "look_backward_layers": [0],
        "mel_dim": 16,
        "model_type": "qwen2_5_omni_dit",
        "num_attention_heads": 2,
        "num_embeds": CODES,
        "num_hidden_layers": 1,
        "repeats": 2,
    }
    return {"bigvgan_config": vocoder, "dit_config": diffusion, "model_type": "qwen2_5_omni_token2wav"}


def voices(folder: Path) -> None:
    """spk_dict.pt: for each voice a first token, an embedding and a spectrogram, random, as tensors alone."""
    import torch

    def voice(seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        draw = {"cond": (1, 12), "ref_mel": (1, 24, 16)}
        return {"bos_token": torch.tensor(seed), **{k: torch.randn(s, generator=generator) for k, s in draw.items()}}

    torch.save({name: voice(seed) for seed, name in enumerate(VOICES)}, folder / "spk_dict.pt")


TOKENIZER = {
    **qwen2_5_vl.TOKENIZER,
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
    "audio_token": "<|AUDIO|>",
    "extra_special_tokens": {
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
        "audio_token": "<|AUDIO|>",
        "image_token": "<|IMAGE|>",
        "video_token": "<|VIDEO|>",
        "vision_bos_token": "<|vision_bos|>",
        "vision_eos_token": "<|vision_eos|>",
    },
    "image_token": "<|IMAGE|>",
    "processor_class": "Qwen2_5OmniProcessor",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
}

FAMILY = Family(
    name="qwen2.5-omni",
    title="Qwen2.5-Omni",
    model_type="qwen2_5_omni",
    trains="Qwen2_5OmniThinkerForConditionalGeneration",
    serves="Qwen2_5OmniThinkerForConditionalGeneration",
    core="thinker_config",
    left_alone=("talker.", "token2wav."),
    vllm_owner="thinker.",
    sound_of_video="interleaved",
    graphs=True,
    blueprint=Blueprint(
        trainer="byte_level",
        specials=SPECIALS,
        tokenizer=TOKENIZER,
        config=config,
        model="Qwen2_5OmniForConditionalGeneration",
        generation=lambda ids: {
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "talker_max_new_tokens": 64,
        },
        template=chat_template(
            {
                "image": "<|vision_bos|><|IMAGE|><|vision_eos|>",
                "video": "<|vision_bos|><|VIDEO|><|vision_eos|>",
                "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
            },
            system="You are a helpful assistant.",
        ),
        template_file="chat_template.json",
        files={
            "preprocessor_config.json": {**qwen2_5_vl.PICTURES, **SOUNDS, "processor_class": "Qwen2_5OmniProcessor"}
        },
        finish=voices,
    ),
)
