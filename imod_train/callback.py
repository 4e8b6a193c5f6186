"""IMoD for anyone's trainer: `Trainer(..., callbacks=[ImodCallback()])`.

Works in whatever is built on transformers' Trainer (LLaMA-Factory, ms-swift, TRL's SFTTrainer), because
everything that IMoD needs reaches it through the model's own forward.
"""

from typing import Any

from peft import PeftModel
from transformers import TrainerCallback

from imod_train.attachment import ImodHandle, attach
from imod_train.config import ImodConfig


class ImodCallback(TrainerCallback):
    """Attaches when training begins, detaches when it ends, and adds IMoD's signals to the logs.

    Trainer tells its built-in loggers before callbacks given by the user; so the signals appear in
    `log_history`, in the console and in the logs of callbacks after this one.
    """

    def __init__(self, config: ImodConfig | None = None, adapter_name: str = "default"):
        self.config = config or ImodConfig()
        self.adapter_name = adapter_name
        self.handle: ImodHandle | None = None
        """The handle while training runs."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach to the PEFT model inside whatever wraps it."""
        model = kwargs["model"]
        while not isinstance(model, PeftModel) and hasattr(model, "module"):
            model = model.module
        self.handle = attach(model, self.config, self.adapter_name)

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
        if self.handle:
            self.handle.detach()
            self.handle = None
