"""Every form of adapter, one or several, on tiny text models, against PEFT's merge or the attached model."""

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from imod_core.errors import InputError
from imod_export.export import ExportSettings
from imod_export.unmerge import unmerge

from .llamas import check_equal, llama, make_adapter, make_base, merge, merged_by_peft, weights

IDS = torch.tensor([[5, 6, 7, 8]])


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2))


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
