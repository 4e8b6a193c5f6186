"""The LoRA-A projection that injects the two constraints into its own gradient.

`ImodLinear` is what `lora_A[adapter]` becomes: an `nn.Linear` with the same parameter and the same
state-dict keys. Its output is LoRA's. Only the gradient of its weight differs, and only while training;
nothing reaches B or x. Letters: `B` batch, `L` tokens, `N` = B·L, `d` in-features, `r` rank.
"""

import types
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from imod_core.errors import InputError
from imod_core.modality import NON_TEXT, TEXT
from imod_train.config import ImodConfig
from imod_train.constraints import maac_factors, msdc_factors
from imod_train.masks import NON_TEXT_BLOCK, SHARED_BLOCK, TEXT_BLOCK
from imod_train.tokens import TokenBatch, TokenHolder

BLOCKS = (TEXT_BLOCK, NON_TEXT_BLOCK, SHARED_BLOCK)


class Signals(NamedTuple):
    """Squared norms measured in one backward of one module; as a tensor, (6,)."""

    task: torch.Tensor
    """Task gradient of A."""
    injected: torch.Tensor
    """What the constraints added to it."""
    text_foreign: torch.Tensor
    """|(A∘M_o) X_t|², the part of text that passes through the non-text block."""
    text_total: torch.Tensor
    """|A X_t|²."""
    other_foreign: torch.Tensor
    """|(A∘M_t) X_o|²."""
    other_total: torch.Tensor
    """|A X_o|²."""


class ImodLinear(nn.Linear):
    """A LoRA A matrix, weight (r, d), whose gradient carries MSDC and MAAC while training.

    Made from the plain layer in place by `adopt`, undone by `release`, so that whoever holds the layer (a
    wrapper for sharding, a forward hook, an optimizer) keeps holding it.
    """

    partition: torch.Tensor
    config: ImodConfig
    holder: TokenHolder
    module_name: str
    signals: torch.Tensor | None

    @classmethod
    def adopt(
        cls, linear: nn.Linear, name: str, partition: torch.Tensor, config: ImodConfig, holder: TokenHolder
    ) -> "ImodLinear":
        """Turn a plain layer into this class; `partition` (r, d) uint8 becomes a buffer that is never saved."""
        linear.register_buffer("partition", partition.to(linear.weight.device), persistent=False)
        linear.__class__ = cls
        assert isinstance(linear, ImodLinear)
        linear.config, linear.holder, linear.module_name, linear.signals = config, holder, name, None
        _rebind_forward(linear)
        return linear

    def release(self) -> None:
        """Turn back into a plain `nn.Linear`."""
        del self.partition
        for name in ("config", "holder", "module_name", "signals"):
            delattr(self, name)
        self.__class__ = nn.Linear  # type: ignore[assignment]
        _rebind_forward(self)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`input` (B, L, d) or (N, d) → the same with r for d. Outside training exactly `nn.Linear`."""
        training = self.training and torch.is_grad_enabled() and self.weight.requires_grad
        if not training or not self.config.active:
            return super().forward(input)
        device = input.device.type
        if torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))
        return InjectedProjection.apply(input, self.weight, self, self._batch(input))

    def _batch(self, input: torch.Tensor) -> TokenBatch:
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
    """`x Aᵀ` whose backward adds the constraints to A's gradient. It saves x and A, as a linear layer does."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, A: torch.Tensor, module: ImodLinear, batch: TokenBatch) -> torch.Tensor:
        ctx.save_for_backward(x, A)
        ctx.module, ctx.batch = module, batch
        return F.linear(x, A.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: torch.Tensor):
        x, A = ctx.saved_tensors
        grad_x = grad_output @ A.to(grad_output.dtype) if ctx.needs_input_grad[0] else None
        grad_A = None
        if ctx.needs_input_grad[1]:
            with torch.autocast(x.device.type, enabled=False):  # a backward inside autocast would round to bf16
                grad_A = constrained_gradient(A, x, grad_output, ctx.module, ctx.batch)
        return grad_x, grad_A, None, None


def constrained_gradient(
    A: torch.Tensor, x: torch.Tensor, grad_output: torch.Tensor, module: ImodLinear, batch: TokenBatch
) -> torch.Tensor:
    """G_A = ∇L_task + c (λ1 G_MSD + λ2 G_MA), (r, d), Eq. 6 and 11 with c the scale of the loss.

    One product projects the tokens through the three blocks, one makes the gradients of the three blocks
    from the task's rows plus the constraints' rows. At least fp32 throughout: in bf16, λ2 = 1e-4 would be
    lost to rounding.
    """
    wide = torch.promote_types(A.dtype, torch.float32)
    tokens, rank = batch.modality.shape, A.shape[0]
    X = x.reshape(-1, x.shape[-1]).to(wide)
    masks = torch.stack([module.partition == block for block in BLOCKS])  # (3, r, d)
    blocks = (A.to(wide) * masks).flatten(0, 1)
    projected = (X @ blocks.T).view(*tokens, 3, rank).unbind(2)  # 3 of (B, L, r)
    task = grad_output.reshape(*tokens, rank).to(wide)
    injected = constraint_rows(projected, module.config, batch)
    rows = torch.stack([task + row for row in injected], dim=2)  # (B, L, 3, r)
    gradient = _select(rows, X, masks)
    if batch.sample:
        added = _select(torch.stack(injected, dim=2), X, masks)
        module.signals = _measure(task.flatten(0, 1).T @ X, added, projected, batch)
    return gradient.to(A.dtype)


def constraint_rows(projected: tuple[torch.Tensor, ...], config: ImodConfig, batch: TokenBatch) -> list[torch.Tensor]:
    """What the constraints add to a token's row for each block, three of (B, L, r), loss scale and λ included."""
    text_block, other_block, shared = projected
    device, dtype = shared.device, shared.dtype
    weights = batch.weights(config.reduction, device, dtype)
    scale = batch.multiplier(device, dtype)
    lambda1, lambda2 = config.weights
    on_text_block, on_other_block = msdc_factors(text_block, other_block, weights)
    on_shared = maac_factors(shared, weights)
    return [scale * lambda1 * on_text_block, scale * lambda1 * on_other_block, scale * lambda2 * on_shared]


def _select(rows: torch.Tensor, X: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Σ over blocks of M ∘ (rowsᵀ X), (r, d), from rows (B, L, 3, r), X (N, d) and masks (3, r, d)."""
    by_block = (rows.flatten(0, 1).flatten(1).T @ X).view_as(masks)
    return (by_block * masks).sum(0)


def _measure(
    task: torch.Tensor, injected: torch.Tensor, projected: tuple[torch.Tensor, ...], batch: TokenBatch
) -> torch.Tensor:
    """`Signals` of this backward as one tensor, (6,), left on its device."""
    text_block, other_block, shared = projected
    modality = batch.modality.to(task.device)
    whole = text_block + other_block + shared

    def energy(part: torch.Tensor, code: int) -> torch.Tensor:
        return (part.square().sum(-1) * (modality == code)).sum()

    return torch.stack(
        Signals(
            task=task.square().sum(),
            injected=injected.square().sum(),
            text_foreign=energy(other_block, TEXT),
            text_total=energy(whole, TEXT),
            other_foreign=energy(text_block, NON_TEXT),
            other_total=energy(whole, NON_TEXT),
        )
    )


def _rebind_forward(linear: nn.Linear) -> None:
    """Accelerate's device hooks keep the bound forward of the class that the layer had; give them the new one."""
    if "_old_forward" in vars(linear):
        linear._old_forward = types.MethodType(type(linear).forward, linear)  # type: ignore[assignment]
