"""AVT on the text backbones of the paper, and on SmolLM2: their shrunken folders, and the composed model upon them."""

from collections.abc import Callable
from typing import Any

from imod_core.families import qwen2_5_vl
from imod_core.families.family import Blueprint, Family, Ids
from imod_core.families.templates import chat_template

SIZES = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.2,
    "intermediate_size": 96,
    "max_position_embeddings": 2048,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "torch_dtype": "float32",
    "use_cache": True,
}
PLAIN = chat_template({}, system="You are a helpful assistant.")


def _config(model_type: str, architecture: str, begin: str, end: str, **own: Any) -> Callable[[Ids, int], dict]:
    """config.json of a text model with the ids of the tokens `begin` and `end`."""

    def config(ids: Ids, rows: int) -> dict[str, Any]:
        signs = {"bos_token_id": ids[begin], "eos_token_id": ids[end], "vocab_size": rows}
        return {"architectures": [architecture], **SIZES, "model_type": model_type, **own, **signs}

    return config


LLAMA2 = Blueprint(
    trainer="llama",
    specials=("<unk>", "<s>", "</s>"),
    tokenizer={
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": False,
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": None,
        "padding_side": "right",
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    },
    config=_config(
        "llama", "LlamaForCausalLM", "<s>", "</s>",
        num_key_value_heads=2, pretraining_tp=1, rms_norm_eps=1e-05, rope_scaling=None, tie_word_embeddings=False,
    ),
    model="LlamaForCausalLM",
    generation=lambda ids: {
        "bos_token_id": ids["<s>"], "do_sample": True, "eos_token_id": ids["</s>"], "pad_token_id": 0,
        "temperature": 0.6, "top_p": 0.9,
    },
    template=chat_template({}, begin="[INST] ", end=" [/INST]\n", start="<s>"),
    template_file=None,
)  # fmt: skip
"""LLaMA-2: as many key as query heads, a head of its own."""

QWEN2 = Blueprint(
    trainer="byte_level",
    specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    tokenizer=qwen2_5_vl.TOKENIZER,
    config=_config(
        "qwen2", "Qwen2ForCausalLM", "<|endoftext|>", "<|im_end|>",
        max_window_layers=3, rms_norm_eps=1e-06, rope_theta=1000000.0, sliding_window=2048, tie_word_embeddings=False,
        use_sliding_window=False,
    ),
    model="Qwen2ForCausalLM",
    generation=qwen2_5_vl.generation,
    template=PLAIN,
    template_file=None,
)  # fmt: skip
"""Qwen2: biases on queries, keys and values."""

QWEN3 = Blueprint(
    trainer="byte_level",
    specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    tokenizer=qwen2_5_vl.TOKENIZER,
    config=_config(
        "qwen3", "Qwen3ForCausalLM", "<|endoftext|>", "<|im_end|>",
        attention_bias=False, head_dim=32, max_window_layers=3, num_attention_heads=4, num_key_value_heads=2,
        rms_norm_eps=1e-06, rope_scaling=None, rope_theta=1000000, sliding_window=None, tie_word_embeddings=True,
        use_sliding_window=False,
    ),
    model="Qwen3ForCausalLM",
    generation=lambda ids: {**qwen2_5_vl.generation(ids), "temperature": 0.6, "top_k": 20, "top_p": 0.95},
    template=chat_template({}),
    template_file=None,
)  # fmt: skip
"""Qwen3: queries and keys are normalised, heads wider than hidden size over their number."""

SMOLLM2 = Blueprint(
    trainer="byte_level",
    specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    tokenizer={
        "add_prefix_space": False,
        "bos_token": "<|im_start|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 8192,
        "pad_token": "<|im_end|>",
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": "<|endoftext|>",
        "vocab_size": 49152,
    },
    config=_config(
        "llama", "LlamaForCausalLM", "<|im_start|>", "<|im_end|>",
        attention_bias=False, is_llama_config=True, mlp_bias=False, pretraining_tp=1, rms_norm_eps=1e-05,
        rope_interleaved=False, rope_scaling=None, rope_theta=100000, tie_word_embeddings=True,
    ),
    model="LlamaForCausalLM",
    generation=lambda ids: {
        "bos_token_id": ids["<|im_start|>"], "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|im_end|>"],
    },
    template=chat_template({}, system="You are a helpful AI assistant."),
    template_file=None,
)  # fmt: skip
"""SmolLM2: a small LLaMA with tied embeddings."""

BACKBONES = {"llama2": LLAMA2, "qwen2": QWEN2, "qwen3": QWEN3, "smollm2": SMOLLM2}
"""Text models by name: `imod base build --shrunken NAME` writes the folder that `--llm` takes."""
TITLES = {"llama2": "LLaMA-2", "qwen2": "Qwen2", "qwen3": "Qwen3", "smollm2": "SmolLM2"}

FAMILIES = tuple(
    Family(
        name=f"avt-{name}",
        title=f"AVT on {TITLES[name]}",
        model_type="avt",
        trains="AvtForConditionalGeneration",
        serves="AvtForConditionalGeneration",
        backbone=backbone,
        sound_of_video="beside",
        graphs=True,
    )
    for name, backbone in BACKBONES.items()
)
