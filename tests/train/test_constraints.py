"""The closed form against autograd on the constraint written as a loss, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imod_core.modality import IGNORED, NON_TEXT, TEXT
from imod_train.config import ImodConfig
from imod_train.constraints import cosine, maac_gradient, msdc_gradient
from imod_train.masks import NON_TEXT_BLOCK, SHARED_BLOCK, TEXT_BLOCK
from imod_train.projection import ImodLinear
from imod_train.tokens import TokenBatch, TokenHolder

EXACT = 1e-10
"""Relative: both sides are the same float64 arithmetic in another order."""


def oracle_loss(A, codes, X, modality, segment, config):
    """λ1(|(A∘M_o) sg(X_t)|² + |(A∘M_t) sg(X_o)|²) + λ2(1 - sg(w) ρ), one sequence and one token list at a
    time."""
    lambda1, lambda2 = config.weights
    blocks = {code: A * (codes == code) for code in (TEXT_BLOCK, NON_TEXT_BLOCK, SHARED_BLOCK)}
    X = X.detach()
    loss = A.sum() * 0
    for code, foreign in ((TEXT, NON_TEXT_BLOCK), (NON_TEXT, TEXT_BLOCK)):
        energies = [(blocks[foreign] @ x).square().sum() for x in X[modality == code]]
        if energies:
            share = len(energies) if config.reduction == "mean" else 1
            loss = loss + lambda1 * sum(energies) / share
    pairs = []
    for row in range(len(X)):
        for number in segment[row].unique():
            here = segment[row] == number
            texts, others = X[row][here & (modality[row] == TEXT)], X[row][here & (modality[row] == NON_TEXT)]
            if len(texts) and len(others):
                pairs.append(alignment(blocks[SHARED_BLOCK], texts, others))
    return loss + lambda2 * sum(pairs) / len(pairs) if pairs else loss


def alignment(shared, texts, others):
    """1 - sg(w) ρ of one sequence; a mean of length 0 has no cosine, and no gradient."""
    s_t, s_o = texts @ shared.T, others @ shared.T
    m_t, m_o = s_t.mean(0), s_o.mean(0)
    if not m_t.norm() or not m_o.norm():
        return shared.sum() * 0 + 1
    w = sum(
        sum((s @ mean / (s.norm() * mean.norm()) if s.norm() else 0.0) for s in tokens) / len(tokens)
        for tokens, mean in ((s_t.detach(), m_t.detach()), (s_o.detach(), m_o.detach()))
    )
    return 1 - w * (m_t @ m_o) / (m_t.norm() * m_o.norm())


def injected(A, codes, X, modality, segment, config, task=None):
    """What training injects: the gradient of a real `ImodLinear` less its task gradient."""
    rank, features = A.shape
    holder = TokenHolder((), ())
    linear = torch.nn.Linear(features, rank, bias=False, dtype=A.dtype)
    linear.weight.data.copy_(A)
    module = ImodLinear.adopt(linear, "layer", codes, config, holder).train()
    packed = segment.max() > 0
    holder.current = TokenBatch(modality, segment if packed else None, int(segment.max()) + 1)
    holder.current.scale = torch.ones((), dtype=A.dtype)
    task = torch.zeros(*X.shape[:-1], rank, dtype=A.dtype) if task is None else task
    module(X).backward(task)
    return linear.weight.grad - task.flatten(0, 1).T @ X.flatten(0, 1)


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
    config = ImodConfig(lambda1=pick(0.0, 0.3, 1.0), lambda2=pick(0.1, 1.0), reduction=pick("mean", "paper"))
    return A, codes, X, modality, segment, config


def autograd_gradient(A, *case):
    leaf = A.clone().requires_grad_()
    return torch.autograd.grad(oracle_loss(leaf, *case), leaf)[0]


def difference(a, b):
    return float((a - b).norm() / b.norm().clamp(min=1.0))


@pytest.mark.parametrize("block", range(8))
def test_injected_gradient_equals_autograd_in_hundreds_of_cases(block):
    for seed in range(block * 75, (block + 1) * 75):
        case = random_case(seed)
        found, wanted = injected(*case), autograd_gradient(*case)
        assert torch.isfinite(found).all(), f"case {seed}"
        assert difference(found, wanted) <= EXACT, f"case {seed}"


def test_the_oracle_tells_wrong_gradients_apart():
    A, codes, X, modality, segment, config = plain_case()
    wanted = autograd_gradient(A, codes, X, modality, segment, config)
    assert difference(injected(A, codes, X, modality, segment, config), wanted) <= EXACT
    swapped = torch.where(modality == TEXT, NON_TEXT, torch.where(modality == NON_TEXT, TEXT, modality))
    assert difference(injected(A, codes, X, swapped, segment, config), wanted) > 1e-3
    other_blocks = (codes + 1) % 3
    assert difference(injected(A, other_blocks, X, modality, segment, config), wanted) > 1e-3
    other_reduction = ImodConfig(lambda1=1.0, lambda2=1.0, reduction="paper")
    assert difference(injected(A, codes, X, modality, segment, other_reduction), wanted) > 1e-3
    cut = torch.arange(X.shape[1]).expand_as(modality) // 4
    assert difference(injected(A, codes, X, modality, cut, config), wanted) > 1e-6


def test_w_is_held_constant():
    A, codes, X, modality, segment, _ = plain_case()
    config = ImodConfig(lambda1=0.0, lambda2=1.0)
    leaf = A.clone().requires_grad_()
    shared = leaf * (codes == SHARED_BLOCK)
    total = 0
    for row in range(len(X)):
        s_t, s_o = (X[row][modality[row] == code] @ shared.T for code in (TEXT, NON_TEXT))
        w = cosine(s_t, s_t.mean(0)).mean() + cosine(s_o, s_o.mean(0)).mean()
        total = total + (1 - w * cosine(s_t.mean(0), s_o.mean(0))) / len(X)
    through_w = torch.autograd.grad(total, leaf)[0]
    found = injected(A, codes, X, modality, segment, config)
    assert difference(found, through_w) > 1e-3
    assert difference(found, autograd_gradient(A, codes, X, modality, segment, config)) <= EXACT


def test_the_papers_equations_are_what_training_injects():
    A, codes, X, modality, segment, _ = plain_case(rows=1)
    X_t, X_o = X[0][modality[0] == TEXT], X[0][modality[0] == NON_TEXT]
    only_msdc = ImodConfig.paper(lambda1=0.7, maac=False)
    only_maac = ImodConfig.paper(lambda2=0.9, msdc=False)
    msdc = 0.7 * msdc_gradient(A, codes, X_t, X_o)
    maac = 0.9 * maac_gradient(A, codes, X_t, X_o)
    assert difference(injected(A, codes, X, modality, segment, only_msdc), msdc) <= EXACT
    assert difference(injected(A, codes, X, modality, segment, only_maac), maac) <= EXACT
    assert not msdc[codes == SHARED_BLOCK].any()
    assert maac[codes == SHARED_BLOCK].any()
    assert not maac[codes != SHARED_BLOCK].any()


def test_maac_pulls_the_shared_means_together_and_msdc_silences_the_foreign_block():
    A, codes, X, modality, _, _ = plain_case(rows=1)
    X_t, X_o = X[0][modality[0] == TEXT], X[0][modality[0] == NON_TEXT]

    def rho(A):
        shared = A * (codes == SHARED_BLOCK)
        return cosine(shared @ X_t.mean(0), shared @ X_o.mean(0))

    def foreign(A):
        on_text = X_t @ (A * (codes == NON_TEXT_BLOCK)).T
        return on_text.square().sum() + (X_o @ (A * (codes == TEXT_BLOCK)).T).square().sum()

    step = 1e-3
    assert rho(A - step * maac_gradient(A, codes, X_t, X_o)) > rho(A)
    assert rho(A + step * maac_gradient(A, codes, X_t, X_o)) < rho(A)
    assert foreign(A - step * msdc_gradient(A, codes, X_t, X_o)) < foreign(A)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), extra=st.integers(1, 5))
def test_padding_changes_nothing(seed, extra):
    A, codes, X, modality, segment, config = random_case(seed)
    noise = torch.randn(len(X), extra, X.shape[-1], dtype=X.dtype)
    padded = torch.cat([X, noise], 1)
    codes_of_padding = torch.full((len(X), extra), IGNORED, dtype=torch.uint8)
    longer = torch.cat([modality, codes_of_padding], 1)
    longer_segment = torch.cat([segment, segment[:, -1:].expand(-1, extra)], 1)
    plain = injected(A, codes, X, modality, segment, config)
    assert difference(injected(A, codes, padded, longer, longer_segment, config), plain) <= EXACT


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_packed_row_equals_its_sequences_in_rows_of_their_own(seed):
    A, codes, X, modality, _, config = random_case(seed)
    rows, length = modality.shape
    packed_segment = torch.arange(rows).repeat_interleave(length).view(1, -1)
    in_one_row = injected(A, codes, X.view(1, -1, X.shape[-1]), modality.view(1, -1), packed_segment, config)
    in_rows = injected(A, codes, X, modality, torch.zeros_like(modality, dtype=torch.int64), config)
    assert difference(in_one_row, in_rows) <= EXACT


def test_vanishing_and_huge_inputs_stay_finite_in_float32():
    A, codes, X, modality, segment, _ = plain_case()
    config = ImodConfig(lambda1=1.0, lambda2=1.0)
    for size in (0.0, 1e-38, 1e-20, 1e-6, 1e6):
        found = injected(A.float(), codes, (X * size).float(), modality, segment, config)
        assert torch.isfinite(found).all(), size


def plain_case(rows=2):
    """A case where every token, block and sequence counts."""
    g = torch.Generator().manual_seed(7)
    A = torch.randn(4, 8, generator=g, dtype=torch.float64)
    X = torch.randn(rows, 9, 8, generator=g, dtype=torch.float64)
    codes = torch.randint(3, (4, 8), generator=g, dtype=torch.uint8)
    modality = torch.tensor([IGNORED, NON_TEXT, NON_TEXT, TEXT, TEXT, NON_TEXT, TEXT, TEXT, IGNORED], dtype=torch.uint8)
    segment = torch.zeros(rows, 9, dtype=torch.int64)
    return A, codes, X, modality.repeat(rows, 1), segment, ImodConfig(lambda1=1.0, lambda2=1.0)
