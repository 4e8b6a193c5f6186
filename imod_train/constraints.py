"""The two constraints of IMoD as gradients of a LoRA matrix, in closed form.

Letters: `B` batch, `L` tokens, `S` packed sequences in a row, `d` in-features, `r` rank. Tokens are rows
here, `X (L, d)`, where the paper has columns, `X (d, L)`. The constraints are, with X and w held constant,

    λ1 (|(A∘M_o) X_t|² + |(A∘M_t) X_o|²)     MSDC, Eq. 14: a block stays silent on the other modality
    λ2 (1 - w ρ)                             MAAC, Eq. 10: the shared block says the same for both modalities

`msdc_gradient` and `maac_gradient` are the paper's equations for one sequence. `msdc_rows`, `energy_rows` and
`maac_rows` are what training uses: one row a token and block, `k_i (r,)`, so that the gradient is `mask ∘ Σ_i
k_i x_iᵀ` and joins the matrix product that LoRA needs anyway. They are written for few small kernels. Eq. 18
as printed lacks a derivative; it is `-w ∂ρ/∂A`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from imod_train.masks import NON_TEXT_BLOCK, SHARED_BLOCK, TEXT_BLOCK
from imod_train.tokens import TokenWeights

ZERO_NORM = 1e-12
"""A vector shorter than this has no direction, so its cosine is 0 and its pair contributes nothing."""


class Projected(NamedTuple):
    """The tokens through each block, X (A∘M)ᵀ; the three sum up to X Aᵀ."""

    exclusive: torch.Tensor
    """(B, L, 2, r) through the text block, foreign to non-text tokens, and the non-text block, foreign to text."""
    shared: torch.Tensor
    """(B, L, r)"""


def msdc_gradient(A: torch.Tensor, partition: torch.Tensor, X_t: torch.Tensor, X_o: torch.Tensor) -> torch.Tensor:
    """Eq. 17, (r, d): 2 [((A∘M_o) X_t) X_tᵀ ∘ M_o + ((A∘M_t) X_o) X_oᵀ ∘ M_t].

    `A` (r, d); `partition` (r, d) codes; `X_t` (L_t, d) and `X_o` (L_o, d) the text and non-text tokens,
    either of which may have no rows.
    """
    M_t, M_o = partition == TEXT_BLOCK, partition == NON_TEXT_BLOCK
    on_text = (X_t @ (A * M_o).T).T @ X_t * M_o
    on_other = (X_o @ (A * M_t).T).T @ X_o * M_t
    return 2 * (on_text + on_other)


def maac_gradient(A: torch.Tensor, partition: torch.Tensor, X_t: torch.Tensor, X_o: torch.Tensor) -> torch.Tensor:
    """Eq. 22, (r, d), for one sequence; shapes as in `msdc_gradient`. Zero when a modality has no tokens."""
    if not len(X_t) or not len(X_o):
        return torch.zeros_like(A)
    M_s = partition == SHARED_BLOCK
    v_t, v_o = X_t.mean(0), X_o.mean(0)
    s_t, s_o = (A * M_s) @ v_t, (A * M_s) @ v_o
    d_t, d_o = cosine_gradients(s_t, s_o)
    w = cosine(X_t @ (A * M_s).T, s_t).mean() + cosine(X_o @ (A * M_s).T, s_o).mean()
    return -w * (torch.outer(d_t, v_t) + torch.outer(d_o, v_o)) * M_s


def msdc_rows(projected: Projected, weights: TokenWeights) -> torch.Tensor:
    """Token rows of Eq. 17 for M_t and M_o, (B, L, 2, r): a block's projections of the tokens it is foreign to, in
    their dtype."""
    return projected.exclusive * weights.foreign.to(projected.exclusive.dtype)


def energy_rows(projected: Projected, weights: TokenWeights) -> tuple[torch.Tensor, torch.Tensor]:
    """Token rows for M_t and M_o, (B, L, 2, r), and for all blocks, (B, L, r), of a scale-free MSDC: λ1 times the
    foreign shares of energy

        E_t = |(A∘M_o) X_t|² / |A X_t|²,   ∂E_t/∂A = 2 (M_o∘[(A∘M_o) X_t X_tᵀ] - E_t A X_t X_tᵀ) / |A X_t|²

    and its mirror E_o. The size of A and of X does not matter, so A cannot lower it by shrinking: what leaves the
    foreign block goes to the other two. A modality without energy contributes 0.
    """
    whole = projected.exclusive.sum(2) + projected.shared
    foreign, total = energies(projected, whole, weights.member)
    inverse = torch.where(total > ZERO_NORM**2, 1 / total, 0)  # (2,): text, non-text
    share = foreign * inverse
    at_block = inverse.flip(0).view(2, 1)  # the text block's row belongs to non-text tokens
    at_token = torch.einsum("m,mbl->bl", share * inverse, weights.member).unsqueeze(-1)
    return msdc_rows(projected, weights) * at_block, -2 * weights.lambda1 * at_token * whole


def energies(projected: Projected, whole: torch.Tensor, member: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """|(A∘M_o) X_t|² and |(A∘M_t) X_o|², (2,), and |A X_t|² and |A X_o|², (2,); `whole` = X Aᵀ, (B, L, r)."""
    of_blocks = projected.exclusive.to(whole.dtype).square().sum(-1)  # (B, L, 2)
    return torch.einsum("blm,mbl->m", of_blocks.flip(-1), member), torch.einsum("blr,mbl->m", whole.square(), member)


def maac_rows(shared: torch.Tensor, weights: TokenWeights) -> torch.Tensor:
    """Token rows of Eq. 22, (B, L, r), over the sequences that hold both modalities, times those sequences' weights.

    `shared` = X (A∘M_s)ᵀ, (B, L, r). Since v_t is a mean of tokens, a token's row is -w ∂ρ/∂s̄ of its modality
    divided by the number of such tokens in its sequence, which is the transpose of taking the means. In w, the mean
    cosine of tokens with s̄ is s̄/|s̄| times the mean of the tokens' directions.
    """
    norms = torch.linalg.vector_norm(shared, dim=-1).clamp_(min=ZERO_NORM).unsqueeze(1)  # (B, 1, L)
    pooled = torch.cat([weights.means, weights.means / norms], 1) @ shared  # (B, 4S, r)
    centers, directions = pooled.unflatten(1, (2, -1, 2)).unbind(1)  # (B, S, 2, r): text, non-text
    lengths = torch.linalg.vector_norm(centers, dim=-1, keepdim=True)
    inverse = F.threshold(lengths, ZERO_NORM, torch.inf).reciprocal()
    units = centers * inverse
    rho = units.prod(2, keepdim=True).sum(-1, keepdim=True)
    w = (units * directions).sum((2, 3), keepdim=True)
    pull = (rho * units - units.flip(2)) * inverse * (w * weights.pairs)
    return weights.means.mT @ pull.flatten(1, 2)


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosine along the last axis, 0 where either vector has no direction. `a` and `b` broadcast."""
    a_norm, b_norm, valid = _norms(a, b)
    return torch.where(valid, (a * b).sum(-1, keepdim=True) / (a_norm * b_norm), 0).squeeze(-1)


def cosine_gradients(s_t: torch.Tensor, s_o: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 19 and 20: ∂ρ/∂s̄_t and ∂ρ/∂s̄_o, (…, r) each; both 0 where either vector has no direction."""
    t_norm, o_norm, valid = _norms(s_t, s_o)
    t_unit, o_unit = s_t / t_norm, s_o / o_norm
    rho = (t_unit * o_unit).sum(-1, keepdim=True)
    d_t = torch.where(valid, (o_unit - rho * t_unit) / t_norm, 0)
    d_o = torch.where(valid, (t_unit - rho * o_unit) / o_norm, 0)
    return d_t, d_o


def _norms(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Norms along the last axis, kept, and where both have a direction; the norms are 1 where not."""
    a_norm = torch.linalg.vector_norm(a, dim=-1, keepdim=True)
    b_norm = torch.linalg.vector_norm(b, dim=-1, keepdim=True)
    valid = (a_norm > ZERO_NORM) & (b_norm > ZERO_NORM)
    return torch.where(valid, a_norm, 1), torch.where(valid, b_norm, 1), valid
