"""What a step asks of the device beside LoRA's: few launches, and nothing that the host waits for."""

from collections import Counter

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from imod_train import ImodConfig, attach  # noqa: E402

PASSES = {
    "_unsafe_view",
    "alias",
    "detach",
    "lift_fresh",
    "promote_types",
    "result_type",
    "new_empty",
    "empty",
    "scalar_tensor",
}
"""Operators that start nothing on a device, beside views."""
LAUNCHES_OF_A_MODULE = 28
"""That the constraints may cost, most of them on a few numbers of a sequence."""
LAUNCHES_OF_A_BATCH = 50
"""That reading modality and weights of the tokens may cost, once for all modules."""


class Launches(TorchDispatchMode):
    """Counts operators, and those whose result, or the shape of it, the host has to wait for."""

    def __init__(self):
        super().__init__()
        self.launched, self.waited = 0, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & {*func.tags} or name == "lift_fresh":
            self.waited[name] += 1
        self.launched += not func.is_view and name not in PASSES
        return func(*args, **(kwargs or {}))


def launches_of_a_step(model, inputs):
    """Of the second step: the first one may prepare."""
    model(**inputs).loss.backward()
    model.zero_grad(set_to_none=True)
    with Launches() as launches:
        model(**inputs).loss.backward()
    return launches


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "general"])
@pytest.mark.parametrize("reduction", ["mean", "paper", "elements", "energy", "relative"])
def test_a_step_waits_for_nothing_that_lora_does_not_wait_for(tiny, reduction, fused):
    inputs, model = tiny.make_inputs(), tiny.make_lora()
    attach(model, ImodConfig(reduction=reduction), fused=fused)
    assert launches_of_a_step(model, inputs).waited == launches_of_a_step(tiny.make_lora(), inputs).waited


@pytest.mark.parametrize("reduction", ["mean", "paper", "elements"])
def test_constraints_cost_few_launches(tiny, reduction):
    inputs, model = tiny.make_inputs(), tiny.make_lora()
    handle = attach(model, ImodConfig(reduction=reduction))
    extra = launches_of_a_step(model, inputs).launched - launches_of_a_step(tiny.make_lora(), inputs).launched
    assert 0 < extra <= len(handle.modules) * LAUNCHES_OF_A_MODULE + LAUNCHES_OF_A_BATCH


def test_measuring_the_signals_waits_for_nothing_before_they_are_read(tiny):
    inputs = tiny.make_inputs()
    plain = launches_of_a_step(tiny.make_lora(), inputs)
    model = tiny.make_lora()
    handle = attach(model, ImodConfig())
    model(**inputs).loss.backward()
    handle.sample_next()
    with Launches() as launches:
        model(**inputs).loss.backward()
    assert launches.waited == plain.waited
    with Launches() as reading:
        assert handle.signals()
    assert reading.waited, "so that this test would notice"


def test_packed_rows_are_counted_by_one_wait_of_a_forward_pass(tiny):
    inputs = {**tiny.make_inputs(), "position_ids": torch.arange(6).repeat(2, 2)}
    plain = launches_of_a_step(tiny.make_lora(), inputs)
    model = tiny.make_lora()
    attach(model, ImodConfig())
    found = launches_of_a_step(model, inputs)
    assert sum((found.waited - plain.waited).values()) == 1
