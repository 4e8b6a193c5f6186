"""Gradients of a whole model: A's is the oracle's, B's and all logits are LoRA's, and λ = 0 is LoRA bit for bit."""

import pytest
import torch
from oracle import oracle_gradient

from imod_core.modality import token_modality
from imod_train import ImodConfig, attach
from imod_train.config import REDUCTIONS

STRONG = ImodConfig(lambda1=1.0, lambda2=1.0)
FLOAT32 = 2e-5
"""Relative; float32 rounding over a sum of a few hundred terms."""


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("fused", [True, False])
def test_the_injected_gradient_equals_the_oracle_at_the_layers_inputs(tiny, reduction, fused):
    config = ImodConfig(lambda1=0.7, lambda2=0.9, reduction=reduction)
    model = tiny.make_lora().double()
    plain, _ = tiny.step_gradients(model)
    inputs, seen = tiny.make_inputs(), {}
    handle = attach(model, config, fused=fused)
    for name in handle.modules:
        layer = model.get_base_model().get_submodule(name)
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].detach()}))
    injected, _ = tiny.step_gradients(model)
    markers = (tiny.VISION_START, tiny.VISION_END)
    modality = token_modality(inputs["input_ids"], inputs["attention_mask"], (tiny.IMAGE, tiny.AUDIO), markers)
    segment = torch.zeros_like(inputs["input_ids"])
    for name, module in handle.modules.items():
        key = f"base_model.model.{name}.lora_A.default.weight"
        A, codes = module.weight, module.partition
        wanted = oracle_gradient(A, codes, seen[name], modality, segment, config, plain[key])
        assert (injected[key] - plain[key] - wanted).norm() <= 1e-10 * injected[key].norm()
        assert wanted.norm() > 1e-3 * plain[key].norm()


def test_logits_and_gradients_of_B_are_loras(tiny):
    """Bit for bit on PEFT's own way, up to rounding on the fused one, whose evaluation is PEFT's again."""
    twin = tiny.make_lora()
    twin_a, twin_b = tiny.step_gradients(twin)
    inputs = tiny.make_inputs()
    for fused in (False, True):
        model = tiny.make_lora()
        attach(model, STRONG, fused=fused)
        a, b = tiny.step_gradients(model)
        assert tiny.equal(b, twin_b) != fused
        assert tiny.largest_difference(b, twin_b) < FLOAT32 < tiny.largest_difference(a, twin_a)
        assert torch.allclose(model(**inputs).logits, twin(**inputs).logits, atol=1e-6)
        with torch.no_grad():
            assert torch.equal(model.eval()(**inputs).logits, twin.eval()(**inputs).logits)
        twin.train()


@pytest.mark.parametrize("off", [ImodConfig(lambda1=0.0, lambda2=0.0), ImodConfig(lambda1=1.0, msdc=False, maac=False)])
def test_lambda_zero_trains_loras_weights_bit_for_bit(tiny, off):
    models = [tiny.make_lora(lora_dropout=0.1) for _ in range(3)]
    attach(models[0], off)
    attach(models[2], ImodConfig())
    results = []
    for model in models:
        torch.manual_seed(3)
        results.append(tiny.train(model, steps=4))
    assert tiny.equal(results[0], results[1])
    assert not tiny.equal(results[2], results[1])


def test_eval_mode_gradients_are_loras(tiny):
    model, twin = tiny.make_lora().eval(), tiny.make_lora().eval()
    attach(model, STRONG)
    assert tiny.equal(tiny.step_gradients(model)[0], tiny.step_gradients(twin)[0])


def test_training_lowers_the_foreign_energy(tiny):
    results = {}
    for name, config in (("lora", ImodConfig(lambda1=1e-9, lambda2=0.0)), ("imod", ImodConfig(lambda1=1.0))):
        model = tiny.make_lora()
        handle = attach(model, config)
        tiny.train(model, steps=15)
        handle.sample_next()
        tiny.step_gradients(model)
        results[name] = handle.signals()
    for signal in ("imod/text_foreign_energy", "imod/non_text_foreign_energy"):
        assert results["imod"][signal] < 0.8 * results["lora"][signal]
