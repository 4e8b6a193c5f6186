"""Qwen2.5-Omni's thinker as four graphs.

Its encoders walk over lists of lengths in Python, which no graph can. Attention within a picture, a window or a chunk
is the same as attention over everything with a mask, and the masks are arithmetic on indices: so here.

Letters: `P` patches, `n` pictures or videos, `D` width, `H` heads, `d` head width, `C` chunks of sound, `F` mel frames
of a chunk, `T` tokens of a chunk.
"""

from typing import Any

import torch
from torch import nn
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import apply_rotary_pos_emb_vision

from imod_core.errors import InputError
from imod_export.onnx.components import Component, decoder_component, embed_component
from imod_export.onnx.layout import AUDIO, VISION


def omni_components(model: Any) -> list[Component]:
    """The thinker's parts.

    Raises:
        InputError: an audio tower whose chunks do not end with a pair.
    """
    vision, audio = model.visual, model.audio_tower
    if audio.n_window % 2:
        raise InputError(f"The audio tower has n_window {audio.n_window}: expected an even number.")
    grid = torch.tensor([[1, 4, 6], [2, 2, 4], [1, 2, 2]]) * vision.spatial_merge_size // 2
    patch = vision.patch_embed
    width = patch.in_channels * patch.temporal_patch_size * patch.patch_size**2
    sounds = torch.zeros(3, audio.num_mel_bins, 2 * audio.n_window)
    lengths = torch.tensor([2 * audio.n_window, 5, 7])
    return [
        embed_component(model.get_input_embeddings()),
        Component(
            VISION,
            OmniVision(vision),
            (torch.zeros(int(grid.prod(-1).sum()), width), grid),
            ({0: "num_patches"}, {0: "num_images"}),
            ["pixel_values", "image_grid_thw"],
            ["image_features"],
        ),
        Component(
            AUDIO,
            OmniAudio(audio),
            (sounds, lengths),
            ({0: "num_chunks"}, {0: "num_chunks"}),
            ["input_features", "chunk_lengths"],
            ["audio_features"],
        ),
        decoder_component(model.get_decoder(), model.lm_head, model.config.text_config, position_rows=3),
    ]


class OmniVision(nn.Module):
    """Patches `(P, 3*2*p*p)` and `image_grid_thw (n, 3)` to embeddings `(P / 4, D)`; pictures and videos alike."""

    def __init__(self, tower: Any):
        super().__init__()
        self.tower: Any = tower

    def forward(self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> torch.Tensor:
        tower, merge = self.tower, self.tower.spatial_merge_size
        reach = tower.window_size // merge // tower.patch_size
        frame, row, column = places(image_grid_thw, pixel_values.shape[0], merge)
        window = torch.stack([frame, row // merge // reach, column // merge // reach], dim=-1)
        same_frame = same(frame[:, None])
        masks = {True: mask_of(same_frame), False: mask_of(same(window))}
        # with a batch axis, products stay plain ones, which the quantisers know
        hidden = nn.functional.linear(pixel_values[None], tower.patch_embed.proj.weight.flatten(1))
        angles = tower.rotary_pos_emb(hidden, torch.stack([row, column], dim=-1))
        for number, block in enumerate(tower.blocks):
            mask = masks[number in tower.fullatt_block_indexes]
            hidden = hidden + _attend(block.attn, block.norm1(hidden), angles, mask)
            hidden = hidden + block.mlp(block.norm2(hidden))
        merger = tower.merger
        return merger.mlp(merger.ln_q(hidden).reshape(1, -1, merger.hidden_size))[0]


class OmniAudio(nn.Module):
    """Chunks `(C, mels, F)`, zero beyond `chunk_lengths (C,)`, to `(C, T, D)`, of which `(length + 1) // 4` count."""

    def __init__(self, tower: Any):
        super().__init__()
        self.tower: Any = tower

    def forward(self, input_features: torch.Tensor, chunk_lengths: torch.Tensor) -> torch.Tensor:
        tower = self.tower
        inside = torch.arange(input_features.shape[2]) < chunk_lengths[:, None]
        hidden = nn.functional.gelu(tower.conv1(input_features)) * inside[:, None]
        hidden = nn.functional.gelu(tower.conv2(hidden)).transpose(1, 2)
        hidden = hidden + tower.positional_embedding.positional_embedding[: hidden.shape[1]]
        heard = torch.arange(hidden.shape[1]) < ((chunk_lengths + 1) // 2)[:, None]
        mask = mask_of(heard[:, None, None])
        for layer in tower.layers:
            hidden = hidden + _hear(layer.self_attn, layer.self_attn_layer_norm(hidden), mask)
            hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
        pairs = hidden.unflatten(1, (-1, 2)).mean(dim=2)
        return tower.proj(tower.ln_post(pairs))


def places(grid: torch.Tensor, patches: int, merge: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each patch `(P,)`: a number for its frame, unique over all pictures, its row and its column.

    Patches lie frame by frame, in a frame by squares of `merge x merge`, squares and their patches row by row.
    """
    ends = grid.prod(dim=-1).cumsum(dim=0)
    index = torch.arange(patches)
    picture = (index[:, None] >= ends[None, :]).long().sum(dim=-1)
    frames = torch.cat([torch.zeros(1, dtype=torch.long), grid[:, 0].cumsum(dim=0)])
    starts = torch.cat([torch.zeros(1, dtype=torch.long), ends])
    area, width = (grid[:, 1] * grid[:, 2])[picture], grid[:, 2][picture]
    local = index - starts[picture]
    in_frame = local % area
    square, inner = in_frame // merge**2, in_frame % merge**2
    across = width // merge
    row = square // across * merge + inner // merge
    column = square % across * merge + inner % merge
    return frames[picture] + local // area, row, column


def same(keys: torch.Tensor) -> torch.Tensor:
    """`(P, P)`: where all of the keys `(P, k)` agree."""
    return (keys[:, None, :] == keys[None, :, :]).all(dim=-1)


def mask_of(allowed: torch.Tensor) -> torch.Tensor:
    """0 where allowed, the least float elsewhere."""
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)


def _attend(attention: Any, hidden: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor):
    """`(1, P, D)` to `(1, P, D)`."""
    heads = [part(hidden).unflatten(-1, (attention.num_heads, -1)) for part in (attention.q, attention.k, attention.v)]
    query, key = apply_rotary_pos_emb_vision(heads[0], heads[1], *angles)
    return attention.proj(_mix(query, key, heads[2], mask, attention.scaling))


def _hear(attention: Any, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`(C, T, D)` to `(C, T, D)`."""
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (part(hidden).unflatten(-1, (attention.num_heads, -1)) for part in parts)
    return attention.out_proj(_mix(query, key, value, mask, attention.scaling))


def _mix(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float):
    """Attention of `(…, L, H, d)`; returns `(…, L, H*d)`."""
    query, key, value = (part.transpose(-3, -2) for part in (query * scaling, key, value))
    weights = torch.softmax(query @ key.transpose(-2, -1) + mask, dim=-1)
    return (weights @ value).transpose(-3, -2).flatten(-2)
