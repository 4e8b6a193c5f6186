"""The gradient of one A matrix with the constraints in it: two small matrix products beside LoRA's own.

Letters: `B` batch, `L` tokens, `N` = B·L, `d` in-features, `r` rank.
"""

from typing import NamedTuple

import torch

from imod_train.config import ImodConfig
from imod_train.constraints import Projected, energy_rows, maac_rows, msdc_rows
from imod_train.masks import NON_TEXT_BLOCK, TEXT_BLOCK
from imod_train.signals import Meter, Parts
from imod_train.tokens import TokenBatch, TokenWeights


class Rows(NamedTuple):
    """What the constraints add to each token's row, loss scale and λ included; the gradient is Σ over blocks of M ∘
    (rowsᵀ X)."""

    exclusive: torch.Tensor
    """(N, 2, r) for the text and the non-text block."""
    shared: torch.Tensor
    """(N, r) for the shared block."""
    all: torch.Tensor | None
    """(N, r) for every block, where the reduction is `energy`."""


def constrained_gradient(
    A: torch.Tensor,
    x: torch.Tensor,
    hidden: torch.Tensor,
    task: torch.Tensor,
    masks: torch.Tensor,
    config: ImodConfig,
    batch: TokenBatch,
    meter: Meter,
) -> torch.Tensor:
    """G_A = ∇L_task + c (λ1 G_MSD + λ2 G_MA), (r, d), Eq. 6 and 11 with c the scale of the loss.

    `A` (r, d); `x` (…, d) its input, `hidden` (…, r) its output and `task` (…, r) the gradient there; `masks` as from
    `block_masks`. One product projects the tokens through the blocks, one makes the gradients of the blocks from the
    rows. In bfloat16 both run on the tokens as they are, with task and constraints apart: each is rounded relative to
    its own size, so that λ2 = 1e-4 is not lost beside the task. What is done with rows is done in float32 at least.
    float16 has no range for this; its tokens become float32. `meter` measures where the batch asks for it.
    """
    X = x.reshape(-1, x.shape[-1])
    X = X.float() if X.dtype == torch.float16 else X
    masks = masks.to(X.dtype)
    projected = project(A, X, hidden, masks, batch.modality.shape)
    weights = batch.weights(config, A.shape[0], X.device, projected.shared.dtype)
    rows = constraint_rows(projected, config, weights)
    task = task.reshape(-1, A.shape[0])
    relative = weights.lambda1 if config.reduction == "relative" else None
    apart = X.dtype == torch.bfloat16 or relative is not None
    parts = _apart(task, rows, X, masks, relative) if apart or batch.sample else None
    gradient = parts.task + parts.injected if parts and apart else _together(task, rows, X, masks)
    if parts and batch.sample:
        meter.measure(parts, projected, task, X, batch)
    return gradient.to(A.dtype)


def block_masks(partition: torch.Tensor) -> torch.Tensor:
    """M_t and M_o as 0 and 1, (2, r, d) uint8, from codes (r, d); M_s is what they leave."""
    return torch.stack([partition == block for block in (TEXT_BLOCK, NON_TEXT_BLOCK)]).to(torch.uint8)


def project(
    A: torch.Tensor, X: torch.Tensor, hidden: torch.Tensor, masks: torch.Tensor, tokens: torch.Size
) -> Projected:
    """The tokens through the three blocks in one product of 2r columns, since all three sum up to `hidden`."""
    wide = torch.promote_types(torch.promote_types(A.dtype, X.dtype), torch.float32)
    blocks = (A.to(X.dtype) * masks).flatten(0, 1)
    exclusive = (X @ blocks.mT).view(*tokens, 2, -1)
    text, other = exclusive.unbind(2)
    return Projected(exclusive, hidden.view_as(text).to(wide) - text - other)


def constraint_rows(projected: Projected, config: ImodConfig, weights: TokenWeights) -> Rows:
    """The constraints' rows under the settings' reduction."""
    shared = maac_rows(projected.shared, weights).flatten(0, 1)
    if config.reduction == "energy":
        exclusive, common = energy_rows(projected, weights)
        return Rows(exclusive.flatten(0, 1), shared, common.flatten(0, 1))
    return Rows(msdc_rows(projected, weights).flatten(0, 1), shared, None)


def _together(task: torch.Tensor, rows: Rows, X: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The gradient, (r, d), from one product of 3r rows."""
    stacked = torch.cat([rows.exclusive, rows.shared.unsqueeze(1)], 1)
    stacked += (task if rows.all is None else task + rows.all).unsqueeze(1)
    text, other, shared = _product(stacked, X)
    return _select(text, other, shared, masks)


def _apart(
    task: torch.Tensor, rows: Rows, X: torch.Tensor, masks: torch.Tensor, relative: torch.Tensor | None
) -> Parts:
    """The gradient in its parts from one product of 4r rows (5r with rows for all blocks).

    `relative`, 0-dim, scales MSDC so that its norm is that many times the task's.
    """
    wide = rows.shared.dtype
    others = (rows.shared,) if rows.all is None else (rows.shared, rows.all)
    stacked = torch.cat([row.to(X.dtype) for row in (task.unsqueeze(1), rows.exclusive, torch.stack(others, 1))], 1)
    of_task, text, other, shared, *common = _product(stacked, X)
    of_task = of_task.to(wide)
    if relative is not None:
        text, other, shared, masks = (part.to(wide) for part in (text, other, shared, masks))
        norm = torch.linalg.vector_norm(_select(text, other, torch.zeros_like(text), masks))
        factor = torch.where(norm > 0, relative * torch.linalg.vector_norm(of_task) / norm, 0)
        text, other = text * factor, other * factor
    injected = _select(text, other, shared, masks).to(wide)
    return Parts(of_task, injected + common[0] if common else injected)


def _product(rows: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """rowsᵀ X for each of k blocks, (k, r, d), from rows (N, k, r) and X (N, d)."""
    return (rows.flatten(1).mT @ X).unflatten(0, rows.shape[1:])


def _select(text: torch.Tensor, other: torch.Tensor, shared: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """M_t∘text + M_o∘other + M_s∘shared, (r, d), exactly: each is taken or left. On a CPU many times faster than
    `torch.where` on random masks."""
    M_t, M_o = masks
    return shared.lerp(text, M_t).lerp_(other, M_o)
