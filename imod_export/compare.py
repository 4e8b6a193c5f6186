"""The measures between two models' logits, and the gates on them.

Letters: `K` compared positions, `V` vocabulary; `z (K, V)` the reference's logits, `y` the other's.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from imod_export.tolerances import Tolerance


@dataclass(frozen=True)
class Distance:
    """How far `y` is from `z`."""

    max_abs: float
    """Largest difference of a logit."""
    relative: float
    """RMS difference over the RMS spread of `z` around each position's mean."""
    kl: float
    """KL(softmax z ‖ softmax y) in nats, the largest over positions."""
    argmax_agreement: float
    """Share of positions with the same best token, near-ties of `z` left out; 1 where all are near-ties."""
    near_ties: int
    """Positions left out."""
    positions: int

    def within(self, tolerance: Tolerance) -> bool:
        """Whether the two are the same model, numerically."""
        return self.relative <= tolerance.relative and self.kl <= tolerance.kl and self.argmax_agreement == 1.0


def distance(z: torch.Tensor, y: torch.Tensor, tolerance: Tolerance, ids: torch.Tensor | None = None) -> Distance:
    """The distance of `y` from `z`, both `(K, V)`; not finite values make it infinite.

    A server tells only its best log probabilities: then `y (K, M)` are those of the tokens `ids (K, M)`, they are
    compared with z's of the same tokens, and KL is the part of the sum over them.
    """
    if not len(z) or (ids is None and z.shape != y.shape) or not bool(z.isfinite().all() & y.isfinite().all()):
        return Distance(float("inf"), float("inf"), float("inf"), 0.0, 0, len(z))
    z, y = z.double(), y.double()
    decided, best = margins(z) > tolerance.near_tie, z.argmax(-1)
    log_z, log_y = z.log_softmax(-1), y if ids is not None else y.log_softmax(-1)
    found = y.argmax(-1) if ids is None else ids.gather(1, y.argmax(-1, keepdim=True)).squeeze(1)
    if ids is not None:
        z = log_z = log_z.gather(1, ids)
    difference, spread = z - y, z - z.mean(dim=-1, keepdim=True)
    kl = (log_z.exp() * (log_z - log_y)).sum(-1).clamp(min=0)
    same = (best == found)[decided]
    return Distance(
        max_abs=difference.abs().max().item(),
        relative=(difference.pow(2).mean() / spread.pow(2).mean().clamp(min=1e-30)).sqrt().item(),
        kl=kl.max().item(),
        argmax_agreement=same.double().mean().item() if len(same) else 1.0,
        near_ties=int((~decided).sum()),
        positions=len(z),
    )


def turned_alike(z: torch.Tensor, z_other: torch.Tensor, y: torch.Tensor, y_other: torch.Tensor) -> float:
    """Cosine between what other media change in the reference's logits, `z_other - z`, and in the other's, `y_other -
    y`; 0 where either changes nothing. All `(K, V)`, centred at each position.

    Weights of few bits move `y` and `y_other` alike, so that their noise is not in the difference: it tells whether
    media reach a model even where they change less than its weights' rounding does.
    """
    turn, found = ((b - a).double() for a, b in ((z, z_other), (y, y_other)))
    turn, found = (change - change.mean(-1, keepdim=True) for change in (turn, found))
    norm = turn.norm() * found.norm()
    return float((turn * found).sum() / norm) if norm > 0 else 0.0


def faults_of(found: Distance, tolerance: Tolerance) -> Iterator[str]:
    """What of a distance is more than `tolerance` allows, a few words each."""
    if found.relative > tolerance.relative:
        yield f"relative logit error {found.relative:.1e}, allowed {tolerance.relative:.0e}"
    if found.kl > tolerance.kl:
        yield f"KL {found.kl:.1e}, allowed {tolerance.kl:.0e}"
    if found.argmax_agreement < 1:
        yield f"best token differs at {1 - found.argmax_agreement:.0%} of the decided positions"


def margins(z: torch.Tensor) -> torch.Tensor:
    """`(K,)`: by how much the best logit of each position leads."""
    best = z.topk(2, dim=-1).values
    return best[:, 0] - best[:, 1]


def common_prefix(first: list[int], second: list[int]) -> int:
    """Tokens that two sequences share from the start."""
    shared = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        shared += 1
    return shared


def same_greedy(reference: list[int], found: list[int], z: torch.Tensor, tolerance: Tolerance) -> bool:
    """Whether two greedy answers are equal, or part where the reference was near a tie.

    `z (K, V)` are the reference's logits with its own answer teacher-forced, so that the row before the last
    `len(reference)` ones chose the answer's first token.
    """
    shared = common_prefix(reference, found)
    if shared == len(reference) == len(found):
        return True
    row = len(z) - len(reference) - 1 + shared
    return shared < len(reference) and bool(margins(z)[row] <= tolerance.near_tie)
