"""IMoD on a whole PEFT model: the adapter stays LoRA, the gradient is the oracle's, and everything else is
LoRA's."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

from imod_core.errors import InputError
from imod_core.modality import NON_TEXT, TEXT, token_modality
from imod_train import ImodCallback, ImodConfig, attach
from imod_train.constraints import cosine
from imod_train.masks import NON_TEXT_BLOCK, SHARED_BLOCK, TEXT_BLOCK
from imod_train.projection import ImodLinear

STRONG = ImodConfig(lambda1=1.0, lambda2=1.0)
FLOAT32 = 2e-5
"""Relative; float32 rounding over a sum of a few hundred terms."""


def step_gradients(tiny, model, inputs=None, factor=1.0):
    """Gradients of A and of B after one forward and backward of `factor` times the loss."""
    model.zero_grad(set_to_none=True)
    (model(**(inputs or tiny.make_inputs())).loss * factor).backward()
    return tiny.a_gradients(model), tiny.b_gradients(model)


def largest_difference(left, right):
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).norm() / right[name].norm()) for name in left)


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


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
    train(tiny, model, steps=3)
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


@pytest.mark.parametrize("reduction", ["mean", "paper"])
def test_the_injected_gradient_equals_the_oracle_at_the_modules_inputs(tiny, reduction):
    config = ImodConfig(lambda1=0.7, lambda2=0.9, reduction=reduction)
    model = tiny.make_lora().double()
    plain, _ = step_gradients(tiny, model)
    inputs, seen = tiny.make_inputs(), {}
    handle = attach(model, config)
    for name, module in handle.modules.items():
        module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].detach()}))
    injected, _ = step_gradients(tiny, model)
    markers = (tiny.VISION_START, tiny.VISION_END)
    modality = token_modality(inputs["input_ids"], inputs["attention_mask"], (tiny.IMAGE, tiny.AUDIO), markers)
    for name, module in handle.modules.items():
        leaf = module.weight.detach().clone().requires_grad_()
        oracle(leaf, module.partition, seen[name], modality, config).backward()
        key = f"base_model.model.{name}.lora_A.default.weight"
        assert (injected[key] - plain[key] - leaf.grad).norm() <= 1e-10 * injected[key].norm()
        assert leaf.grad.norm() > 1e-3 * plain[key].norm()


def oracle(A, codes, X, modality, config):
    """The constraint as a loss, for rows that all hold both modalities."""
    text, other = X[modality == TEXT], X[modality == NON_TEXT]
    on_text = (text @ (A * (codes == NON_TEXT_BLOCK)).T).square().sum()
    on_other = (other @ (A * (codes == TEXT_BLOCK)).T).square().sum()
    if config.reduction == "mean":
        on_text, on_other = on_text / len(text), on_other / len(other)
    shared, aligned = A * (codes == SHARED_BLOCK), 0
    for row, code in zip(X, modality, strict=True):
        s_t, s_o = row[code == TEXT] @ shared.T, row[code == NON_TEXT] @ shared.T
        w = sum(cosine(s, s.mean(0)).mean() for s in (s_t.detach(), s_o.detach()))
        aligned = aligned + (1 - w * cosine(s_t.mean(0), s_o.mean(0))) / len(X)
    return config.lambda1 * (on_text + on_other) + config.lambda2 * aligned


def test_gradients_of_B_and_logits_are_loras(tiny):
    model, twin = tiny.make_lora(), tiny.make_lora()
    attach(model, STRONG)
    a, b = step_gradients(tiny, model)
    twin_a, twin_b = step_gradients(tiny, twin)
    assert equal(b, twin_b)
    assert not equal(a, twin_a)
    assert torch.equal(model(**tiny.make_inputs()).logits, twin(**tiny.make_inputs()).logits)


def train(tiny, model, steps):
    """A few optimizer steps; returns the trained parameters."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2, weight_decay=0.0)
    model.train()
    for step in range(steps):
        model(**tiny.make_inputs(seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in trainable.items()}


@pytest.mark.parametrize("off", [ImodConfig(lambda1=0.0, lambda2=0.0), ImodConfig(lambda1=1.0, msdc=False, maac=False)])
def test_lambda_zero_trains_loras_weights_bit_for_bit(tiny, off):
    models = [tiny.make_lora(lora_dropout=0.1) for _ in range(3)]
    attach(models[0], off)
    attach(models[2], ImodConfig())
    results = []
    for model in models:
        torch.manual_seed(3)
        results.append(train(tiny, model, steps=4))
    assert equal(results[0], results[1])
    assert not equal(results[2], results[1])


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(tiny, reentrant):
    models = [tiny.make_lora(lora_dropout=0.1) for _ in range(2)]
    models[0].gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    models[0].enable_input_require_grads()
    results = []
    for model in models:
        attach(model, STRONG)
        torch.manual_seed(3)
        results.append(step_gradients(tiny, model))
    assert equal(results[0][0], results[1][0])
    assert equal(results[0][1], results[1][1])


@pytest.mark.parametrize("reentrant", [True, False])
def test_two_forwards_before_their_backwards_keep_their_own_modalities(tiny, reentrant):
    model = tiny.make_lora()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    attach(model, STRONG)
    first, second = tiny.make_inputs(1), tiny.make_inputs(2, rows=3, length=9)
    apart = [step_gradients(tiny, model, inputs)[0] for inputs in (first, second)]
    summed = {name: apart[0][name] + apart[1][name] for name in apart[0]}
    model.zero_grad(set_to_none=True)
    losses = [model(**inputs).loss for inputs in (first, second)]
    losses[0].backward()
    losses[1].backward()
    assert largest_difference(tiny.a_gradients(model), summed) < FLOAT32
    model.zero_grad(set_to_none=True)
    sum(model(**inputs).loss for inputs in (first, second)).backward()
    assert largest_difference(tiny.a_gradients(model), summed) < FLOAT32


def test_a_scaled_loss_scales_the_whole_gradient_so_lambda_keeps_its_meaning(tiny):
    model = tiny.make_lora()
    attach(model, STRONG)
    plain, _ = step_gradients(tiny, model)
    for factor in (65536.0, 1 / 8):
        scaled, _ = step_gradients(tiny, model, factor=factor)
        assert largest_difference({name: g / factor for name, g in scaled.items()}, plain) < FLOAT32


def test_accumulating_a_batch_twice_at_half_weight_is_that_batch(tiny):
    model = tiny.make_lora()
    attach(model, STRONG)
    once, _ = step_gradients(tiny, model)
    model.zero_grad(set_to_none=True)
    for _ in range(2):
        (model(**tiny.make_inputs()).loss / 2).backward()
    assert largest_difference(tiny.a_gradients(model), once) < FLOAT32


def test_accumulation_by_token_counts_keeps_lambda_too(tiny):
    """transformers' Trainer divides the sum of the losses by the step's target count instead of the mean by
    steps."""
    model = tiny.make_lora()
    attach(model, STRONG)
    inputs = tiny.make_inputs()
    once, _ = step_gradients(tiny, model)
    targets = int((inputs["labels"][:, 1:] != -100).sum())
    model.zero_grad(set_to_none=True)
    for _ in range(4):
        model(**inputs, num_items_in_batch=torch.tensor(4 * targets)).loss.backward()
    assert largest_difference(tiny.a_gradients(model), once) < FLOAT32


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

    wanted, _ = step_gradients(tiny, model, {**inputs, "labels": labels})
    assert largest_difference(own_gradients(1024.0, announce=True), wanted) < FLOAT32
    with pytest.warns(UserWarning, match="saw no loss"):
        assert largest_difference(own_gradients(1024.0, announce=False), wanted) > 0.01


def test_evaluation_and_generation_between_forward_and_backward_change_nothing(tiny):
    model = tiny.make_lora()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    attach(model, STRONG)
    wanted, _ = step_gradients(tiny, model)
    model.zero_grad(set_to_none=True)
    loss = model(**tiny.make_inputs()).loss
    model.eval()
    with torch.no_grad():
        model(**tiny.make_inputs(5, rows=1))
        model.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False)
    model.train()
    loss.backward()
    assert equal(tiny.a_gradients(model), wanted)


def test_eval_mode_gradients_are_loras(tiny):
    model, twin = tiny.make_lora().eval(), tiny.make_lora().eval()
    attach(model, STRONG)
    assert equal(step_gradients(tiny, model)[0], step_gradients(tiny, twin)[0])


def test_a_packed_row_equals_its_sequences_apart(tiny):
    model = tiny.make_lora()
    handle = attach(model, ImodConfig(lambda1=0.0, lambda2=1.0))
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
    exact, _ = step_gradients(tiny, model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, _ = step_gradients(tiny, model)
    assert {gradient.dtype for gradient in rounded.values()} == {torch.float32}
    assert 0 < largest_difference(rounded, exact) < 0.2


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


def test_signals_are_measured_when_asked(tiny):
    model = tiny.make_lora()
    handle = attach(model, STRONG)
    step_gradients(tiny, model)
    assert handle.signals() == {}
    handle.sample_next()
    step_gradients(tiny, model)
    signals = handle.signals()
    assert signals.keys() == {
        "imod/injected_over_task",
        "imod/text_foreign_energy",
        "imod/non_text_foreign_energy",
    }
    assert all(0 < value < 100 for value in signals.values())
    step_gradients(tiny, model, tiny.make_inputs(9))
    assert handle.signals() == signals
    handle.sample_next()
    step_gradients(tiny, model, factor=4096.0)
    assert handle.signals()["imod/injected_over_task"] == pytest.approx(signals["imod/injected_over_task"], rel=1e-3)


def test_training_lowers_the_foreign_energy(tiny):
    results = {}
    for name, config in (("lora", ImodConfig(lambda1=1e-9, lambda2=0.0)), ("imod", ImodConfig(lambda1=1.0))):
        model = tiny.make_lora()
        handle = attach(model, config)
        train(tiny, model, steps=15)
        handle.sample_next()
        step_gradients(tiny, model)
        results[name] = handle.signals()
    for signal in ("imod/text_foreign_energy", "imod/non_text_foreign_energy"):
        assert results["imod"][signal] < 0.8 * results["lora"][signal]


def test_only_the_named_adapter_is_touched(tiny):
    model = tiny.make_lora()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    attach(model, STRONG)
    assert not any("other" in name for name, m in model.named_modules() if isinstance(m, ImodLinear))


def refusal(build, config=None, match=""):
    model = build()
    with pytest.raises(InputError, match=match) as caught:
        attach(model, config or ImodConfig())
    assert not any(isinstance(module, ImodLinear) for module in model.modules())
    return str(caught.value)


def test_what_cannot_be_partitioned_is_refused_in_one_sentence(tiny):
    refusal(tiny.make_base, match="found Qwen2ForCausalLM; call peft.get_peft_model first")
    refusal(lambda: tiny.make_lora(use_dora=True), match="LoRA variant Dora")
    refusal(lambda: tiny.make_lora(target_modules=["embed_tokens"]), match="embedding 'model.embed_tokens'")
    refusal(lambda: tiny.make_lora().half(), match="is torch.float16")
    refusal(
        lambda: tiny.make_lora(base=tiny.make_base(image_token_id=None, audio_token_id=None)),
        match="names no image_token_id",
    )
    refusal(lambda: get_peft_model(tiny.make_base(), ia3(tiny)), match="is of type IA3")
    refusal(lambda: frozen(tiny), match="is frozen; load the adapter with is_trainable=True")
    refusal(lambda: with_tower(tiny), match="LoRA is on 'model.vision_tower.q_proj'")
    refusal(lambda: with_convolution(tiny), match="is a Conv1d on a Conv1d")
    refusal(tiny.make_lora, ImodConfig(shared_ratio=1.0), match="shared block of 1.20")
    with pytest.raises(InputError, match="no adapter 'other', only default"):
        attach(tiny.make_lora(), ImodConfig(), "other")


def ia3(tiny):
    from peft import IA3Config

    return IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")


def frozen(tiny):
    model = tiny.make_lora()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def with_tower(tiny):
    base = tiny.make_base()
    base.model.vision_tower = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(4, 4)})
    return tiny.make_lora(base=base)


def with_convolution(tiny):
    base = tiny.make_base()
    base.model.mixer = torch.nn.Conv1d(4, 4, 3)
    return tiny.make_lora(base=base, target_modules=["mixer"])


def test_attaching_twice_is_refused_and_detaching_makes_it_possible_again(tiny):
    model = tiny.make_lora()
    handle = attach(model, STRONG)
    with pytest.raises(InputError, match=r"attached to 'model\.layers\.0\.self_attn\.q_proj' already"):
        attach(model, STRONG)
    wanted, _ = step_gradients(tiny, model)
    handle.detach()
    plain, _ = step_gradients(tiny, model)
    assert not equal(plain, wanted)
    attach(model, STRONG)
    assert equal(step_gradients(tiny, model)[0], wanted)


def test_a_batch_without_input_ids_is_refused_in_training_only(tiny):
    model = tiny.make_lora()
    attach(model, STRONG)
    embeds = torch.randn(1, 5, 16)
    with pytest.raises(InputError, match="without input_ids"):
        model(inputs_embeds=embeds)
    with torch.no_grad():
        assert model.eval()(inputs_embeds=embeds).logits.shape == (1, 5, tiny.VOCABULARY)


def test_a_module_that_sees_other_tokens_is_refused(tiny):
    model = tiny.make_lora(target_modules=["q_proj", "lm_head"])
    attach(model, STRONG)
    with pytest.raises(InputError, match="'lm_head' received 2 tokens where input_ids hold 24"):
        model(**{**tiny.make_inputs(), "labels": None}, logits_to_keep=1)


def test_explicit_token_ids_replace_the_configurations(tiny):
    model, other = tiny.make_lora(), tiny.make_lora(base=tiny.make_base(image_token_id=None, audio_token_id=None))
    attach(model, STRONG)
    attach(other, ImodConfig(lambda1=1.0, lambda2=1.0, media_token_ids=(tiny.IMAGE, tiny.AUDIO)))
    assert equal(step_gradients(tiny, model)[0], step_gradients(tiny, other)[0])


def run_trainer(tiny, tmp_path, callbacks, **changes):
    """Weights and logs after a short run of transformers' Trainer."""
    model = tiny.make_lora()
    rows = [{key: value[0] for key, value in tiny.make_inputs(seed, rows=1).items()} for seed in range(16)]
    arguments = {
        "output_dir": str(tmp_path),
        "max_steps": 4,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "logging_steps": 2,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "max_grad_norm": 0.0,
        "optim": "sgd",
    }
    args = TrainingArguments(**{**arguments, **changes})
    trainer = Trainer(model, args, train_dataset=rows, callbacks=callbacks)
    trainer.train()
    assert not any(isinstance(module, ImodLinear) for module in model.modules())
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    return weights, trainer.state.log_history


def test_the_callback_switches_imod_on_in_a_stock_trainer_and_logs_signals(tiny, tmp_path):
    lora, _ = run_trainer(tiny, tmp_path, [])
    off, _ = run_trainer(tiny, tmp_path, [ImodCallback(ImodConfig(lambda1=0.0, lambda2=0.0))])
    imod, logs = run_trainer(tiny, tmp_path, [ImodCallback(STRONG)])
    assert equal(off, lora)
    assert not equal(imod, lora)
    assert [entry["step"] for entry in logs if "imod/injected_over_task" in entry] == [2, 4]


def test_in_a_stock_trainer_accumulation_leaves_lambda_unchanged(tiny, tmp_path):
    """Trainer's loss is a sum over the step's targets, so without its share λ would grow with the steps."""
    same_rows = tiny.make_inputs(rows=1)
    results = []
    for steps in (1, 4):
        model = tiny.make_lora()
        rows = [{key: value[0] for key, value in same_rows.items()}] * 8
        args = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=1,
            learning_rate=1.0,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=steps,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            max_grad_norm=0.0,
            optim="sgd",
        )
        before = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_A" in name}
        Trainer(model, args, train_dataset=rows, callbacks=[ImodCallback(STRONG)]).train()
        after = dict(model.named_parameters())
        results.append({name: after[name].detach() - before[name] for name in before})
    assert largest_difference(results[1], results[0]) < 1e-3
