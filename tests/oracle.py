"""The two constraints as losses for autograd, one sequence and token list at a time: what closed forms must equal."""

import torch

from imod_core.modality import IGNORED, NON_TEXT, TEXT
from imod_train.config import ImodConfig
from imod_train.masks import NON_TEXT_BLOCK, SHARED_BLOCK, TEXT_BLOCK

EXACT = 1e-10
"""Relative: both sides are the same float64 arithmetic in another order."""


def oracle_gradient(A, codes, X, modality, segment, config, task_gradient=None):
    """What the constraints add to the gradient of A: autograd on the losses, with X and w held constant."""
    lambda1, lambda2 = config.weights
    leaf = A.detach().clone().requires_grad_()
    silence = torch.autograd.grad(msdc_loss(leaf, codes, X.detach(), modality, config), leaf)[0]
    alignment = torch.autograd.grad(maac_loss(leaf, codes, X.detach(), modality, segment), leaf)[0]
    if config.reduction == "relative":
        norm = silence.norm()
        silence = silence * (task_gradient.norm() / norm) if norm > 0 else silence
    return lambda1 * silence + lambda2 * alignment


def msdc_loss(A, codes, X, modality, config):
    """|(A∘M_o) X_t|² + |(A∘M_t) X_o|² under the settings' reduction."""
    loss = A.sum() * 0
    for code, foreign in ((TEXT, NON_TEXT_BLOCK), (NON_TEXT, TEXT_BLOCK)):
        tokens = X[modality == code]
        energy = sum((((A * (codes == foreign)) @ x).square().sum() for x in tokens), A.sum() * 0)
        total = sum(((A @ x).square().sum() for x in tokens), A.sum() * 0)
        if len(tokens) and total > 0:
            of_one = {"mean": len(tokens), "relative": len(tokens), "elements": len(tokens) * len(A), "energy": total}
            loss = loss + energy / of_one.get(config.reduction, 1)
    return loss


def maac_loss(A, codes, X, modality, segment):
    """1 - sg(w) ρ, averaged over the sequences that hold both modalities."""
    shared, pairs = A * (codes == SHARED_BLOCK), []
    for row in range(len(X)):
        for number in segment[row].unique():
            here = segment[row] == number
            texts, others = X[row][here & (modality[row] == TEXT)], X[row][here & (modality[row] == NON_TEXT)]
            if len(texts) and len(others):
                pairs.append(_unaligned(texts @ shared.T, others @ shared.T))
    return sum(pairs) / len(pairs) if pairs else A.sum() * 0


def _unaligned(s_t, s_o):
    """1 - sg(w) ρ of one sequence; a mean of length 0 has no cosine, and no gradient."""
    m_t, m_o = s_t.mean(0), s_o.mean(0)
    if not m_t.norm() or not m_o.norm():
        return (s_t.sum() + s_o.sum()) * 0
    w = sum(
        sum((s @ mean / (s.norm() * mean.norm()) if s.norm() else 0.0) for s in tokens) / len(tokens)
        for tokens, mean in ((s_t.detach(), m_t.detach()), (s_o.detach(), m_o.detach()))
    )
    return 1 - w * (m_t @ m_o) / (m_t.norm() * m_o.norm())


def random_case(seed):
    """A, partition, tokens and settings drawn from one seed, the degenerate ones included."""
    g = torch.Generator().manual_seed(seed)

    def pick(*choices):
        return choices[int(torch.randint(len(choices), (), generator=g))]

    rows, length, rank, features = pick(1, 2, 3), pick(1, 2, 5, 9), pick(1, 2, 4), pick(1, 3, 8)
    A = torch.randn(rank, features, generator=g, dtype=torch.float64)
    X = torch.randn(rows, length, features, generator=g, dtype=torch.float64)
    codes = torch.randint(3, (rank, features), generator=g, dtype=torch.uint8)
    modality = torch.randint(3, (rows, length), generator=g, dtype=torch.uint8)
    segment = torch.zeros(rows, length, dtype=torch.int64)
    match pick("plain", "plain", "packed", "packed", "no text", "no media", "zero token", "zero mean", "no shared"):
        case "packed":
            segment = torch.randint(2, (rows, length), generator=g).cumsum(1)
            segment = segment - segment[:, :1]
        case "no text":
            modality[modality == TEXT] = NON_TEXT
        case "no media":
            modality[0] = torch.where(modality[0] == NON_TEXT, IGNORED, modality[0])
        case "zero token":
            X[:, 0] = 0
        case "zero mean":
            X[0][modality[0] == TEXT] = 0
        case "no shared":
            codes[codes == SHARED_BLOCK] = TEXT_BLOCK
    reduction = pick("mean", "paper", "elements", "energy", "relative")
    config = ImodConfig(lambda1=pick(0.0, 0.3, 1.0), lambda2=pick(0.0, 0.1, 1.0), reduction=reduction)
    return A, codes, X, modality, segment, config


def plain_case(rows=2, **settings):
    """A case where every token, block and sequence counts."""
    g = torch.Generator().manual_seed(7)
    A = torch.randn(4, 8, generator=g, dtype=torch.float64)
    X = torch.randn(rows, 9, 8, generator=g, dtype=torch.float64)
    codes = torch.randint(3, (4, 8), generator=g, dtype=torch.uint8)
    modality = torch.tensor([IGNORED, NON_TEXT, NON_TEXT, TEXT, TEXT, NON_TEXT, TEXT, TEXT, IGNORED], dtype=torch.uint8)
    segment = torch.zeros(rows, 9, dtype=torch.int64)
    config = ImodConfig(**{"lambda1": 1.0, "lambda2": 1.0, **settings})
    return A, codes, X, modality.repeat(rows, 1), segment, config


def difference(a, b):
    """Relative, or absolute where both are small."""
    return float((a - b).norm() / b.norm().clamp(min=1.0))
