"""The gradient of one A matrix with the constraints in it: two small matrix products beside LoRA's own.

Letters: `B` batch, `L` tokens, `N` = B·L, `d` in-features, `r` rank.
"""

from typing import NamedTuple

import torch

from imod_train.config import ImodConfig
from imod_train.constraints import energy_rows, maac_rows, msdc_rows
from imod_train.masks import SHARED_BLOCK
from imod_train.signals import Meter, Parts
from imod_train.tokens import TokenBatch, TokenWeights

class Rows(NamedTuple):
    """What each token adds to the gradient of A: the gradient is Σ over blocks of M ∘ (rowsᵀ X)."""

    task: torch.Tensor
    """(N, r) the same for all blocks."""
    msdc: torch.Tensor
    """(N, k, r) for the text and the non-text block, and for the shared one where the reduction is `energy`."""
    maac: torch.Tensor | None
    """(N, r) for the shared block; None where MAAC is off."""


def constrained_gradient(
    A: torch.Tensor,
    x: torch.Tensor,
    task: torch.Tensor,
    partition: torch.Tensor,
    config: ImodConfig,
    batch: TokenBatch,
    meter: Meter,
) -> torch.Tensor:
    """G_A = ∇L_task + c (λ1 G_MSD + λ2 G_MA), (r, d), Eq. 6 and 11 with c the scale of the loss.

    `A` (r, d); `x` (…, d) its input and `task` (…, r) the gradient at its output; `partition` (r, d) codes. One
    product projects the tokens through the three blocks, one makes the gradients of the three blocks from the rows.
    In bfloat16 both run on the tokens as they are, with task and constraints apart: each is rounded relative to its
    own size, so that λ2 = 1e-4 is not lost beside the task. What is done with rows is done in float32 at least.
    float16 has no range for this; its tokens become float32. `meter` measures where the batch asks for it.
    """
    X = x.reshape(-1, x.shape[-1])
    X = X.float() if X.dtype == torch.float16 else X
    masks = block_masks(partition)
    projected = project(A, X, masks).view(*batch.modality.shape, 3, -1)
    weights = batch.weights(config, A.shape[0], X.device, projected.dtype)
    rows = _rows(task, projected, config, weights)
    relative = weights.lambda1 if config.reduction == "relative" else None
    apart = X.dtype == torch.bfloat16 or relative is not None
    parts = _apart(rows, X, masks, relative) if apart or batch.sample else None
    gradient = parts.task + parts.injected if parts and apart else _together(rows, X, masks)
    if parts and batch.sample:
        meter.measure(parts, projected, rows.task, X, batch)
    return gradient.to(A.dtype)


def block_masks(partition: torch.Tensor) -> torch.Tensor:
    """M_t, M_o and M_s, in the order of their codes, as booleans (3, r, d) from codes (r, d)."""
    return partition == torch.arange(3, dtype=torch.uint8, device=partition.device).view(3, 1, 1)


def project(A: torch.Tensor, X: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """X (A∘M)ᵀ for the three blocks, (N, 3r), in float32 at least; the product itself in the dtype of X."""
    blocks = torch.where(masks, A.to(X.dtype), 0).flatten(0, 1)
    return (X @ blocks.mT).to(torch.promote_types(torch.promote_types(A.dtype, X.dtype), torch.float32))


def _rows(task: torch.Tensor, projected: torch.Tensor, config: ImodConfig, weights: TokenWeights) -> Rows:
    """The rows of every token from its projections, (B, L, 3, r)."""
    msdc = energy_rows(projected, weights) if config.reduction == "energy" else msdc_rows(projected, weights)
    maac = maac_rows(projected[:, :, SHARED_BLOCK], weights).flatten(0, 1) if config.weights[1] else None
    return Rows(task.reshape(-1, projected.shape[-1]), msdc.flatten(0, 1), maac)


def _together(rows: Rows, X: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The gradient, (r, d), from one product of 3r rows."""
    sums = rows.task.unsqueeze(1).repeat(1, 3, 1)
    sums[:, : rows.msdc.shape[1]] += rows.msdc
    if rows.maac is not None:
        sums[:, SHARED_BLOCK] += rows.maac
    return torch.where(masks, _product(sums, X), 0).sum(0)


def _apart(rows: Rows, X: torch.Tensor, masks: torch.Tensor, relative: torch.Tensor | None) -> Parts:
    """The gradient in its parts from one product of 4r rows.

    `relative`, 0-dim, scales MSDC so that its norm is that many times the task's.
    """
    blocks = rows.msdc.shape[1]
    stacked, selection = [rows.task.unsqueeze(1), rows.msdc], [masks[:blocks]]
    if rows.maac is not None:
        stacked.append(rows.maac.unsqueeze(1))
        selection.append(masks[SHARED_BLOCK:])
    products = _product(torch.cat(stacked, 1).to(X.dtype), X)
    task = products[0].to(rows.msdc.dtype)
    selected = torch.where(torch.cat(selection), products[1:], 0)
    if relative is not None:
        norm = torch.linalg.vector_norm(selected[:blocks])  # the blocks are disjoint
        selected[:blocks] *= torch.where(norm > 0, relative * torch.linalg.vector_norm(task) / norm, 0)
    return Parts(task, selected.sum(0, dtype=task.dtype))


def _product(rows: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """rowsᵀ X for each of k blocks, (k, r, d), from rows (N, k, r) and X (N, d)."""
    return (rows.flatten(1).mT @ X).unflatten(0, rows.shape[1:])
