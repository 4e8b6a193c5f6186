"""Real architectures whose names or matrices on disk are not those at run time, at tiny size, against PEFT's merge."""

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from imod_core.errors import InputError
from imod_export.export import ExportSettings, export
from imod_export.unmerge import unmerge

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


IDS = torch.tensor([[5, 6, 7, 8]])


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


def llama(tied=False):
    changes = {**TEXT, "tie_word_embeddings": tied}
    config = transformers.LlamaConfig(**{k: v for k, v in changes.items() if k != "rope_parameters"})
    return transformers.LlamaForCausalLM(config)


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2))


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


def make_base(folder, model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


def make_adapter(folder, base, kind=transformers.LlamaForCausalLM, seed=0, **settings):
    """An adapter with random A and B, and everything else that it trains moved."""
    torch.manual_seed(seed)
    settings = {"r": 2, "init_lora_weights": False, "task_type": "CAUSAL_LM", **settings}
    model = peft.get_peft_model(kind.from_pretrained(base), peft.LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".lora_" not in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def merged_by_peft(folder, base, adapter, kind=transformers.LlamaForCausalLM):
    model = peft.PeftModel.from_pretrained(kind.from_pretrained(base), adapter)
    model.merge_and_unload().save_pretrained(folder)
    return weights(folder)


def check_equal(found, expected, base):
    """Within 1e-6 of each tensor's largest value; what the expected merge did not change is the base's bytes."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-6 * value.abs().max(), name
        if name in base and torch.equal(value, base[name]):
            assert torch.equal(found[name], base[name]), name
    assert any(not torch.equal(found[name], base[name]) for name in base)


def merge(adapter, base, out, **settings):
    return weights(export(adapter, out, base, ExportSettings(parity=False, **settings)))


FORMS = {
    "token rows": (False, {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5, 60]}),
    "token rows of tied embeddings": (True, {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}),
    "token rows by name": (
        False,
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1], "lm_head": [2, 9]}},
    ),
    "tied embeddings saved alike": (
        True,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "embedding and head saved": (False, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "embedding and head adapted": (False, {"target_modules": ["embed_tokens", "lm_head"]}),
    "norms saved": (False, {"target_modules": ["v_proj"], "modules_to_save": ["input_layernorm"], "use_rslora": True}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_adapter_on_a_text_model_merges_as_peft_does(tmp_path, form):
    tied, settings = FORMS[form]
    base = make_base(tmp_path / "base", llama(tied))
    adapter = make_adapter(tmp_path / "adapter", base, **settings)
    expected = merged_by_peft(tmp_path / "peft", base, adapter)
    check_equal(merge(adapter, base, tmp_path / "out"), expected, weights(base))


def test_conv1d_weights_lie_the_other_way_round(tmp_path):
    base = make_base(tmp_path / "base", gpt2())
    kind = transformers.GPT2LMHeadModel
    adapter = make_adapter(tmp_path / "adapter", base, kind, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    expected = merged_by_peft(tmp_path / "peft", base, adapter, kind)
    check_equal(merge(adapter, base, tmp_path / "out"), expected, weights(base))


def test_an_adapter_made_without_the_head_merges_into_the_whole_model(tmp_path):
    base = make_base(tmp_path / "base", llama())
    adapter = make_adapter(
        tmp_path / "adapter", base, transformers.LlamaModel, target_modules=["q_proj"], task_type="FEATURE_EXTRACTION"
    )
    names = load_file(adapter / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.layers.") for name in names)
    expected = merged_by_peft(tmp_path / "peft", base, adapter, transformers.LlamaModel)
    found, before = merge(adapter, base, tmp_path / "out"), weights(base)
    check_equal(
        found, {f"model.{n}": v for n, v in expected.items()} | {"lm_head.weight": before["lm_head.weight"]}, before
    )


def logits_of(folder, adapter=None):
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return (peft.PeftModel.from_pretrained(model, adapter) if adapter else model).eval()(IDS).logits


def test_tied_embeddings_adapted_alike_change_once(tmp_path):
    """Compared with the attached model: PEFT's merge adds the update to the one tensor for each of its two uses."""
    base = make_base(tmp_path / "base", llama(tied=True))
    settings = {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}
    adapter = make_adapter(tmp_path / "adapter", base, **settings)
    assert merge(adapter, base, tmp_path / "out").keys() == weights(base).keys()
    expected = logits_of(base, adapter)
    torch.testing.assert_close(logits_of(tmp_path / "out"), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert (logits_of(base) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("touched", ["embed_tokens", "lm_head"])
def test_one_of_two_tied_embeddings_needs_a_head_of_its_own(tmp_path, touched):
    base = make_base(tmp_path / "base", llama(tied=True))
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=[touched, "q_proj"])
    with pytest.raises(InputError, match="--untie"):
        merge(adapter, base, tmp_path / "refused")
    found = merge(adapter, base, tmp_path / "out", untie=True)
    assert found.keys() == weights(base).keys() | {"lm_head.weight"}
    expected = logits_of(base, adapter)
    torch.testing.assert_close(logits_of(tmp_path / "out"), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert (logits_of(base) - expected).abs().max() > 1e-2


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


def rewritten(base, folder, change):
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(change(weights(base)), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((base / "config.json").read_text())
    return folder


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


def test_several_adapters_are_added_with_their_weights(tmp_path):
    base = make_base(tmp_path / "base", llama())
    first = make_adapter(tmp_path / "first", base, seed=1, target_modules=["q_proj", "up_proj"])
    second = make_adapter(tmp_path / "second", base, seed=2, r=3, target_modules=["q_proj", "down_proj"])
    model = peft.PeftModel.from_pretrained(transformers.LlamaForCausalLM.from_pretrained(base), first, "a")
    model.load_adapter(second, "b")
    model.add_weighted_adapter(["a", "b"], [0.7, -0.4], "both", combination_type="cat")
    model.set_adapter("both")
    model.merge_and_unload().save_pretrained(tmp_path / "peft")
    found = merge([first, second], base, tmp_path / "out", weights=(0.7, -0.4))
    check_equal(found, weights(tmp_path / "peft"), weights(base))


def test_rows_that_one_adapter_gives_are_not_moved_by_the_update_of_another(tmp_path):
    base = make_base(tmp_path / "base", llama())
    adapted = make_adapter(tmp_path / "adapted", base, seed=1, target_modules=["embed_tokens", "q_proj"])
    given = make_adapter(
        tmp_path / "given", base, seed=2, target_modules=["v_proj"], trainable_token_indices={"embed_tokens": [5, 63]}
    )
    name = "model.embed_tokens.weight"
    alone, rows = (merge(one, base, tmp_path / f"{one.name} alone")[name] for one in (adapted, given))
    found = merge([adapted, given], base, tmp_path / "out")[name]
    assert torch.equal(found[[5, 63]], rows[[5, 63]])
    others = [i for i in range(64) if i not in (5, 63)]
    assert torch.equal(found[others], alone[others])
    assert (alone - rows).abs().min(dim=1).values.max() > 0
    before = weights(base)[name].float()
    update = alone.float() - before
    before[[5, 63]], update[[5, 63]] = rows[[5, 63]].float(), 0
    costs = {cost["name"]: cost for cost in json.loads((tmp_path / "out" / "merge.json").read_text())["updates"]}
    assert costs[name]["strength"] == pytest.approx((update.norm() / before.norm()).item(), rel=1e-3)
    assert unmerge([adapted, given], tmp_path / "out", base, ExportSettings()) != []


def test_whole_tensors_cannot_be_weighted_and_not_be_saved_twice(tmp_path):
    base = make_base(tmp_path / "base", llama())
    first = make_adapter(tmp_path / "first", base, seed=1, target_modules=["q_proj"], modules_to_save=["lm_head"])
    second = make_adapter(tmp_path / "second", base, seed=2, target_modules=["v_proj"], modules_to_save=["lm_head"])
    with pytest.raises(InputError, match="only low-rank updates can be weighted"):
        merge(first, base, tmp_path / "out", weights=(0.5,))
    with pytest.raises(InputError, match=r"save 'lm_head\.weight' of the base whole"):
        merge([first, second], base, tmp_path / "out")


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
