"""Partitions: exact, disjoint, whole, and the same again from seed and name."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imod_core.errors import InputError
from imod_train import ImodConfig
from imod_train.masks import (
    NON_TEXT_BLOCK,
    SHARED_BLOCK,
    TEXT_BLOCK,
    block_counts,
    layer_index,
    make_partition,
    module_seed,
    partitions_hash,
    shared_share,
)

shapes = st.tuples(st.integers(1, 16), st.integers(1, 96))
shares = st.floats(0, 1)
ratios = st.sampled_from([0.5, 1.0, 2.0]) | st.floats(0.01, 100)


@settings(max_examples=150, deadline=None)
@given(shapes, shares, ratios, st.integers(0, 2**31), st.text(max_size=20))
def test_blocks_have_exact_counts_and_cover_every_element_once(shape, shared, ratio, seed, name):
    partition = make_partition(shape, name, seed, shared, ratio)
    masks = torch.stack([partition == code for code in (TEXT_BLOCK, NON_TEXT_BLOCK, SHARED_BLOCK)])
    assert partition.dtype == torch.uint8
    assert partition.shape == shape
    assert (masks.sum(0) == 1).all()
    counts = block_counts(shape[0] * shape[1], shared, ratio)
    assert tuple(masks.sum((1, 2)).tolist()) == counts


@given(st.integers(0, 10**7), shares, ratios)
def test_counts_are_the_shares_to_within_an_element(elements, shared, ratio):
    text, other, common = block_counts(elements, shared, ratio)
    assert text + other + common == elements
    assert min(text, other, common) >= 0
    assert abs(common - shared * elements) <= 0.5
    assert abs(text - ratio * other) <= 0.5 * (1 + ratio) + 1e-6 * elements


def test_a_partition_depends_on_seed_and_name_and_on_nothing_else():
    first = make_partition((8, 64), "model.layers.0.q_proj", 0, 0.3, 1.0)
    torch.manual_seed(123)
    torch.rand(5)
    assert torch.equal(first, make_partition((8, 64), "model.layers.0.q_proj", 0, 0.3, 1.0))
    assert not torch.equal(first, make_partition((8, 64), "model.layers.1.q_proj", 0, 0.3, 1.0))
    assert not torch.equal(first, make_partition((8, 64), "model.layers.0.q_proj", 1, 0.3, 1.0))


def test_making_masks_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    make_partition((8, 64), "q", 0, 0.3, 1.0)
    assert torch.equal(torch.rand(3), wanted)


def test_module_seeds_are_the_same_on_every_machine():
    assert module_seed(0, "model.layers.0.self_attn.q_proj") == 2988205609425315129
    assert 0 <= module_seed(-3, "ü") < 2**63


def test_elements_are_interleaved_not_cut_out():
    partition = make_partition((16, 256), "q", 0, 0.4, 1.0)
    by_row = torch.stack([(partition == code).float().mean(1) for code in range(3)])
    by_column_half = torch.stack([(partition[:, :128] == code).float().mean() for code in range(3)])
    assert by_row.min() > 0.15
    assert (by_column_half - torch.tensor([0.3, 0.3, 0.4])).abs().max() < 0.05


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("model.language_model.layers.7.mlp.up_proj", 7),
        ("base_model.model.thinker.model.layers.31.self_attn.q_proj", 31),
        ("transformer.h.3.attn.c_attn", 3),
        ("model.layers.2.mlp.layers.11.proj", 11),
        ("lm_head", None),
        ("model.layersX.3.q", None),
    ],
)
def test_layer_numbers_are_read_from_names(name, index):
    assert layer_index(name) == index


def test_the_shared_share_grows_linearly_with_depth():
    config = ImodConfig(shared_ratio=0.2, alpha=0.4)
    shares = [shared_share(config, layer, 4) for layer in range(4)]
    assert shares == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert shared_share(config, None, 4) == 0.2
    flat = ImodConfig(shared_ratio=0.5, alpha=0.0)
    assert {shared_share(flat, layer, 4) for layer in range(4)} == {0.5}


def test_a_share_above_one_is_refused():
    with pytest.raises(InputError, match=r"layer 9 of 10 a shared block of 1\.26"):
        shared_share(ImodConfig(shared_ratio=0.9, alpha=0.4), 9, 10)


def test_the_hash_sees_every_element_name_and_shape():
    partition = make_partition((4, 8), "q", 0, 0.3, 1.0)
    changed = partition.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 3
    base = partitions_hash({"a": partition, "b": partition})
    assert base == partitions_hash({"b": partition, "a": partition.clone()})
    assert len(base) == 64
    others = [{"a": partition, "b": changed}, {"a": partition, "c": partition}, {"a": partition, "b": partition.T}]
    assert len({base, *map(partitions_hash, others)}) == 4
