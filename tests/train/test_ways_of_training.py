"""However people train, the gradients are the same, or λ means the same."""

import pytest
import torch

from imod_core.errors import InputError
from imod_train import ImodConfig, attach

STRONG = ImodConfig(lambda1=1.0, lambda2=1.0)
FLOAT32 = 2e-5
"""Relative; float32 rounding over a sum of a few hundred terms."""
FLOAT16 = 0.05
"""Relative; float16 rounding through two layers."""


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(tiny, reentrant):
    models = [tiny.make_lora(lora_dropout=0.1) for _ in range(2)]
    models[0].gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    models[0].enable_input_require_grads()
    results = []
    for model in models:
        attach(model, STRONG)
        torch.manual_seed(3)
        results.append(tiny.step_gradients(model))
    assert tiny.equal(results[0][0], results[1][0])
    assert tiny.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("reentrant", [True, False])
def test_two_forwards_before_their_backwards_keep_their_own_modalities(tiny, reentrant):
    model = tiny.make_lora()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    attach(model, STRONG)
    first, second = tiny.make_inputs(1), tiny.make_inputs(2, rows=3, length=9)
    apart = [tiny.step_gradients(model, inputs)[0] for inputs in (first, second)]
    summed = {name: apart[0][name] + apart[1][name] for name in apart[0]}
    model.zero_grad(set_to_none=True)
    losses = [model(**inputs).loss for inputs in (first, second)]
    losses[0].backward()
    losses[1].backward()
    assert tiny.largest_difference(tiny.a_gradients(model), summed) < FLOAT32
    model.zero_grad(set_to_none=True)
    sum(model(**inputs).loss for inputs in (first, second)).backward()
    assert tiny.largest_difference(tiny.a_gradients(model), summed) < FLOAT32


def test_a_scaled_loss_scales_the_whole_gradient_so_lambda_keeps_its_meaning(tiny):
    model = tiny.make_lora()
    attach(model, STRONG)
    plain, _ = tiny.step_gradients(model)
    for factor in (65536.0, 1 / 8):
        scaled, _ = tiny.step_gradients(model, factor=factor)
        assert tiny.largest_difference({name: g / factor for name, g in scaled.items()}, plain) < FLOAT32


def test_accumulating_a_batch_twice_at_half_weight_is_that_batch(tiny):
    model = tiny.make_lora()
    attach(model, STRONG)
    once, _ = tiny.step_gradients(model)
    model.zero_grad(set_to_none=True)
    for _ in range(2):
        (model(**tiny.make_inputs()).loss / 2).backward()
    assert tiny.largest_difference(tiny.a_gradients(model), once) < FLOAT32


def test_accumulation_by_token_counts_keeps_lambda_too(tiny):
    """transformers' Trainer divides the sum of the losses by the step's target count instead of the mean by
    steps."""
    model = tiny.make_lora()
    attach(model, STRONG)
    inputs = tiny.make_inputs()
    once, _ = tiny.step_gradients(model)
    targets = int((inputs["labels"][:, 1:] != -100).sum())
    model.zero_grad(set_to_none=True)
    for _ in range(4):
        model(**inputs, num_items_in_batch=torch.tensor(4 * targets)).loss.backward()
    assert tiny.largest_difference(tiny.a_gradients(model), once) < FLOAT32


def test_a_loss_of_ones_own_is_announced_by_scale(tiny):
    model = tiny.make_lora()
    handle = attach(model, STRONG)
    inputs = tiny.make_inputs()
    labels = inputs.pop("labels")

    def own_gradients(factor, announce):
        model.zero_grad(set_to_none=True)
        logits = model(**inputs).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        ((handle.scale(loss) if announce else loss) * factor).backward()
        return {name: g / factor for name, g in tiny.a_gradients(model).items()}

    wanted, _ = tiny.step_gradients(model, {**inputs, "labels": labels})
    assert tiny.largest_difference(own_gradients(1024.0, announce=True), wanted) < FLOAT32
    with pytest.warns(UserWarning, match="saw no loss"):
        assert tiny.largest_difference(own_gradients(1024.0, announce=False), wanted) > 0.01


def test_one_loss_over_two_forwards_scales_both(tiny):
    """As of pairs of a chosen and a rejected answer."""
    model = tiny.make_lora()
    handle = attach(model, STRONG)
    batches = [tiny.make_inputs(seed) for seed in (0, 1)]

    def gradients(factor, losses):
        model.zero_grad(set_to_none=True)
        (losses() * factor).backward()
        return {name: g / factor for name, g in tiny.a_gradients(model).items()}

    def own(inputs):
        given = {name: value for name, value in inputs.items() if name != "labels"}
        logits = model(**given).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"][:, 1:].flatten())

    wanted = gradients(1.0, lambda: sum(model(**inputs).loss for inputs in batches))
    found = gradients(1024.0, lambda: handle.scale(sum(own(inputs) for inputs in batches)))
    assert tiny.largest_difference(found, wanted) < FLOAT32
    model.get_base_model().gradient_checkpointing_enable()
    with pytest.raises(InputError, match="One loss over 2 forward passes"):
        handle.scale(sum(own(inputs) for inputs in batches))


def test_evaluation_and_generation_between_forward_and_backward_change_nothing(tiny):
    model = tiny.make_lora()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    attach(model, STRONG)
    wanted, _ = tiny.step_gradients(model)
    model.zero_grad(set_to_none=True)
    loss = model(**tiny.make_inputs()).loss
    model.eval()
    with torch.no_grad():
        model(**tiny.make_inputs(5, rows=1))
        model.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False)
    model.train()
    loss.backward()
    assert tiny.equal(tiny.a_gradients(model), wanted)


def test_a_packed_row_equals_its_sequences_apart(tiny):
    model = tiny.make_lora()
    handle = attach(model, ImodConfig(lambda1=0.0, lambda2=1.0), fused=False)
    module = handle.modules["model.layers.0.self_attn.q_proj"]
    rows = [tiny.make_inputs(seed, rows=1, length=8)["input_ids"] for seed in (0, 3)]
    joined = torch.cat(rows, 1)
    positions = {"restarting": torch.arange(8).repeat(2)[None], "running on": torch.arange(16)[None]}
    apart = injected_by(module, first_input(model, module, {"input_ids": torch.cat(rows)}))
    packed, uncut = (
        injected_by(module, first_input(model, module, {"input_ids": joined, "position_ids": ids}))
        for ids in positions.values()
    )
    assert torch.allclose(packed, apart, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(uncut, apart, rtol=1e-2)


def first_input(model, module, inputs):
    """What a module sees in one training forward, which also fills the holder."""
    seen = []
    hook = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    model(**inputs)
    hook.remove()
    return seen[0]


def injected_by(module, x):
    """The constraints' gradient alone: no gradient arrives from behind."""
    module.holder.current.scale = torch.ones(())
    module.weight.grad = None
    output = module(x)
    output.backward(torch.zeros_like(output))
    return module.weight.grad.clone()


def test_autocast_trains_with_a_float32_gradient_of_A(tiny):
    model = tiny.make_lora()
    attach(model, STRONG)
    exact, _ = tiny.step_gradients(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, _ = tiny.step_gradients(model)
    assert {gradient.dtype for gradient in rounded.values()} == {torch.float32}
    assert 0 < tiny.largest_difference(rounded, exact) < 0.2


def pad(inputs, side, by=4):
    """The same rows with more padding on one side."""
    padded = {}
    for name, value in (("input_ids", 0), ("attention_mask", 0), ("labels", -100)):
        extra = torch.full((len(inputs[name]), by), value)
        padded[name] = torch.cat([extra, inputs[name]] if side == "left" else [inputs[name], extra], 1)
    return padded


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(tiny, side):
    model = tiny.make_lora()
    attach(model, STRONG)
    inputs = {name: value[:1] for name, value in tiny.make_inputs().items()}  # the row without padding of its own
    plain, _ = tiny.step_gradients(model, inputs)
    padded = pad(inputs, side)
    assert tiny.largest_difference(tiny.step_gradients(model, padded)[0], plain) < FLOAT32
    unmasked = {**padded, "attention_mask": torch.ones_like(padded["attention_mask"])}
    assert tiny.largest_difference(tiny.step_gradients(model, unmasked)[0], plain) > 0.01


def test_a_sample_without_media_adds_its_text_to_msdc_and_nothing_to_maac(tiny):
    model = tiny.make_lora()
    inputs = tiny.make_inputs()
    without = {name: value.clone() for name, value in inputs.items()}
    without["input_ids"][1, :5] = torch.arange(5, 10)
    one = {name: value[:1] for name, value in inputs.items()}
    alone = {name: value[1:] for name, value in without.items()}

    def injected(config, inputs):
        plain, _ = tiny.step_gradients(model, inputs)
        handle = attach(model, config, fused=False)
        found, _ = tiny.step_gradients(model, inputs)
        handle.detach()
        return {name: found[name] - plain[name] for name in found}

    maac = ImodConfig(lambda1=0.0, lambda2=1.0)
    assert all(torch.isfinite(g).all() for g in injected(STRONG, alone).values())
    assert all(g.norm() < 1e-6 for g in injected(maac, alone).values())
    assert tiny.largest_difference(injected(maac, without), injected(maac, one)) < 1e-3
    assert all(g.norm() > 1e-3 for g in injected(ImodConfig(lambda1=1.0), alone).values())


def test_fp16_with_a_loss_scaler_gives_the_gradient_of_float32(tiny):
    model = tiny.make_lora()
    attach(model, STRONG)
    exact, _ = tiny.step_gradients(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.float16):
        loss = model(**tiny.make_inputs()).loss
    scaler.scale(loss).backward()
    scaled = tiny.a_gradients(model)
    scaler.unscale_(optimizer)
    assert {gradient.dtype for gradient in scaled.values()} == {torch.float32}
    assert tiny.largest_difference(tiny.a_gradients(model), exact) < FLOAT16
    assert tiny.largest_difference(scaled, exact) > 1000
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    scaler.step(optimizer)
    assert any(not torch.equal(before[name], p) for name, p in model.named_parameters() if name in before)


def test_a_compiled_model_has_the_gradients_of_an_eager_one(tiny):
    """Each LoRA layer is a break in the graph; what is between is compiled."""
    import torch._dynamo

    model = tiny.make_lora()
    attach(model, STRONG)
    exact = tiny.step_gradients(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for inputs in (tiny.make_inputs(), tiny.make_inputs(3)):
        exact = tiny.step_gradients(model, inputs)
        found = tiny.step_gradients(compiled, inputs)
        for left, right in zip(found, exact, strict=True):
            left = {name.removeprefix("_orig_mod."): gradient for name, gradient in left.items()}
            assert tiny.largest_difference(left, right) < FLOAT32
    torch._dynamo.reset()


def test_warm_up_raises_both_weights_from_nothing(tiny):
    model = tiny.make_lora()
    plain, _ = tiny.step_gradients(model)
    handle = attach(model, STRONG, fused=False)
    full, _ = tiny.step_gradients(model)
    handle.detach()
    handle = attach(model, ImodConfig(lambda1=1.0, lambda2=1.0, warmup_steps=4), fused=False)
    with pytest.raises(InputError, match=r"'warmup_steps' is 4, but nobody counts the steps"):
        tiny.step_gradients(model)
    for step, share in ((0, 0.0), (1, 0.25), (4, 1.0), (9, 1.0)):
        handle.warm_up(step)
        found, _ = tiny.step_gradients(model)
        wanted = {name: plain[name] + share * (full[name] - plain[name]) for name in plain}
        assert tiny.largest_difference(found, wanted) < FLOAT32
