"""The LoRA-A projection that injects the two constraints into its own gradient.

`ImodLinear` is what `lora_A[adapter]` becomes: an `nn.Linear` with the same parameter and the same
state-dict keys. Its output is LoRA's. Only the gradient of its weight differs, and only while training;
nothing reaches B or x. It works under whatever PEFT layer calls it; `imod_train.fused` is the shorter way for
plain ones. Letters: `B` batch, `L` tokens, `N` = B·L, `d` in-features, `r` rank.
"""

import types

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from imod_core.errors import InputError
from imod_train.config import ImodConfig
from imod_train.gradient import block_masks, constrained_gradient
from imod_train.masks import NON_TEXT_BLOCK, SHARED_BLOCK, TEXT_BLOCK
from imod_train.signals import Meter
from imod_train.tokens import TokenBatch, TokenHolder


class ImodLinear(nn.Linear):
    """A LoRA A matrix, weight (r, d), whose gradient carries MSDC and MAAC while training.

    Made from the plain layer in place by `adopt`, undone by `release`, so that whoever holds the layer (a
    wrapper for sharding, a forward hook, an optimizer) keeps holding it.
    """

    masks: torch.Tensor
    config: ImodConfig
    holder: TokenHolder
    module_name: str
    meter: Meter

    @classmethod
    def adopt(
        cls, linear: nn.Linear, name: str, partition: torch.Tensor, config: ImodConfig, holder: TokenHolder
    ) -> "ImodLinear":
        """Turn a plain layer into this class; the masks of `partition` (r, d) become a buffer that is never saved."""
        linear.register_buffer("masks", block_masks(partition).to(linear.weight.device), persistent=False)
        linear.__class__ = cls
        assert isinstance(linear, ImodLinear)
        linear.config, linear.holder, linear.module_name, linear.meter = config, holder, name, Meter()
        rebind_forward(linear)
        return linear

    def release(self) -> None:
        """Turn back into a plain `nn.Linear`."""
        del self.masks
        for name in ("config", "holder", "module_name", "meter"):
            delattr(self, name)
        self.__class__ = nn.Linear  # type: ignore[assignment]
        rebind_forward(self)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input` (B, L, d) or (N, d) → the same with r for d. Outside training exactly `nn.Linear`."""
        if not self.injects:
            return super().forward(input)
        device = input.device.type
        if torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))
        return self._opaque(input) if torch.compiler.is_compiling() else self._project(input)

    def _project(self, input: torch.Tensor) -> torch.Tensor:
        return InjectedProjection.apply(input, self.weight, self, self.batch_of(input))

    _opaque = torch.compiler.disable(_project)

    @property
    def injects(self) -> bool:
        """Whether a forward pass now will be trained on."""
        return self.training and torch.is_grad_enabled() and self.weight.requires_grad and self.config.active

    @property
    def partition(self) -> torch.Tensor:
        """Codes of the blocks, (r, d) uint8."""
        M_t, M_o = self.masks.bool()
        return (
            torch.full_like(self.masks[0], SHARED_BLOCK).masked_fill(M_t, TEXT_BLOCK).masked_fill(M_o, NON_TEXT_BLOCK)
        )

    def gradient(
        self, A: torch.Tensor, x: torch.Tensor, hidden: torch.Tensor, task: torch.Tensor, batch: TokenBatch
    ) -> torch.Tensor:
        """The gradient of A from its input, its output and the gradient `task` there, constraints included."""
        return constrained_gradient(A, x, hidden, task, self.masks, self.config, batch, self.meter)

    def batch_of(self, input: torch.Tensor) -> TokenBatch:
        """The batch in flight, after a check that `input` holds its tokens."""
        batch = self.holder.current
        if batch is None:
            raise InputError(
                f"'{self.module_name}' was trained outside the model's own forward, where IMoD knows no token's "
                "modality; call the model that was attached."
            )
        tokens = input.numel() // self.in_features
        if tokens != batch.modality.numel():
            raise InputError(
                f"'{self.module_name}' received {tokens} tokens where input_ids hold {batch.modality.numel()}, so "
                "their modality is unknown; leave this module out of target_modules."
            )
        return batch


class InjectedProjection(torch.autograd.Function):
    """`x Aᵀ` whose backward adds the constraints to A's gradient. It saves x and A, as a linear layer does, and its
    output, which LoRA's B saves anyway."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, A: torch.Tensor, module: ImodLinear, batch: TokenBatch) -> torch.Tensor:
        hidden = F.linear(x, A.to(x.dtype))
        ctx.save_for_backward(x, A, hidden)
        ctx.module, ctx.batch = module, batch
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: torch.Tensor):
        x, A, hidden = ctx.saved_tensors
        grad_x = grad_A = None
        with torch.autocast(x.device.type, enabled=False):  # a backward inside autocast would round to bf16
            if ctx.needs_input_grad[0]:
                grad_x = grad_output @ A.to(grad_output.dtype)
            if ctx.needs_input_grad[1]:
                grad_A = ctx.module.gradient(A, x, hidden, grad_output, ctx.batch)
        return grad_x, grad_A, None, None


def rebind_forward(layer: nn.Module) -> None:
    """Accelerate's device hooks keep the bound forward of the class that the layer had; give them the new one."""
    if "_old_forward" in vars(layer):
        layer._old_forward = types.MethodType(type(layer).forward, layer)  # type: ignore[assignment]
