"""IMoD in transformers' own Trainer."""

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from imod_core.errors import InputError
from imod_train import ImodCallback, ImodConfig, attach
from imod_train.projection import ImodLinear

STRONG = ImodConfig(lambda1=1.0, lambda2=1.0)


def run_trainer(tiny, tmp_path, callbacks, rows=None, **changes):
    """Weights and logs after a short run of transformers' Trainer."""
    model = tiny.make_lora()
    rows = rows or [{key: value[0] for key, value in tiny.make_inputs(seed, rows=1).items()} for seed in range(16)]
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
    assert tiny.equal(off, lora)
    assert not tiny.equal(imod, lora)
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
    assert tiny.largest_difference(results[1], results[0]) < 1e-3


def test_the_callback_counts_the_warm_up(tiny, tmp_path):
    weights = {
        steps: run_trainer(tiny, tmp_path, [ImodCallback(ImodConfig(lambda1=1.0, warmup_steps=steps))])[0]
        for steps in (0, 2, 100_000)
    }
    lora, _ = run_trainer(tiny, tmp_path, [])
    away = {
        steps: sum(float((found[name] - lora[name]).norm()) for name in lora if "lora_A" in name)
        for steps, found in weights.items()
    }
    assert 0 < away[100_000] < 0.01 * away[2]
    assert away[2] < away[0]


def test_a_training_that_failed_can_be_begun_again(tiny, tmp_path):
    """As after Ctrl-C in a notebook, or where the trainer looks for a batch that fits (auto_find_batch_size)."""

    class Full(TrainerCallback):
        failures = 1

        def on_substep_end(self, args, state, control, **kwargs):
            self.on_step_end(args, state, control)

        def on_step_end(self, args, state, control, **kwargs):
            if self.failures:
                self.failures -= 1
                raise RuntimeError("CUDA out of memory.")

    imod = ImodCallback(STRONG)
    _, logs = run_trainer(tiny, tmp_path, [imod, Full()], auto_find_batch_size=True)
    assert imod.handle is None
    assert any("imod/injected_over_task" in entry for entry in logs)


def test_label_smoothing_and_several_gpus_in_one_process_are_refused(tiny, tmp_path):
    with pytest.raises(InputError, match="label_smoothing_factor"):
        run_trainer(tiny, tmp_path, [ImodCallback()], label_smoothing_factor=0.1)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    args._n_gpu = 2
    with pytest.raises(InputError, match="shares 2 GPUs in one process"):
        ImodCallback().on_train_begin(args, None, None, model=tiny.make_lora())


def test_clipping_that_would_hold_all_else_back_is_told(tiny, tmp_path):
    with pytest.warns(UserWarning, match="max_grad_norm=1 clips all gradients together"):
        run_trainer(tiny, tmp_path, [ImodCallback(ImodConfig.paper())], max_grad_norm=1.0, max_steps=1)


def test_batches_without_any_medium_are_told_once(tiny, tmp_path):
    unknown = ImodConfig(media_token_ids=(59,), ignored_token_ids=())
    with pytest.warns(UserWarning, match=r"no token of a picture, sound or video.*59") as caught:
        run_trainer(tiny, tmp_path, [ImodCallback(unknown)], rows=[text_alone(tiny, seed) for seed in range(16)])
    assert len([one for one in caught if "no token of a picture" in str(one.message)]) == 1


def text_alone(tiny, seed):
    row = {key: value[0] for key, value in tiny.make_inputs(seed, rows=1).items()}
    return {**row, "input_ids": row["input_ids"].clamp(max=58)}


@pytest.mark.parametrize("steps", [1, 4])
def test_a_loss_that_nobody_sees_is_taken_to_be_divided_among_the_micro_batches(tiny, tmp_path, steps):
    """A loss function of the user's own: the trainer takes the labels away, so the model returns none."""

    def own(outputs, labels, num_items_in_batch=None):
        logits = outputs.logits[:, :-1].flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten())

    row = {key: value[0] for key, value in tiny.make_inputs(rows=1).items()}

    def change(callbacks):
        model = tiny.make_lora()
        before = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_A" in name}
        args = TrainingArguments(
            output_dir=str(tmp_path), max_steps=1, learning_rate=1.0, per_device_train_batch_size=1, use_cpu=True,
            gradient_accumulation_steps=steps, report_to=[], save_strategy="no", max_grad_norm=0.0, optim="sgd",
        )  # fmt: skip
        Trainer(model, args, train_dataset=[row] * 8, callbacks=callbacks, compute_loss_func=own).train()
        after = dict(model.named_parameters())
        return {name: after[name].detach() - before[name] for name in before}

    lora, imod = change([]), change([ImodCallback(STRONG)])
    injected = {name: imod[name] - lora[name] for name in lora}
    model = tiny.make_lora()
    task, _ = tiny.step_gradients(model, {key: value[None] for key, value in row.items()})
    attach(model, STRONG)
    whole, _ = tiny.step_gradients(model, {key: value[None] for key, value in row.items()})
    wanted = {name: task[name] - whole[name] for name in task}
    assert tiny.largest_difference(injected, wanted) < 1e-3
