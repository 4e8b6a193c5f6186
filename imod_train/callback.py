"""IMoD for anyone's trainer: `Trainer(..., callbacks=[ImodCallback()])`.

Works in whatever is built on transformers' Trainer (LLaMA-Factory, ms-swift, TRL's SFTTrainer), because
everything that IMoD needs reaches it through the model's own forward.
"""

import warnings
from typing import Any

from peft import PeftModel
from transformers import TrainerCallback

from imod_core.errors import InputError
from imod_train.attachment import ImodHandle, attach
from imod_train.config import ImodConfig


class ImodCallback(TrainerCallback):
    """Attaches when training begins, detaches when it ends, and adds IMoD's signals to the logs.

    Trainer tells its built-in loggers before callbacks given by the user; so the signals appear in
    `log_history`, in the console and in the logs of callbacks after this one.

    Args:
        config: IMoD's settings.
        adapter_name: of the adapter, as PEFT knows it.
        clipped_apart: whether the trainer clips the gradients of A apart from the others.
    """

    def __init__(self, config: ImodConfig | None = None, adapter_name: str = "default", *, clipped_apart: bool = False):
        self.config = config or ImodConfig()
        self.adapter_name, self.clipped_apart = adapter_name, clipped_apart
        self.handle: ImodHandle | None = None
        """The handle while training runs."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach to the PEFT model inside whatever wraps it.

        Raises:
            InputError: what `attach` refuses, label smoothing, or several GPUs in one process.
        """
        self._check(args)
        self._detach()  # a training that an exception ended did not
        model = kwargs["model"]
        while not isinstance(model, PeftModel) and hasattr(model, "module"):
            model = model.module
        self.handle = attach(model, self.config, self.adapter_name)
        self.handle.assume_scale(1 / args.gradient_accumulation_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the warm-up, and measure the signals in the steps that will be logged."""
        step = state.global_step + 1
        if self.handle:
            self.handle.warm_up(state.global_step)
        if self.handle and (step % max(int(state.logging_steps), 1) == 0 or step == state.max_steps):
            self.handle.sample_next()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        """Add the latest signals to a training log line (one that holds the loss)."""
        if self.handle and logs is not None and "loss" in logs:
            signals = self.handle.signals()
            logs.update(signals)
            state.log_history[-1].update(signals)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave a plain LoRA model behind."""
        self._detach()

    def _detach(self) -> None:
        if self.handle:
            self.handle.detach()
            self.handle = None

    def _check(self, args: Any) -> None:
        """Refuse settings of a trainer under which λ would not mean what it says."""
        if args.n_gpu > 1:
            raise InputError(
                f"The trainer shares {args.n_gpu} GPUs in one process (DataParallel), under which IMoD cannot tell the "
                "batches apart: start a process for each (torchrun), or show one alone (CUDA_VISIBLE_DEVICES=0)."
            )
        if args.label_smoothing_factor:
            raise InputError(
                "label_smoothing_factor takes the loss out of the model's output, where IMoD reads what scales it: "
                "set it to 0."
            )
        if self.config.reduction == "paper" and args.max_grad_norm and not self.clipped_apart:
            warnings.warn(
                f"max_grad_norm={args.max_grad_norm:g} clips all gradients together, and those of the reduction "
                "'paper' dwarf the rest, which then hardly learns: set max_grad_norm=0, or another reduction.",
                stacklevel=2,
            )
