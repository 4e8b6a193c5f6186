"""Real multimodal architectures whose names on disk are not those at run time, at tiny size."""

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from imod_export.export import ExportSettings, export

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
AUDIO = {
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "num_mel_bins": 16,
    "output_dim": 32,
    "max_source_positions": 50,
    "n_window": 10,
}


def qwen2_5_vl():
    config = transformers.Qwen2_5_VLConfig(text_config=TEXT, vision_config=VISION, tie_word_embeddings=False)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def qwen2_vl():
    vision = {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 32}
    config = transformers.Qwen2VLConfig(text_config=TEXT, vision_config=vision, tie_word_embeddings=False)
    return transformers.Qwen2VLForConditionalGeneration(config)


def omni_thinker():
    config = transformers.Qwen2_5OmniThinkerConfig(text_config=TEXT, vision_config=VISION, audio_config=AUDIO)
    return transformers.Qwen2_5OmniThinkerForConditionalGeneration(config)


def llava():
    text = transformers.LlamaConfig(**{k: v for k, v in TEXT.items() if k != "rope_parameters"})
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    return transformers.LlavaForConditionalGeneration(config)


def weights(folder):
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


@pytest.mark.parametrize("make", [qwen2_5_vl, qwen2_vl, omni_thinker, llava])
def test_a_merge_in_the_bases_own_names_equals_pefts(tmp_path, make):
    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "base")
    kind = type(make())
    settings = peft.LoraConfig(
        r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    peft.get_peft_model(kind.from_pretrained(tmp_path / "base"), settings).save_pretrained(tmp_path / "adapter")
    adapted = peft.PeftModel.from_pretrained(kind.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
    adapted.merge_and_unload().save_pretrained(tmp_path / "peft")

    out = export(tmp_path / "adapter", tmp_path / "out", tmp_path / "base", ExportSettings(parity=False))

    found, peft_merged, base = weights(out), weights(tmp_path / "peft"), weights(tmp_path / "base")
    assert found.keys() == peft_merged.keys() == base.keys()
    assert max((found[n] - peft_merged[n]).abs().max().item() for n in found) <= 1e-6
    assert any(not torch.equal(found[n], base[n]) for n in found)
    model, info = kind.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(input_ids=ids).logits, expected, rtol=0, atol=1e-5)


def test_an_adapter_of_the_thinker_merges_into_a_full_omni_checkpoint(tmp_path):
    torch.manual_seed(0)
    thinker = omni_thinker()
    thinker.save_pretrained(tmp_path / "thinker")
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    peft.get_peft_model(thinker, settings).save_pretrained(tmp_path / "adapter")
    full = tmp_path / "full"
    full.mkdir()
    tensors = weights(tmp_path / "thinker")
    talker = {n.replace("model.", "talker.model.", 1): v.clone() for n, v in tensors.items() if n.startswith("model.")}
    from safetensors.torch import save_file

    save_file({**{f"thinker.{n}": v for n, v in tensors.items()}, **talker}, full / "model.safetensors")
    (full / "config.json").write_text(json.dumps({"model_type": "qwen2_5_omni", "tie_word_embeddings": False}))

    into_full = weights(export(tmp_path / "adapter", tmp_path / "a", full, ExportSettings(parity=False)))
    into_thinker = weights(
        export(tmp_path / "adapter", tmp_path / "b", tmp_path / "thinker", ExportSettings(parity=False))
    )
    assert all(torch.equal(into_full[f"thinker.{n}"], v) for n, v in into_thinker.items())
    assert all(torch.equal(into_full[n], v) for n, v in talker.items())
