"""Qwen2.5-Omni's thinker at tiny size, with its processor."""

from pathlib import Path

import torch
import transformers

from imod_core.avt.tiny import _tokenizer

TOKENS = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
TEMPLATE = """{%- for message in messages -%}<|im_start|>{{ message['role'] }}
{% for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<|vision_bos|><|IMAGE|><|vision_eos|>
{%- elif part['type'] == 'video' -%}<|vision_bos|><|VIDEO|><|vision_eos|>
{%- elif part['type'] == 'audio' -%}<|audio_bos|><|AUDIO|><|audio_eos|>
{%- else -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}<|im_end|>
{% endfor -%}<|im_start|>assistant
"""


def tokenizer():
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer().backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=TOKENS,
    )
    made.add_special_tokens({"additional_special_tokens": list(TOKENS.values())})
    return made


def thinker(tokenizer):
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in TOKENS.items()}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
        "initializer_range": 0.3,
    }
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "initializer_range": 0.3,
    }
    audio = {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "num_mel_bins": 16,
        "output_dim": 32,
        "max_source_positions": 50,
        "n_window": 10,
        "initializer_range": 0.3,
    }
    config = transformers.Qwen2_5OmniThinkerConfig(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
        audio_token_id=ids["audio_token"],
        vision_start_token_id=ids["vision_bos_token"],
        vision_end_token_id=ids["vision_eos_token"],
        audio_start_token_id=ids["audio_bos_token"],
        audio_end_token_id=ids["audio_eos_token"],
    )
    return transformers.Qwen2_5OmniThinkerForConditionalGeneration(config).eval()


def save_thinker(folder: Path) -> Path:
    """A thinker's folder with its processor, as `save_pretrained` writes it."""
    torch.manual_seed(0)
    words = tokenizer()
    thinker(words).save_pretrained(folder)
    transformers.Qwen2_5OmniProcessor(
        transformers.Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 64}),
        transformers.Qwen2VLVideoProcessor(),
        transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=4),
        words,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder
