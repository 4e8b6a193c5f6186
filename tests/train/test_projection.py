"""One A matrix: LoRA's forward, LoRA's gradients for x, and the injected gradient in every precision."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from imod_core.errors import InputError
from imod_core.modality import IGNORED, NON_TEXT, TEXT
from imod_train import ImodConfig
from imod_train.masks import make_partition
from imod_train.projection import ImodLinear
from imod_train.signals import Signals
from imod_train.tokens import TokenBatch, TokenHolder, loss_share, packed_segments

RANK, FEATURES, ROWS, LENGTH = 4, 24, 2, 10
STRONG = ImodConfig(lambda1=1.0, lambda2=1.0)
BF16_STEP = 2**-8
"""Rounding of one bfloat16 value."""


def make_layer(config=STRONG, dtype=torch.float32, scale=1.0):
    """An adopted layer beside its plain twin, with a batch in flight."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(FEATURES, RANK, bias=False, dtype=dtype)
    twin = torch.nn.Linear(FEATURES, RANK, bias=False, dtype=dtype)
    twin.load_state_dict(plain.state_dict())
    holder = TokenHolder((), ())
    holder.current = TokenBatch(modality(), scale=None if scale is None else torch.tensor(scale))
    partition = make_partition((RANK, FEATURES), "q", 0, 0.4, 1.0)
    return ImodLinear.adopt(plain, "q", partition, config, holder), twin


def modality():
    return torch.tensor(
        [[NON_TEXT] * 4 + [TEXT] * 5 + [IGNORED], [IGNORED] * 2 + [NON_TEXT, TEXT] * 4], dtype=torch.uint8
    )


def make_x(dtype=torch.float32, **options):
    torch.manual_seed(1)
    return torch.randn(ROWS, LENGTH, FEATURES, dtype=dtype, **options)


def backward(layer, x):
    """Gradients of x and A under a fixed gradient at the output."""
    torch.manual_seed(2)
    output = layer(x)
    output.backward(torch.randn(ROWS, LENGTH, RANK).to(output.dtype).view_as(output))
    return x.grad, layer.weight.grad


def test_the_forward_is_the_linear_layers():
    layer, twin = make_layer()
    x = make_x()
    assert torch.equal(layer(x), twin(x))


def test_only_the_gradient_of_A_differs_from_lora():
    layer, twin = make_layer()
    x_grad, a_grad = backward(layer, make_x(requires_grad=True))
    twin_x_grad, twin_a_grad = backward(twin, make_x(requires_grad=True))
    assert torch.equal(x_grad, twin_x_grad)
    assert not torch.allclose(a_grad, twin_a_grad)
    assert (a_grad - twin_a_grad).norm() > 0.1 * twin_a_grad.norm()


def test_lambda_zero_is_the_linear_layer_bit_for_bit():
    layer, twin = make_layer(ImodConfig(lambda1=0.0, lambda2=0.0))
    pairs = zip(backward(layer, make_x(requires_grad=True)), backward(twin, make_x(requires_grad=True)), strict=True)
    assert all(torch.equal(found, wanted) for found, wanted in pairs)


def test_flat_tokens_and_rows_of_tokens_give_one_gradient():
    layer, _ = make_layer()
    by_rows = backward(layer, make_x())[1].clone()
    layer.weight.grad = None
    flat = backward(layer, make_x().flatten(0, 1))[1]
    assert torch.equal(by_rows, flat)


def test_an_input_that_needs_no_gradient_gets_none():
    layer, _ = make_layer()
    x_grad, a_grad = backward(layer, make_x())
    assert x_grad is None
    assert a_grad is not None


def test_a_frozen_A_is_passed_by():
    layer, twin = make_layer()
    layer.weight.requires_grad_(False)
    twin.weight.requires_grad_(False)
    x, twin_x = make_x(requires_grad=True), make_x(requires_grad=True)
    assert torch.equal(backward(layer, x)[0], backward(twin, twin_x)[0])
    assert layer.weight.grad is None


def test_evaluation_and_no_grad_need_no_batch():
    layer, twin = make_layer()
    layer.holder.current = None
    with torch.no_grad():
        assert torch.equal(layer(make_x()), twin(make_x()))
    assert torch.equal(layer.eval()(make_x()), twin(make_x()))


def test_the_loss_scale_multiplies_only_what_is_injected():
    task = make_layer()[1]
    task_grad = backward(task, make_x())[1]
    injected = {}
    for scale in (1.0, 1024.0, 0.25, 0.0):
        layer, _ = make_layer(scale=scale)
        injected[scale] = backward(layer, make_x())[1] - task_grad
    assert torch.allclose(injected[1024.0] / 1024, injected[1.0], rtol=1e-4, atol=1e-5)
    assert torch.allclose(injected[0.25] * 4, injected[1.0], rtol=1e-4, atol=1e-5)
    assert torch.allclose(injected[0.0], torch.zeros(()), atol=1e-5)


def test_a_loss_that_was_never_seen_is_warned_of_once():
    layer, _ = make_layer(scale=None)
    with pytest.warns(UserWarning, match="saw no loss"):
        first = backward(layer, make_x())[1].clone()
    layer.weight.grad = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backward(layer, make_x())
    assert torch.equal(first, backward(make_layer()[0], make_x())[1])


def test_autocast_keeps_loras_output_and_gives_A_its_gradient_in_float32():
    layer, twin = make_layer()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(make_x()), twin(make_x()))
        x_grad, a_grad = backward(layer, make_x(requires_grad=True))
        twin_x_grad, _ = backward(twin, make_x(requires_grad=True))
    assert torch.equal(x_grad, twin_x_grad)
    assert a_grad.dtype == torch.float32
    wanted = backward(make_layer()[0], make_x())[1]
    assert (a_grad - wanted).norm() < 2 * BF16_STEP * wanted.norm()


def test_a_small_alignment_constraint_survives_autocast():
    """λ2 = 1e-4 beside a task gradient thousands of times larger, which is where bfloat16 arithmetic loses
    it."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with_maac = backward(make_layer(ImodConfig(lambda1=0.0, lambda2=1e-4))[0], make_x())[1]
        without = backward(make_layer(ImodConfig(lambda1=0.0, lambda2=1e-12))[0], make_x())[1]
    in_float32 = [
        backward(make_layer(ImodConfig(lambda1=0.0, lambda2=weight))[0], make_x().bfloat16().float())[1]
        for weight in (1e-4, 1e-12)
    ]
    wanted = in_float32[0] - in_float32[1]
    assert (with_maac - without - wanted).norm() < 0.05 * wanted.norm()
    in_bfloat16 = with_maac.bfloat16().float() - without.bfloat16().float()
    assert (in_bfloat16 - wanted).norm() > 0.5 * wanted.norm()


def test_a_half_precision_A_gets_its_gradient_in_its_own_dtype():
    layer, _ = make_layer(dtype=torch.bfloat16)
    assert backward(layer, make_x(torch.bfloat16))[1].dtype == torch.bfloat16


def test_a_token_count_that_does_not_fit_is_refused():
    layer, _ = make_layer()
    with pytest.raises(InputError, match="'q' received 9 tokens where input_ids hold 20"):
        layer(torch.randn(1, 9, FEATURES))
    layer.holder.current = None
    with pytest.raises(InputError, match="'q' was trained outside the model's own forward"):
        layer(make_x())


def test_release_leaves_a_plain_layer():
    layer, twin = make_layer()
    parameter = layer.weight
    assert list(layer.state_dict()) == ["weight"]
    layer.release()
    assert type(layer) is torch.nn.Linear
    assert layer.weight is parameter
    assert not dict(layer.named_buffers())
    pairs = zip(backward(layer, make_x(requires_grad=True)), backward(twin, make_x(requires_grad=True)), strict=True)
    assert all(torch.equal(found, wanted) for found, wanted in pairs)


def test_a_layer_under_accelerates_device_hook_is_injected_too():
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    hooked = torch.nn.Linear(FEATURES, RANK, bias=False)
    reference, twin = make_layer()
    hooked.load_state_dict(twin.state_dict())
    add_hook_to_module(hooked, AlignDevicesHook(execution_device="cpu"))
    adopted = ImodLinear.adopt(hooked, "q", reference.partition, STRONG, reference.holder)
    assert torch.equal(backward(adopted, make_x())[1], backward(reference, make_x())[1])
    adopted.weight.grad = None
    adopted.release()
    assert torch.equal(backward(hooked, make_x())[1], backward(twin, make_x())[1])


def test_signals_measure_without_changing_the_gradient():
    layer, twin = make_layer()
    plain = backward(layer, make_x())[1].clone()
    assert layer.meter.latest is None
    layer.weight.grad = None
    layer.holder.current.sample = True
    assert torch.equal(backward(layer, make_x())[1], plain)
    signals = Signals(*layer.meter.latest)
    task = backward(twin, make_x())[1]
    assert torch.allclose(signals.task, task.square().sum())
    assert torch.allclose(signals.injected, (plain - task).square().sum(), rtol=1e-4)
    text = make_x()[modality() == TEXT]
    foreign = layer.weight * (layer.partition == 1)
    assert torch.allclose(signals.text_foreign, F.linear(text, foreign).square().sum())
    assert torch.allclose(signals.text_total, F.linear(text, layer.weight).square().sum())
    assert 0 < signals.other_foreign < signals.other_total


def test_packed_rows_are_cut_where_positions_start_again():
    codes = torch.zeros(1, 6, dtype=torch.uint8)
    positions = torch.tensor([[0, 1, 2, 0, 1, 0]])
    number, segments = packed_segments(positions, None, codes)
    assert (number.tolist(), segments) == ([[0, 0, 0, 1, 1, 2]], 3)
    in_three_dimensions = torch.stack([positions, positions, torch.tensor([[0, 0, 0, 0, 3, 0]])])
    assert packed_segments(in_three_dimensions, None, codes)[0].tolist() == [[0, 0, 0, 1, 1, 2]]


def test_padding_and_ordinary_positions_cut_nothing():
    codes = torch.zeros(2, 4, dtype=torch.uint8)
    assert packed_segments(torch.arange(4)[None], None, codes) == (None, 1)
    left_padded = torch.tensor([[0, 0, 0, 1], [0, 1, 2, 3]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert packed_segments(left_padded, mask, codes) == (None, 1)
    assert packed_segments(left_padded, None, codes)[1] == 3
    assert packed_segments(None, mask, codes) == (None, 1)


def test_the_share_of_a_micro_batch_is_its_part_of_the_steps_targets():
    labels = torch.tensor([[5, -100, 6, 7], [8, -100, -100, 9]])
    assert float(loss_share({"labels": labels, "num_items_in_batch": torch.tensor(12)})) == 0.25
    assert float(loss_share({"shift_labels": labels, "num_items_in_batch": 10})) == 0.5
    assert loss_share({"labels": labels}) is None
    assert loss_share({"num_items_in_batch": 10}) is None
