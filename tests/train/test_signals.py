"""Signals while training: right, by group of layers, and without a trace in the gradient."""

import pytest
import torch

from imod_core.modality import NON_TEXT, TEXT, token_modality
from imod_train import ImodConfig, attach

STRONG = ImodConfig(lambda1=1.0, lambda2=1.0)


def test_signals_are_measured_when_asked(tiny):
    model = tiny.make_lora()
    handle = attach(model, STRONG)
    tiny.step_gradients(model)
    assert handle.signals() == {}
    handle.sample_next()
    tiny.step_gradients(model)
    signals = handle.signals()
    names = ["injected_over_task", "text_foreign_energy", "non_text_foreign_energy", "non_text_dominance"]
    groups = ["", "/layers_0-0", "/layers_1-1"]
    assert signals.keys() == {f"imod/{name}{group}" for name in names for group in groups}
    assert all(0 < value < 100 for value in signals.values())
    again = tiny.step_gradients(model)
    handle.sample_next()
    assert all(tiny.equal(*pair) for pair in zip(tiny.step_gradients(model), again, strict=True))
    tiny.step_gradients(model, tiny.make_inputs(9))
    assert handle.signals() == signals
    handle.sample_next()
    tiny.step_gradients(model, factor=4096.0)
    assert handle.signals()["imod/injected_over_task"] == pytest.approx(signals["imod/injected_over_task"], rel=1e-3)


def test_groups_hold_layers_of_equal_depth():
    from imod_train.signals import layer_groups

    names = [f"model.layers.{layer}.q_proj" for layer in range(7)] + ["lm_head"]
    assert layer_groups(names) == {"layers_0-1": [0, 1], "layers_2-3": [2, 3], "layers_4-6": [4, 5, 6]}
    assert layer_groups(["lm_head"]) == {}


def test_the_dominance_rate_is_the_share_of_elements_that_non_text_moves_more(tiny):
    """Against per-sample gradients by autograd, text and non-text positions apart."""
    model = tiny.make_lora(lora_dropout=0.0)
    handle = attach(model, ImodConfig(lambda1=1e-6), fused=False)
    inputs = tiny.make_inputs(rows=3)
    markers = (tiny.VISION_START, tiny.VISION_END)
    modality = token_modality(inputs["input_ids"], inputs["attention_mask"], (tiny.IMAGE, tiny.AUDIO), markers)
    handle.sample_next()
    seen = {}
    for name, module in handle.modules.items():
        module.register_forward_hook(lambda m, args, out, name=name: keep(seen, name, args[0], out))
    model(**inputs).loss.backward()
    larger = elements = 0
    for name, module in handle.modules.items():
        x, output = seen[name]
        fisher = {}
        for code in (TEXT, NON_TEXT):
            here = (modality == code).unsqueeze(-1)
            per_row = torch.einsum("blr,bld->brd", output.grad * here, x)
            fisher[code] = per_row.square().mean(0)
        share = (fisher[NON_TEXT] > fisher[TEXT]).float().mean()
        assert module.meter.latest[-1] == pytest.approx(float(share), abs=1e-6)
        larger, elements = larger + share * module.weight.numel(), elements + module.weight.numel()
    assert handle.signals()["imod/non_text_dominance"] == pytest.approx(float(larger / elements), abs=1e-6)
    assert 0 < larger < elements


def keep(seen, name, x, output):
    """Remember what a layer saw, and let its output keep its gradient."""
    output.retain_grad()
    seen[name] = (x.detach(), output)


def test_the_dominance_rate_remembers_earlier_batches(tiny):
    model = tiny.make_lora()
    handle = attach(model, ImodConfig())
    rates = []
    for seed in range(3):
        handle.sample_next()
        tiny.step_gradients(model, tiny.make_inputs(seed))
        rates.append(handle.signals()["imod/non_text_dominance"])
    fresh = tiny.make_lora()
    handle = attach(fresh, ImodConfig())
    handle.sample_next()
    tiny.step_gradients(fresh, tiny.make_inputs(2))
    assert len(set(rates)) == 3
    assert rates[-1] != handle.signals()["imod/non_text_dominance"]
