"""The fused branch: exact against autograd, equal to PEFT's own way up to rounding, taken only where it is open."""

import pytest
import torch
from oracle import EXACT, difference, oracle_gradient, random_case
from peft import LoraConfig

from imod_train import ImodConfig, attach
from imod_train.fused import FusedLora, FusedLoraLinear
from imod_train.projection import ImodLinear
from imod_train.tokens import TokenBatch, TokenHolder

STRONG = ImodConfig(lambda1=1.0, lambda2=1.0)
FLOAT32 = 2e-5
"""Relative; float32 rounding over a sum of a few hundred terms."""
BFLOAT16 = 0.1
"""Relative; bfloat16 rounding through two layers."""


@pytest.mark.parametrize("block", range(8))
def test_all_gradients_of_the_branch_equal_autograd_in_hundreds_of_cases(block):
    for seed in range(block * 60, (block + 1) * 60):
        A, codes, X, modality, segment, config = random_case(seed)
        if not config.active:
            continue
        g = torch.Generator().manual_seed(seed)
        W, b, B, grad_y = (
            torch.randn(*shape, generator=g, dtype=A.dtype)
            for shape in ((5, A.shape[1]), (5,), (5, len(A)), (*X.shape[:-1], 5))
        )
        bias = b if seed % 2 else None
        leaves = [t.clone().requires_grad_() for t in (X, A, B)]
        x, a, b_matrix = leaves
        y = torch.nn.functional.linear(x, W, bias) + 0.7 * (x @ a.T) @ b_matrix.T
        wanted_x, task, wanted_B = torch.autograd.grad(y, leaves, grad_y)
        wanted_A = task + oracle_gradient(A, codes, X, modality, segment, config, task)
        module, batch = adopted(A, codes, modality, segment, config)
        found_y = FusedLora.apply(x, None, W, bias, a, b_matrix, 0.7, module, batch)
        found = torch.autograd.grad(found_y, leaves, grad_y)
        assert difference(found_y.detach(), y.detach()) <= EXACT, f"case {seed}"
        for got, wanted in zip(found, (wanted_x, wanted_A, wanted_B), strict=True):
            assert difference(got, wanted) <= EXACT, f"case {seed}"
        if difference(wanted_A, task) > 1e-3:
            assert difference(found[1], task) > 1e-4, f"case {seed}"


def adopted(A, codes, modality, segment, config):
    """A layer for a branch, and the batch in flight."""
    module = ImodLinear.adopt(torch.nn.Linear(A.shape[1], len(A), bias=False), "q", codes, config, TokenHolder((), ()))
    packed = segment.max() > 0
    batch = TokenBatch(modality, segment if packed else None, int(segment.max()) + 1)
    batch.scale = torch.ones((), dtype=A.dtype)
    return module, batch


@pytest.mark.parametrize("reduction", ["mean", "energy", "relative"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_both_routes_agree(tiny, reduction, dropout):
    config = ImodConfig(lambda1=1.0, lambda2=1.0, reduction=reduction)
    results, logits = [], []
    for fused in (True, False):
        model = tiny.make_lora(lora_dropout=dropout)
        handle = attach(model, config, fused=fused)
        assert len(handle.fused) == (len(handle.modules) if fused else 0)
        torch.manual_seed(4)
        logits.append(model(**tiny.make_inputs()).logits)
        torch.manual_seed(4)
        results.append(tiny.step_gradients(model))
    assert torch.allclose(*logits, atol=1e-6)
    for left, right in zip(*results, strict=True):
        assert tiny.largest_difference(left, right) < FLOAT32


def test_both_routes_agree_in_bfloat16_with_and_without_autocast(tiny):
    for autocast in (True, False):
        results = []
        for fused in (True, False):
            model = tiny.make_lora(base=tiny.make_base().bfloat16())
            assert len(attach(model, STRONG, fused=fused).fused) > 0 or not fused
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                results.append(tiny.step_gradients(model))
        for left, right in zip(*results, strict=True):
            assert {gradient.dtype for gradient in left.values()} == {torch.float32}
            assert 0 < tiny.largest_difference(left, right) < BFLOAT16


def test_bfloat16_tokens_give_the_constraints_to_a_percent(tiny):
    """The small λ2 = 1e-4 as well, which is rounded away where it is added to the task in bfloat16."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(2, 64, 96, generator=g) + 0.5 * torch.randn(96, generator=g)
    A, task = torch.randn(8, 96, generator=g), torch.randn(2, 64, 8, generator=g)
    codes = torch.randint(3, (8, 96), generator=g, dtype=torch.uint8)
    modality = torch.randint(2, (2, 64), generator=g, dtype=torch.uint8)
    segment = torch.zeros(2, 64, dtype=torch.int64)
    X, task = X.bfloat16(), (0.01 * task).bfloat16()
    for config in (ImodConfig(lambda2=0.0), ImodConfig(lambda1=0.0, lambda2=1e-4)):
        wanted = oracle_gradient(A.double(), codes, X.double(), modality, segment, config)
        module, batch = adopted(A, codes, modality, segment, config)
        hidden = X @ A.T.bfloat16()
        without = adopted(A, codes, modality, segment, ImodConfig(lambda1=0.0, lambda2=1e-30))[0]
        both = module.gradient(A, X, hidden, task, batch)
        batch.set_scale(batch.scale)
        plain = without.gradient(A, X, hidden, task, batch)
        assert ((both - plain).double() - wanted).norm() < 0.02 * wanted.norm()
    lost = both.bfloat16() - plain.bfloat16()
    assert (lost.double() - wanted).norm() > 0.5 * wanted.norm()


def test_no_more_is_saved_for_backward_than_lora_saves(tiny):
    def saved(model):
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        storages = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kept = model(**tiny.make_inputs()).loss
        assert kept.requires_grad
        return sum(storages.values())

    for dtype in (torch.float32, torch.bfloat16):
        found = {}
        for name in ("lora", "general", "fused"):
            model = tiny.make_lora(base=tiny.make_base().to(dtype))
            if name != "lora":
                attach(model, STRONG, fused=name == "fused")
            found[name] = saved(model)
        assert found["fused"] <= found["lora"]
        assert found["general"] <= found["lora"]


def test_the_constraint_is_made_once_under_checkpointing(tiny, monkeypatch):
    import imod_train.projection as projection

    calls, original = [], projection.constrained_gradient
    monkeypatch.setattr(projection, "constrained_gradient", lambda *args: (calls.append(1), original(*args))[1])
    model = tiny.make_lora()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    handle = attach(model, STRONG)
    tiny.step_gradients(model)
    assert len(calls) == len(handle.modules)


def short_ways(model, inputs):
    """How many layers take the short way in one forward pass."""
    taken = []
    original = FusedLora.forward

    def forward(ctx, *args):
        taken.append(1)
        return original(ctx, *args)

    FusedLora.forward = staticmethod(forward)
    try:
        model(**inputs)
    finally:
        FusedLora.forward = staticmethod(original)
    return len(taken)


def test_the_short_way_is_taken_where_it_is_open_only(tiny):
    inputs = tiny.make_inputs()
    model = tiny.make_lora()
    everything = tiny.LAYERS * len(tiny.TARGETS)
    handle = attach(model, STRONG)
    assert short_ways(model, inputs) == everything
    with torch.no_grad():
        assert short_ways(model, inputs) == 0
    assert short_ways(model.eval(), inputs) == 0
    model.train()
    layer = handle.modules["model.layers.0.self_attn.q_proj"]
    hook = layer.register_forward_pre_hook(lambda module, args: None)
    assert short_ways(model, inputs) == everything - 1
    hook.remove()
    with model.disable_adapter():
        assert short_ways(model, inputs) == 0
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "other"])
    assert short_ways(model, inputs) == everything - tiny.LAYERS
    model.set_adapter("default")
    model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight.requires_grad_(True)
    assert short_ways(model, inputs) == everything - 1
    handle.detach()
    assert short_ways(model, inputs) == 0
    assert not any(isinstance(module, FusedLoraLinear) for module in model.modules())


def test_a_frozen_first_layer_gets_no_gradient_of_its_input(tiny):
    model = tiny.make_lora(target_modules=["q_proj"])
    attach(model, STRONG)
    a, b = tiny.step_gradients(model)
    assert all(gradient.norm() > 0 for gradient in [*a.values(), *b.values()])
    assert all(p.grad is None for name, p in model.named_parameters() if "lora" not in name)
