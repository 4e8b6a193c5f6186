"""Attaching to a PEFT model: the adapter stays LoRA, only the named one is touched, and detaching undoes it."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel

from imod_core.errors import InputError
from imod_train import ImodConfig, attach
from imod_train.masks import SHARED_BLOCK
from imod_train.projection import ImodLinear

STRONG = ImodConfig(lambda1=1.0, lambda2=1.0)


def test_parameter_and_state_dict_names_stay_loras(tiny):
    model = tiny.make_lora()
    names = [name for name, _ in model.named_parameters()]
    keys, parameters = list(model.state_dict()), list(model.parameters())
    handle = attach(model, STRONG)
    assert len(handle.modules) == tiny.LAYERS * len(tiny.TARGETS)
    assert "model.layers.1.mlp.up_proj" in handle.modules
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == keys
    assert all(now is before for now, before in zip(model.parameters(), parameters, strict=True))
    handle.detach()
    handle.detach()
    assert not any(isinstance(module, ImodLinear) for module in model.modules())
    assert list(model.state_dict()) == keys


def test_the_saved_adapter_loads_in_stock_peft_with_identical_logits(tiny, tmp_path):
    model = tiny.make_lora()
    attach(model, STRONG)
    tiny.train(model, steps=3)
    inputs = tiny.make_inputs()
    with torch.no_grad():
        wanted = model.eval()(**inputs).logits
    model.save_pretrained(tmp_path)
    assert set(json.loads((tmp_path / "adapter_config.json").read_text())) >= {"peft_type", "r"}
    stock = PeftModel.from_pretrained(tiny.make_base(), tmp_path).eval()
    assert not any(isinstance(module, ImodLinear) for module in stock.modules())
    with torch.no_grad():
        assert torch.equal(stock(**inputs).logits, wanted)
        with stock.disable_adapter():
            assert not torch.allclose(stock(**inputs).logits, wanted)


def test_the_handle_tells_its_state_for_a_manifest(tiny):
    states = [attach(tiny.make_lora(), ImodConfig(seed=seed)).state() for seed in (0, 0, 1)]
    assert states[0] == states[1]
    assert states[0]["masks_sha256"] != states[2]["masks_sha256"]
    assert states[0]["config"]["lambda1"] == 0.01
    assert json.loads(json.dumps(states[0]))["modules"] == tiny.LAYERS * len(tiny.TARGETS)


def test_deeper_layers_share_more(tiny):
    handle = attach(tiny.make_lora(), ImodConfig(shared_ratio=0.2, alpha=0.4))
    shares = [
        (handle.modules[f"model.layers.{layer}.mlp.up_proj"].partition == SHARED_BLOCK).float().mean()
        for layer in range(2)
    ]
    assert shares == pytest.approx([0.2, 0.4], abs=0.01)


def test_only_the_named_adapter_is_touched(tiny):
    model = tiny.make_lora()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    attach(model, STRONG)
    assert not any("other" in name for name, m in model.named_modules() if isinstance(m, ImodLinear))


def test_attaching_twice_is_refused_and_detaching_makes_it_possible_again(tiny):
    model = tiny.make_lora()
    handle = attach(model, STRONG)
    with pytest.raises(InputError, match=r"attached to 'model\.layers\.0\.self_attn\.q_proj' already"):
        attach(model, STRONG)
    wanted, _ = tiny.step_gradients(model)
    handle.detach()
    plain, _ = tiny.step_gradients(model)
    assert not tiny.equal(plain, wanted)
    attach(model, STRONG)
    assert tiny.equal(tiny.step_gradients(model)[0], wanted)


def test_explicit_token_ids_replace_the_configurations(tiny):
    model, other = tiny.make_lora(), tiny.make_lora(base=tiny.make_base(image_token_id=None, audio_token_id=None))
    attach(model, STRONG)
    attach(other, ImodConfig(lambda1=1.0, lambda2=1.0, media_token_ids=(tiny.IMAGE, tiny.AUDIO)))
    assert tiny.equal(tiny.step_gradients(model)[0], tiny.step_gradients(other)[0])
