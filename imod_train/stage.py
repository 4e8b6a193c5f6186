"""One stage of a run on transformers' Trainer: its settings, its optimizer, its checkpoints, its metrics."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from imod_core.artifacts import write_text
from imod_core.console import console, progress
from imod_train.base import context_length
from imod_train.callback import ImodCallback
from imod_train.dataset import add_noise
from imod_train.lengths import tell_of_long_row
from imod_train.model import parameter_groups, set_trainable
from imod_train.recipe import Recipe, Stage
from imod_train.words import batch_words_loss

CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class StageTrainer(Trainer):
    """Trainer with one learning rate for adapters and another for projectors."""

    def __init__(self, stage: Stage, **kwargs: Any):
        self.stage = stage
        super().__init__(**kwargs)
        assert isinstance(self.model, PeftModel)
        self.context = context_length(self.model.get_base_model().config)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over the trainable parameters of the unwrapped model."""
        if self.optimizer is None:
            stage = self.stage
            beside = stage.projector_learning_rate
            assert isinstance(self.model, PeftModel)
            groups = parameter_groups(
                self.model,
                stage.learning_rate,
                stage.learning_rate if beside is None else beside,
            )
            self.optimizer = torch.optim.AdamW(groups, betas=(0.9, stage.adam_beta2))
        return self.optimizer

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        """Clip the A matrices, which carry IMoD's gradients, apart from all else; returns the norm of the rest.

        The constraints dwarf the task while B is near zero: clipped together, they would hold everything else back.
        """
        trainable = [(name, p) for name, p in model.named_parameters() if p.grad is not None]
        constrained = [p for name, p in trainable if ".lora_A." in name]
        rest = [p for name, p in trainable if ".lora_A." not in name]
        if constrained:
            self.accelerator.clip_grad_norm_(constrained, self.args.max_grad_norm)
        return self.accelerator.clip_grad_norm_(rest, self.args.max_grad_norm)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The stage's objective."""
        if self.stage.objective == "answers":
            return super().compute_loss(model, inputs, *args, **kwargs)
        with self.compute_loss_context_manager():
            loss = batch_words_loss(model.get_base_model(), inputs)
        return loss / self.current_gradient_accumulation_steps

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """A step on states with the stage's noise."""
        add_noise(inputs, self.stage.state_noise)
        if self.context and inputs["input_ids"].shape[1] > self.context:
            positions = inputs.get("position_ids")  # branches of a row stand side by side
            length = inputs["input_ids"].shape[1] if positions is None else int(positions.max()) + 1
            if length > self.context:
                tell_of_long_row(length, self.context)
                self.context = None  # once is enough
        return super().training_step(model, inputs, *args, **kwargs)


class Metrics(TrainerCallback):
    """Progress on the terminal, and every log line of the trainer as JSON in `metrics.jsonl`."""

    def __init__(self, path: Path, stage: str):
        self.path, self.stage = path, stage
        self.bar = progress()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop what an interrupted run logged beyond its last checkpoint, and start the bar."""
        _drop_lines_after(self.path, self.stage, state.global_step)
        console.print(f"Stage {self.stage}: {state.global_step} of {state.max_steps} steps done")
        self.bar.start()
        self.task = self.bar.add_task(self.stage, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the bar."""
        self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        """Append a line; without a terminal print it too."""
        values = {key: float(f"{v:.6g}") if isinstance(v, float) else v for key, v in (logs or {}).items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"stage": self.stage, "step": state.global_step, **values}) + "\n")
        if not console.is_terminal and "loss" in values:
            console.print(f"{self.stage} {state.global_step}/{state.max_steps}: loss {values['loss']}")


def run_stage(model: PeftModel, recipe: Recipe, stage: Stage, data: Dataset, collator: Callable, run: Path) -> None:
    """Train `model` in place through one stage, going on from its last whole checkpoint if there is one."""
    set_trainable(model, stage.train)
    folder = run / "checkpoints" / stage.name
    metrics = Metrics(run / "metrics.jsonl", stage.name)
    callbacks: list[TrainerCallback] = [metrics]
    if recipe.method == "imod" and "adapter" in stage.train:
        callbacks.insert(0, ImodCallback(recipe.imod, clipped_apart=True))
    trainer = StageTrainer(
        stage,
        model=model,
        args=_arguments(recipe, stage, folder),
        train_dataset=data,
        data_collator=collator,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(TensorBoardCallback(SummaryWriter(str(run / "tensorboard" / stage.name))))
    checkpoint = last_whole_checkpoint(folder)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        metrics.bar.stop()


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all there; one that a kill left half written is removed.

    The trainer writes `trainer_state.json` last.
    """
    found = [p for p in folder.glob("checkpoint-*") if CHECKPOINT.fullmatch(p.name)]
    for path in sorted(found, key=lambda p: int(p.name.split("-")[1]), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text())
            return path
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(path)
    return None


def _arguments(recipe: Recipe, stage: Stage, folder: Path) -> TrainingArguments:
    """Settings of the trainer, kept to one device: several would each get a slice of the batch's joined states."""
    micro = stage.micro_batch_size or stage.batch_size
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=stage.batch_size // micro,
        max_steps=stage.steps or -1,
        num_train_epochs=stage.epochs or 1.0,
        learning_rate=stage.learning_rate,
        warmup_steps=stage.warmup_ratio,
        lr_scheduler_type=stage.schedule,
        max_grad_norm=stage.max_grad_norm,
        bf16=recipe.precision == "bfloat16",
        use_cpu=not cuda,
        save_strategy="steps",
        save_steps=stage.save_steps,
        save_total_limit=1,
        logging_steps=stage.log_steps,
        seed=recipe.seed,
        data_seed=recipe.seed,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=recipe.workers,
        dataloader_pin_memory=cuda,
        logging_nan_inf_filter=False,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def _drop_lines_after(path: Path, stage: str, step: int) -> None:
    if not path.is_file():
        return
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    kept = [line for line in lines if line["stage"] != stage or line["step"] <= step]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
