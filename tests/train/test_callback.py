"""IMoD in transformers' own Trainer."""

from transformers import Trainer, TrainingArguments

from imod_train import ImodCallback, ImodConfig
from imod_train.projection import ImodLinear

STRONG = ImodConfig(lambda1=1.0, lambda2=1.0)


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
