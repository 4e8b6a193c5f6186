"""IMoD on whatever LoRA layers PEFT makes: quantised bases, several adapters, patterns, rsLoRA, tied weights."""

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer

from imod_core.errors import InputError
from imod_train import ImodConfig, attach

STRONG = ImodConfig(lambda1=1.0, lambda2=1.0)
FLOAT32 = 2e-5
"""Relative; float32 rounding over a sum of a few hundred terms."""


class Linear4bit(torch.nn.Linear):
    """A stand-in for a quantised layer: its weight is sixteen levels a row, and its forward multiplies them out."""

    @classmethod
    def of(cls, linear):
        """The same layer, quantised."""
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        layer.load_state_dict(linear.state_dict())
        scale = layer.weight.data.abs().amax(1, keepdim=True) / 7
        layer.weight = torch.nn.Parameter((layer.weight.data / scale).round().to(torch.int8), requires_grad=False)
        layer.register_buffer("row_scale", scale)
        return layer

    def forward(self, input):
        return torch.nn.functional.linear(input, self.weight * self.row_scale, self.bias)


def quantise(base):
    """All linears of the layers as `Linear4bit`."""
    for layer in base.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, torch.nn.Linear):
                    setattr(parent, name, Linear4bit.of(child))
    return base


def injected(tiny, model, config=STRONG, **options):
    """What attaching adds to the gradients of A."""
    plain, plain_b = tiny.step_gradients(model)
    handle = attach(model, config, **options)
    found, b = tiny.step_gradients(model)
    handle.detach()
    assert tiny.largest_difference(b, plain_b) < FLOAT32
    return {name: found[name] - plain[name] for name in found if found[name] is not None}, handle


def test_a_quantised_base_takes_the_general_way_and_is_injected(tiny):
    quantised = tiny.make_lora(base=quantise(tiny.make_base()))
    handle = attach(quantised, STRONG)
    assert len(handle.modules) == tiny.LAYERS * len(tiny.TARGETS)
    inside = {type(quantised.get_base_model().get_submodule(name).base_layer) for name in handle.modules}
    assert inside == {Linear4bit}
    handle.detach()
    added, _ = injected(tiny, quantised)
    multiplied_out = tiny.make_base()
    for name, module in quantised.get_base_model().named_modules():
        if isinstance(module, Linear4bit):
            weight = module.weight * module.row_scale
            multiplied_out.get_submodule(name.removesuffix(".base_layer")).weight.data.copy_(weight)
    wanted, _ = injected(tiny, tiny.make_lora(base=multiplied_out))
    assert tiny.largest_difference(added, wanted) < 1e-3
    assert tiny.largest_difference(injected(tiny, tiny.make_lora())[0], wanted) > 1e-2


def test_a_layer_of_bitsandbytes_is_injected(tiny):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is no requirement of this project")
    base = tiny.make_base(hidden_size=64, intermediate_size=128)
    for layer in base.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, torch.nn.Linear):
                    quantised = bitsandbytes.nn.Linear4bit(
                        child.in_features, child.out_features, child.bias is not None, torch.float32, quant_type="nf4"
                    )
                    quantised.load_state_dict(child.state_dict())
                    setattr(parent, name, quantised.to("cpu"))
    base.is_loaded_in_4bit = True
    model = tiny.make_lora(base=base)
    layers = {type(layer).__name__ for layer in model.modules() if isinstance(layer, LoraLayer)}
    assert layers == {"Linear4bit"}
    added, _ = injected(tiny, model)
    assert all(torch.isfinite(gradient).all() and gradient.norm() > 0 for gradient in added.values())


def test_several_active_adapters_each_train_and_one_is_injected(tiny):
    model = tiny.make_lora()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "other"])
    plain, _ = tiny.step_gradients(model)
    attach(model, STRONG)
    found, _ = tiny.step_gradients(model)
    for name in plain:
        change = float((found[name] - plain[name]).norm() / plain[name].norm())
        assert change > 1e-3 if ".default." in name else change < FLOAT32, name


def test_an_adapter_by_another_name_is_injected(tiny):
    model = tiny.make_lora()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with pytest.raises(InputError, match="'other' is not active"):
        attach(model, STRONG, "other")
    model.set_adapter("other")
    handle = attach(model, STRONG, "other")
    assert len(handle.modules) == tiny.LAYERS
    model(**tiny.make_inputs()).loss.backward()
    assert all(module.weight.grad.norm() > 0 for module in handle.modules.values())


def test_modules_to_save_train_as_ever(tiny):
    model = tiny.make_lora(modules_to_save=["lm_head"])
    twin = tiny.make_lora(modules_to_save=["lm_head"])
    attach(model, STRONG)
    for trained in (model, twin):
        trained(**tiny.make_inputs()).loss.backward()
    gradients = [dict(m.named_parameters())[saved_head(m)].grad for m in (model, twin)]
    assert torch.allclose(*gradients, atol=1e-6)
    assert gradients[0].norm() > 0


def saved_head(model):
    return next(name for name, _ in model.named_parameters() if "lm_head.modules_to_save" in name)


def test_rank_and_alpha_patterns_and_rslora_are_loras_business(tiny):
    settings = {"rank_pattern": {"up_proj": 3, "q_proj": 6}, "alpha_pattern": {"up_proj": 5}, "use_rslora": True}
    model = tiny.make_lora(**settings)
    handle = attach(model, STRONG)
    ranks = {name.rsplit(".", 1)[1]: module.out_features for name, module in handle.modules.items()}
    assert (ranks["up_proj"], ranks["q_proj"], ranks["k_proj"]) == (3, 6, tiny.RANK)
    fused = tiny.step_gradients(model)
    handle.detach()
    attach(model, STRONG, fused=False)
    for left, right in zip(tiny.step_gradients(model), fused, strict=True):
        assert tiny.largest_difference(left, right) < FLOAT32
    assert tiny.largest_difference(fused[0], tiny.step_gradients(tiny.make_lora(**settings))[0]) > 1e-2


def test_the_scaling_of_lora_is_not_applied_to_the_constraints(tiny):
    few, _ = injected(tiny, tiny.make_lora(lora_alpha=1e-6))
    fewer, _ = injected(tiny, tiny.make_lora(lora_alpha=1e-9))
    assert tiny.largest_difference(few, fewer) < 1e-3


def test_weights_that_embeddings_share_stay_shared(tiny, tmp_path):
    base = tiny.make_base(tie_word_embeddings=True)
    model = tiny.make_lora(base=base, target_modules=["q_proj", "lm_head"])
    attach(model, STRONG)
    tiny.train(model, steps=2)
    assert base.get_input_embeddings().weight is base.lm_head.base_layer.weight
    inputs = tiny.make_inputs()
    with torch.no_grad():
        wanted = model.eval()(**inputs).logits
    model.save_pretrained(tmp_path)
    stock = PeftModel.from_pretrained(tiny.make_base(tie_word_embeddings=True), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(stock(**inputs).logits, wanted)
