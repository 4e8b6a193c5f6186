"""The parts of a model that become graphs: plain modules with tensors in, tensors out, and names for both.

Letters: `B` batch, `L` new tokens, `P` tokens in the cache, `D` width, `H` key-value heads, `d` head width,
`n` pictures, `W` windows of sound.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AttentionInterface

from imod_core.errors import InputError
from imod_export.onnx.layout import AUDIO, DECODER, EMBED, VISION, cache_names

ATTENTION = "imod_onnx"
"""Our attention's name in transformers' registry."""
KINDS = ("avt", "qwen2_5_omni_thinker")
"""Types of models that there are graphs for."""
Axes = dict[int, str]


@dataclass(frozen=True)
class Component:
    """One graph to be."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    """Example inputs; no two dynamic axes are equally long, and none has length 1, which tracing would fix."""
    axes: tuple[Any, ...]
    """Names of the dynamic axes of every input, nested as `args`."""
    inputs: list[str]
    outputs: list[str]


class EmbedTokens(nn.Module):
    """`input_ids (B, L)` to embeddings `(B, L, D)`."""

    def __init__(self, table: nn.Module):
        super().__init__()
        self.table = table

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.table(input_ids)


class AvtVision(nn.Module):
    """Pictures `(n, 3, H, W)` to embeddings `(n, g*g, D)`, columns from the left, each from the top."""

    def __init__(self, model: Any):
        super().__init__()
        self.model: Any = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model.get_image_features(pixel_values).pooler_output


class AvtAudio(nn.Module):
    """Windows of sound `(W, mels, frames)` to embeddings `(W, tokens, D)`."""

    def __init__(self, model: Any):
        super().__init__()
        self.model: Any = model

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        return self.model.get_audio_features(input_features[:, None]).pooler_output


class Decoder(nn.Module):
    """The LLM with its head and its cache as tensors; see `layout` for inputs and outputs."""

    def __init__(self, language_model: nn.Module, head: nn.Module):
        super().__init__()
        self.language_model, self.head = language_model, head

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, ...]:
        cache = TensorCache(past)
        output = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=additive_mask(attention_mask, inputs_embeds.shape[1]),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return self.head(output.last_hidden_state), *cache.tensors


class TensorCache:
    """What the attention layers of transformers ask of a cache, over plain tensors `(B, H, P, d)`."""

    def __init__(self, tensors: Iterable[torch.Tensor]):
        self.tensors = list(tensors)
        """Key and value of each layer in turn."""

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append to a layer; returns all of its keys and values."""
        for place, new in ((2 * layer, key), (2 * layer + 1, value)):
            self.tensors[place] = torch.cat([self.tensors[place], new], dim=2)
        return self.tensors[2 * layer], self.tensors[2 * layer + 1]

    def get_seq_length(self, layer: int = 0) -> int:
        """`P`."""
        return self.tensors[2 * layer].shape[2]


def additive_mask(attention_mask: torch.Tensor, length: int) -> torch.Tensor:
    """`(B, 1, L, P + L)`: 0 where one of the last `length` tokens may look, the least float elsewhere."""
    total = attention_mask.shape[1]
    column, row = torch.arange(total), torch.arange(length) + (total - length)
    allowed = (column[None, :] <= row[:, None])[None] & (attention_mask[:, None, :] > 0)
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)[:, None]


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of grouped heads without a copy of keys and values for every query head.

    `query (B, groups*H, L, d)`, `key` and `value (B, H, P + L, d)`; returns `(B, L, groups*H, d)`.
    """
    batch, heads, length, width = query.shape
    kv_heads = key.shape[1]
    grouped = (query * scaling).reshape(batch, kv_heads, heads // kv_heads * length, width)
    scores = (grouped @ key.transpose(2, 3)).reshape(batch, kv_heads, heads // kv_heads, length, -1)
    weights = torch.softmax(scores + attention_mask[:, :, None], dim=-1)
    mixed = weights.reshape(batch, kv_heads, heads // kv_heads * length, -1) @ value
    return mixed.reshape(batch, heads, length, width).transpose(1, 2), None


AttentionInterface.register(ATTENTION, attend)


def check_kind(config: Any) -> None:
    """Refuse a configuration whose model has no graphs.

    Raises:
        InputError: a kind of model, or of attention, that cannot be exported.
    """
    if config.model_type not in KINDS:
        raise InputError(
            f"Models of type '{config.model_type}' cannot be written as ONNX: expected avt or qwen2_5_omni."
        )
    _check_attention(config.text_config)


def components_of(model: Any, processor: Any) -> list[Component]:
    """The four parts of a loaded model, float32 on the CPU; its processor tells how large media are.

    Raises:
        InputError: a kind of model, or of attention, that cannot be exported.
    """
    check_kind(model.config)
    if model.config.model_type == "avt":
        return avt_components(model, processor)
    from imod_export.onnx.omni import omni_components

    return omni_components(model)


def avt_components(model: Any, processor: Any) -> list[Component]:
    """AVT's. Its processor brings pictures to one size and cuts sounds into windows, so their number is what varies."""
    inner, window = model.model, int(processor.audio_window_seconds * processor.feature_extractor.sampling_rate)
    pixels = processor.image_processor([Image.new("RGB", (64, 64))] * 2, return_tensors="pt")["pixel_values"]
    sounds = processor._process_audio([np.zeros(2 * window)])[0]["input_features"][0]
    pictures, windows = {0: "num_images"}, {0: "num_windows"}
    return [
        embed_component(inner.get_input_embeddings()),
        Component(VISION, AvtVision(inner), (pixels,), (pictures,), ["pixel_values"], ["image_features"]),
        Component(AUDIO, AvtAudio(inner), (sounds,), (windows,), ["input_features"], ["audio_features"]),
        decoder_component(inner.language_model, model.lm_head, model.config.text_config),
    ]


def embed_component(table: nn.Module) -> Component:
    """The embedding table."""
    ids = torch.zeros(2, 3, dtype=torch.long)
    axes = {0: "batch_size", 1: "sequence_length"}
    return Component(EMBED, EmbedTokens(table), (ids,), (axes,), ["input_ids"], ["inputs_embeds"])


def decoder_component(language_model: Any, head: nn.Module, config: Any, position_rows: int = 0) -> Component:
    """The LLM; with `position_rows`, positions are `(rows, B, L)` instead of `(B, L)`."""
    language_model.set_attn_implementation(ATTENTION)
    batch, length, past = 2, 3, 5
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = config.num_hidden_layers
    cache = tuple(torch.zeros(batch, config.num_key_value_heads, past, width) for _ in range(2 * layers))
    positions = torch.arange(past, past + length).expand(*[position_rows] * bool(position_rows), batch, length)
    first = bool(position_rows)
    axes = (
        {0: "batch_size", 1: "sequence_length"},
        {0: "batch_size", 1: "total_sequence_length"},
        {first: "batch_size", first + 1: "sequence_length"},
        tuple({0: "batch_size", 2: "past_sequence_length"} for _ in cache),
    )
    args = (torch.zeros(batch, length, config.hidden_size), torch.ones(batch, past + length).long(), positions, cache)
    inputs = ["inputs_embeds", "attention_mask", "position_ids", *cache_names(layers, "past_key_values")]
    outputs = ["logits", *cache_names(layers, "present")]
    return Component(DECODER, Decoder(language_model, head), args, axes, inputs, outputs)


def _check_attention(config: Any) -> None:
    """Attention has to see all of the past."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise InputError(f"The language model has layers of {', '.join(sorted(kinds))}: expected full_attention alone.")
