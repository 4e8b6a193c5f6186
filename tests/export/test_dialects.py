"""Real architectures whose names or matrices on disk are not those at run time, at tiny size, against PEFT's merge."""

import json

import peft
import pytest
import torch
import transformers

from imod_core.errors import InputError
from imod_export.export import ExportSettings, export

from .llamas import TEXT, check_equal, llama, make_adapter, make_base, merge, merged_by_peft, rewritten, weights

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


PARTS = {"qkv_proj": ("self_attn", ["q_proj", "k_proj", "v_proj"]), "gate_up_proj": ("mlp", ["gate_proj", "up_proj"])}


def fuse(tensors):
    """The same weights with projections stacked, as Phi-3 names them."""
    fused = dict(tensors)
    for layer in range(2):
        for whole, (block, parts) in PARTS.items():
            names = [f"model.layers.{layer}.{block}.{part}.weight" for part in parts]
            fused[f"model.layers.{layer}.{block}.{whole}.weight"] = torch.cat([fused.pop(name) for name in names])
    return fused


def split(tensors):
    """The reverse of `fuse`: queries are 32 rows, keys and values 16, gate and up 48."""
    parted = dict(tensors)
    for layer in range(2):
        for whole, (block, parts) in PARTS.items():
            stack = parted.pop(f"model.layers.{layer}.{block}.{whole}.weight")
            sizes = [32, 16, 16] if len(parts) == 3 else [48, 48]
            for part, rows in zip(parts, stack.split(sizes), strict=True):
                parted[f"model.layers.{layer}.{block}.{part}.weight"] = rows.clone()
    return parted


@pytest.mark.parametrize(
    "targets", [["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"], ["k_proj"], ["q_proj", "v_proj", "up_proj"]]
)
def test_split_projections_merge_into_a_base_that_has_them_fused(tmp_path, targets):
    base = make_base(tmp_path / "base", llama())
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=targets)
    expected = merged_by_peft(tmp_path / "peft", base, adapter)
    fused = rewritten(base, tmp_path / "fused", fuse)
    check_equal(merge(adapter, fused, tmp_path / "out"), fuse(expected), weights(fused))


def test_fused_projections_merge_into_a_base_that_has_them_split(tmp_path):
    config = {k: v for k, v in TEXT.items() if k != "rope_parameters"}
    kind = transformers.Phi3ForCausalLM
    base = make_base(tmp_path / "base", kind(transformers.Phi3Config(**config)))
    adapter = make_adapter(tmp_path / "adapter", base, kind, target_modules=["qkv_proj", "gate_up_proj"])
    expected = merged_by_peft(tmp_path / "peft", base, adapter, kind)
    parted = rewritten(base, tmp_path / "split", split)
    check_equal(merge(adapter, parted, tmp_path / "out"), split(expected), weights(parted))


def test_a_quantised_base_is_refused_and_its_original_taken(tmp_path):
    """Config or tensor names give a quantised base away; the adapter merges into the 16-bit model it was made from."""
    base = make_base(tmp_path / "base", llama())
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    config = json.loads((base / "config.json").read_text())
    for method in ("bitsandbytes", "gptq", "fp8"):
        folder = rewritten(base, tmp_path / method, lambda tensors: tensors)
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
        with pytest.raises(InputError, match=rf"quantised .*{method}.* --base"):
            merge(adapter, folder, tmp_path / "out")
    layer = "model.layers.0.self_attn.q_proj"
    silent = rewritten(base, tmp_path / "silent", lambda t: {**t, f"{layer}.weight_scale_inv": torch.ones(1)})
    with pytest.raises(InputError, match="weight_scale_inv"):
        merge(adapter, silent, tmp_path / "out")
    check_equal(merge(adapter, base, tmp_path / "out"), merged_by_peft(tmp_path / "peft", base, adapter), weights(base))
