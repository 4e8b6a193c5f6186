"""The closed forms against autograd on the constraints written as losses, in float64, through a real layer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import EXACT, difference, maac_loss, msdc_loss, oracle_gradient, plain_case, random_case

from imod_core.modality import IGNORED, NON_TEXT, TEXT
from imod_train.config import REDUCTIONS, ImodConfig
from imod_train.constraints import cosine, maac_gradient, msdc_gradient
from imod_train.masks import NON_TEXT_BLOCK, SHARED_BLOCK, TEXT_BLOCK
from imod_train.projection import ImodLinear
from imod_train.tokens import TokenBatch, TokenHolder


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
    output = module(X)
    gradient = torch.autograd.grad(output, linear.weight, task)[0] if output.requires_grad else torch.zeros_like(A)
    return gradient - task_gradient(task, X)


def task_gradient(task, X):
    return task.flatten(0, 1).T @ X.flatten(0, 1)


def random_task(seed, A, X):
    """A gradient at A's output, in which `relative` measures itself."""
    return torch.randn(*X.shape[:-1], len(A), generator=torch.Generator().manual_seed(seed), dtype=A.dtype)


@pytest.mark.parametrize("block", range(8))
def test_injected_gradient_equals_autograd_in_hundreds_of_cases(block):
    for seed in range(block * 75, (block + 1) * 75):
        case = random_case(seed)
        task = random_task(seed, case[0], case[2])
        found, wanted = injected(*case, task), oracle_gradient(*case, task_gradient(task, case[2]))
        assert torch.isfinite(found).all(), f"case {seed}"
        assert difference(found, wanted) <= EXACT, f"case {seed}"


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_oracle_tells_wrong_gradients_apart(reduction):
    A, codes, X, modality, segment, config = plain_case(reduction=reduction)
    task = random_task(0, A, X)
    wanted = oracle_gradient(A, codes, X, modality, segment, config, task_gradient(task, X))
    assert difference(injected(A, codes, X, modality, segment, config, task), wanted) <= EXACT
    swapped = torch.where(modality == TEXT, NON_TEXT, torch.where(modality == NON_TEXT, TEXT, modality))
    assert difference(injected(A, codes, X, swapped, segment, config, task), wanted) > 1e-3
    other_blocks = (codes + 1) % 3
    assert difference(injected(A, other_blocks, X, modality, segment, config, task), wanted) > 1e-3
    for other in set(REDUCTIONS) - {reduction}:
        changed = ImodConfig(lambda1=1.0, lambda2=1.0, reduction=other)
        assert difference(injected(A, codes, X, modality, segment, changed, task), wanted) > 1e-3, other
    cut = torch.arange(X.shape[1]).expand_as(modality) // 4
    assert difference(injected(A, codes, X, modality, cut, config, task), wanted) > 1e-6


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
    assert difference(found, oracle_gradient(A, codes, X, modality, segment, config)) <= EXACT


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
    A, codes, X, modality, segment, config = plain_case(rows=1, reduction="paper")
    X_t, X_o = X[0][modality[0] == TEXT], X[0][modality[0] == NON_TEXT]
    step = 1e-3

    def unaligned(A):
        return maac_loss(A, codes, X, modality, segment)

    def loud(A):
        return msdc_loss(A, codes, X, modality, config)

    assert unaligned(A - step * maac_gradient(A, codes, X_t, X_o)) < unaligned(A)
    assert unaligned(A + step * maac_gradient(A, codes, X_t, X_o)) > unaligned(A)
    assert loud(A - step * msdc_gradient(A, codes, X_t, X_o)) < loud(A)


def test_only_energy_is_blind_to_the_size_of_A_and_of_the_tokens():
    A, codes, X, modality, segment, _ = plain_case()

    def norm(reduction, A=A, X=X):
        return injected(A, codes, X, modality, segment, ImodConfig(lambda1=1.0, maac=False, reduction=reduction)).norm()

    assert norm("energy", X=5 * X) == pytest.approx(norm("energy"))
    assert norm("energy", A=5 * A) == pytest.approx(norm("energy") / 5)
    for reduction in ("mean", "paper", "elements"):
        assert norm(reduction, X=5 * X) == pytest.approx(25 * norm(reduction))
    step = injected(A, codes, X, modality, segment, ImodConfig(lambda1=1.0, maac=False, reduction="energy"))
    assert abs((step * A).sum()) < 1e-12 < step.norm()  # moving along it leaves the size of A as it is


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_only_the_papers_sum_grows_with_the_number_of_tokens(reduction):
    A, codes, X, modality, segment, config = plain_case(reduction=reduction, maac=False)
    task = random_task(0, A, X)

    def norm(times):
        grown = (t.repeat(times, *[1] * (t.dim() - 1)) for t in (X, modality, segment, task / times))
        tokens, codes_of_tokens, segments, share = grown
        return injected(A, codes, tokens, codes_of_tokens, segments, config, share).norm()

    assert norm(3) == pytest.approx((3 if reduction == "paper" else 1) * norm(1))


def test_relative_is_lambda_times_the_tasks_norm():
    A, codes, X, modality, segment, config = plain_case(lambda1=0.25, maac=False, reduction="relative")
    task = random_task(3, A, X)
    for size in (1.0, 1e-6, 1e6):
        found = injected(A, codes, X, modality, segment, config, task * size).norm()
        assert found == pytest.approx(0.25 * task_gradient(task, X).norm() * size)
    assert not injected(A, codes, X, modality, segment, config).any()


def test_elements_divides_the_mean_by_the_rank():
    case = plain_case(maac=False)
    elements = ImodConfig(lambda1=1.0, maac=False, reduction="elements")
    assert difference(4 * injected(*case[:-1], elements), injected(*case)) <= EXACT


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), extra=st.integers(1, 5))
def test_padding_changes_nothing(seed, extra):
    A, codes, X, modality, segment, config = random_case(seed)
    task = random_task(seed, A, X)
    noise = torch.randn(len(X), extra, X.shape[-1], dtype=X.dtype)
    padded = torch.cat([X, noise], 1)
    codes_of_padding = torch.full((len(X), extra), IGNORED, dtype=torch.uint8)
    longer = torch.cat([modality, codes_of_padding], 1)
    longer_segment = torch.cat([segment, segment[:, -1:].expand(-1, extra)], 1)
    longer_task = torch.cat([task, torch.zeros(len(X), extra, len(A), dtype=A.dtype)], 1)
    plain = injected(A, codes, X, modality, segment, config, task)
    assert difference(injected(A, codes, padded, longer, longer_segment, config, longer_task), plain) <= EXACT


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_packed_row_equals_its_sequences_in_rows_of_their_own(seed):
    A, codes, X, modality, _, config = random_case(seed)
    rows, length = modality.shape
    task = random_task(seed, A, X)
    packed_segment = torch.arange(rows).repeat_interleave(length).view(1, -1)
    one_row = (X.view(1, -1, X.shape[-1]), modality.view(1, -1), packed_segment, config, task.view(1, -1, len(A)))
    in_rows = injected(A, codes, X, modality, torch.zeros_like(modality, dtype=torch.int64), config, task)
    assert difference(injected(A, codes, *one_row), in_rows) <= EXACT


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vanishing_and_huge_inputs_stay_finite(reduction, dtype):
    A, codes, X, modality, segment, config = plain_case(reduction=reduction)
    for size in (0.0, 1e-38, 1e-20, 1e-6, 1e6):
        found = injected(A.to(dtype), codes, (X * size).to(dtype), modality, segment, config)
        assert torch.isfinite(found).all(), size


def test_blocks_of_the_other_modality_are_what_msdc_touches():
    A, codes, X, modality, segment, config = plain_case(maac=False)
    modality = torch.where(modality == NON_TEXT, IGNORED, modality)
    found = injected(A, codes, X, modality, segment, config)
    assert found[codes == NON_TEXT_BLOCK].any()
    assert not found[codes == TEXT_BLOCK].any()
