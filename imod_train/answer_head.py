"""The LLM's head on answers alone: at a large vocabulary the logits of a prompt are most of a step's memory.

A native model computes logits at every position and a loss over those that have a label. Here its head sees only the
positions that have one, and the loss is taken over those; value and gradients are the same.
"""

from typing import Any

import torch
from torch import nn

from imod_core.avt.prompts import IGNORED_LABEL


def supervise_answers_only(model: Any) -> None:
    """Change how `model`, of transformers, trains; evaluation and generation stay as they are."""
    AnswerHead(model)


class AnswerHead:
    """The hooks on a model, and the labels of the batch in flight."""

    def __init__(self, model: Any):
        self.model, self.chosen = model, None
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.get_output_embeddings().register_forward_pre_hook(self._select)
        self._whole_loss = model.loss_function
        model.loss_function = self._loss

    def _before(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        labels = kwargs.get("labels")
        self.chosen = None if labels is None or not model.training else labels[:, 1:] != IGNORED_LABEL

    def _select(self, head: nn.Module, args: tuple) -> tuple | None:
        """Hidden states (B, L, D) to those before a label (1, N, D)."""
        if self.chosen is None:
            return None
        hidden, *rest = args
        return (hidden[:, :-1][self.chosen].unsqueeze(0), *rest)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **kwargs: Any) -> torch.Tensor:
        """Mean over the labels, or their sum over `num_items_in_batch`, as transformers' own."""
        if self.chosen is None:
            return self._whole_loss(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        targets = labels[:, 1:][self.chosen].to(logits.device)
        total = nn.functional.cross_entropy(logits[0].float(), targets, reduction="sum")
        count = kwargs.get("num_items_in_batch")
        return total / (len(targets) if count is None else count)
