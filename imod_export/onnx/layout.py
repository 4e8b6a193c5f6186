"""Names in an onnx folder, those of transformers.js; imports nothing heavy, since exporter and runtime share it.

embed_tokens           input_ids (B, L) -> inputs_embeds (B, L, D)
vision_encoder         pixel_values -> image_features; pictures and the frames of videos
audio_encoder          input_features -> audio_features
decoder_model_merged   inputs_embeds, attention_mask (B, P + L), position_ids, past_key_values.N.key/value (B, H, P, d)
                       -> logits, present.N.key/value (B, H, P + L, d)

`B` batch, `L` new tokens, `P` tokens in the cache, `D` width, `H` key-value heads, `d` head width, `N` layer.
"""

from pathlib import Path

EMBED, VISION, AUDIO, DECODER = "embed_tokens", "vision_encoder", "audio_encoder", "decoder_model_merged"
COMPONENTS = (EMBED, VISION, AUDIO, DECODER)
FOLDER = "onnx"
FULL = "fp32"
SUFFIXES = {FULL: "", "fp16": "_fp16", "int8": "_int8", "q4": "_q4"}
"""Forms of a graph and what they add to its file name."""
KEEP = "num_logits_to_keep"
"""The decoder's optional wish of transformers.js: logits of this many last positions, 0 for all."""


def file_name(component: str, variant: str = FULL) -> str:
    """The graph's file, e.g. `decoder_model_merged_q4.onnx`."""
    return f"{component}{SUFFIXES[variant]}.onnx"


def data_name(component: str, variant: str = FULL) -> str:
    """The file beside it for weights that do not fit into it."""
    return f"{file_name(component, variant)}_data"


def cache_names(layers: int, prefix: str) -> list[str]:
    """`prefix` is `past_key_values` for inputs and `present` for outputs."""
    return [f"{prefix}.{i}.{part}" for i in range(layers) for part in ("key", "value")]


def variants_in(folder: Path) -> list[str]:
    """Forms of which `folder` holds a decoder."""
    return [variant for variant in SUFFIXES if (folder / file_name(DECODER, variant)).is_file()]


def is_onnx_folder(folder: Path) -> bool:
    """Whether the runtime can answer from `folder`."""
    return bool(variants_in(folder))
