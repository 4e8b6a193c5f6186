"""What fewer bits cost: rounding is right, its cost is reported, and rounding by chance keeps an update on average."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from imod_core.cli import imod
from imod_export.adapter import read_adapter
from imod_export.export import ExportSettings, export
from imod_export.plan import make_plan
from imod_export.rounding import COST_ROWS, COST_VALUES, WARN_LOST, Rounding, RoundingCost, cast_into, sampled_rows
from imod_export.tensors import read_checkpoint
from imod_export.weight import OpenFiles, Weight

HALVES = [torch.bfloat16, torch.float16]


def generator(name="x", seed=0):
    return Rounding("stochastic", seed).generator(name)


def cast(values, dtype, generator):
    target = torch.empty_like(values, dtype=dtype)
    cast_into(target, values, generator)
    return target


@pytest.mark.parametrize("dtype", HALVES)
def test_a_value_goes_to_one_of_its_two_neighbours_and_on_average_stays(dtype):
    values = torch.randn(500, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 500)
    rows = values.repeat(2000, 1)
    found = cast(rows, dtype, generator()).float()
    near = values.to(dtype)
    gap = 2.0 ** (torch.frexp(values.abs()).exponent - (8 if dtype == torch.bfloat16 else 11)).float()
    gap = gap.clamp(min=2.0**-24 if dtype == torch.float16 else 0)
    assert ((found - rows).abs() <= gap * (1 + 1e-6)).all()
    deviation = (found.double().mean(0) - values.double()).abs() / gap.double()
    assert deviation.max() < 6 * 0.5 / 2000**0.5
    assert ((near.float() - values).abs() / gap).max() > 0.45, "to nearest alone is off by up to half a gap"


@pytest.mark.parametrize("dtype", HALVES)
def test_what_the_dtype_can_hold_is_not_moved(dtype):
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, float("inf"), float("nan"), torch.finfo(dtype).max])
    assert torch.equal(cast(exact, dtype, generator()).isnan(), exact.isnan())
    held = exact[~exact.isnan()]
    assert torch.equal(cast(held, dtype, generator()).float(), held)


def test_neighbours_are_those_of_the_format():
    """numpy knows float16's neighbours; nobody here wrote it."""
    values = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    found = cast(torch.from_numpy(values), torch.float16, generator()).numpy()
    near = values.astype(np.float16)
    away = np.nextafter(near, np.where(values > near, np.float16(np.inf), np.float16(-np.inf)))
    assert ((found == near) | (found == away)).all()
    assert (found == away).any()


def test_a_seed_and_a_name_give_one_stream():
    values = torch.randn(1000)
    first, again = (cast(values, torch.bfloat16, generator("w", 3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, cast(values, torch.bfloat16, generator("w", 4)))
    assert not torch.equal(first, cast(values, torch.bfloat16, generator("v", 3)))


@pytest.mark.parametrize(("size", "lost"), [(1e-5, 0.5), (1e-1, 0.01)])
def test_small_updates_are_lost_in_bfloat16_and_the_cost_says_so(size, lost):
    torch.manual_seed(0)
    base = torch.randn(200, 200).bfloat16().float()
    update = size * torch.randn(200, 200)
    cost, kept = RoundingCost("w"), RoundingCost("w")
    cost.add(base, update, (base + update).bfloat16())
    kept.add(base, update, base + update)
    found = cost.result()
    assert found["strength"] == pytest.approx(size, rel=0.05)
    assert (found["lost"] > lost) if size < 1e-3 else (abs(found["lost"]) < lost)
    assert abs(kept.result()["lost"]) < 1e-2
    if size < 1e-3:
        assert found["unmoved"] > 0.5
        by_chance = RoundingCost("w")
        for n in range(40):
            by_chance.add(base, update, cast(base + update, torch.bfloat16, generator(str(n))))
        assert abs(by_chance.result()["lost"]) < 0.25


@pytest.fixture(scope="module")
def faint(forge, base, tmp_path_factory):
    """A bfloat16 base, and an adapter so faint that bfloat16 swallows most of it."""
    half = tmp_path_factory.mktemp("half") / "base"
    forge.load(base, torch.bfloat16).save_pretrained(half)
    adapter = forge.adapter("faint", b_std=1e-5, modules_to_save=None)
    return half, adapter


def lost(out):
    return [update["lost"] for update in json.loads((out / "merge.json").read_text())["updates"]]


def test_the_merge_reports_every_update_and_warns_of_what_is_lost(faint, tmp_path):
    base, adapter = faint
    command = ["export", "--merge", str(adapter), "--base", str(base), "--no-parity", "--out"]
    result = CliRunner().invoke(imod, [*command, str(tmp_path / "half")], catch_exceptions=False)
    assert "Warning: rounding to bfloat16 lost more than 10%" in result.output
    assert "--dtype float32" in result.output
    assert len(lost(tmp_path / "half")) == 21
    assert min(lost(tmp_path / "half")) > WARN_LOST
    whole = CliRunner().invoke(imod, [*command, str(tmp_path / "whole"), "--dtype", "float32"], catch_exceptions=False)
    assert "Warning" not in whole.output
    assert max(map(abs, lost(tmp_path / "whole"))) < 1e-3


QUERIES, KEYS, WIDTH = 2048, 256, 2048


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    """A bfloat16 base with one matrix for queries, keys and values."""
    folder = tmp_path_factory.mktemp("fused")
    stack = torch.randn(QUERIES + 2 * KEYS, WIDTH, generator=torch.Generator().manual_seed(0))
    save_file({"model.layers.0.self_attn.qkv_proj.weight": stack.bfloat16()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "phi3"}))
    return folder


@pytest.mark.parametrize(("part", "rows"), [("q_proj", QUERIES), ("k_proj", KEYS), ("v_proj", KEYS)])
def test_the_cost_is_seen_where_an_update_covers_only_part_of_a_weight(fused, tmp_path, part, rows):
    draw = torch.Generator().manual_seed(1)
    name = f"base_model.model.model.layers.0.self_attn.{part}.lora"
    factors = {f"{name}_A.weight": torch.randn(2, WIDTH, generator=draw)}
    factors[f"{name}_B.weight"] = 1e-4 * torch.randn(rows, 2, generator=draw)
    (tmp_path / "adapter").mkdir()
    save_file(factors, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": [part]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    words = ["--merge", tmp_path / "adapter", "--base", fused, "--out", tmp_path / "out", "--no-parity"]
    result = CliRunner().invoke(imod, ["export", *map(str, words)], catch_exceptions=False)
    cost = json.loads((tmp_path / "out" / "merge.json").read_text())["updates"][0]
    assert cost["strength"] == pytest.approx(1e-4 * 2**0.5, rel=0.3)
    assert cost["lost"] > 0.5
    assert cost["unmoved"] > 0.5
    assert "Warning: rounding to bfloat16 lost more than 10%" in result.output


def test_the_update_of_single_rows_is_that_of_all_rows(fused, tmp_path):
    draw = torch.Generator().manual_seed(2)
    factors = {}
    for part, count in (("q_proj", QUERIES), ("v_proj", KEYS)):
        name = f"base_model.model.model.layers.0.self_attn.{part}.lora"
        factors[f"{name}_A.weight"] = torch.randn(2, WIDTH, generator=draw)
        factors[f"{name}_B.weight"] = torch.randn(count, 2, generator=draw)
    save_file(factors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    plan = make_plan(read_checkpoint(fused), read_adapter(tmp_path))
    (name,) = plan.changes
    with OpenFiles() as files:
        weight = Weight(plan.checkpoint.tensors[name], plan.changes[name], files)
        every = weight.update(torch.zeros(weight.rows, weight.columns), 0)
        rows = [0, 5, QUERIES - 1, QUERIES, QUERIES + KEYS - 1, QUERIES + KEYS, weight.rows - 1]
        assert torch.allclose(weight.update_of(rows), every[rows], atol=1e-5)
    assert every[QUERIES : QUERIES + KEYS].abs().max() == 0 < every[rows[-1]].abs().min()


@pytest.mark.parametrize(
    "covered", [[range(5)], [range(100, 356)], [range(3, 2000), range(2000, 2256), range(2500, 2501)], []], ids=str
)
@pytest.mark.parametrize("columns", [1, 2048, 10**6])
def test_the_cost_is_seen_at_places_spread_over_what_updates_cover(covered, columns):
    sampled = sampled_rows(covered, columns)
    every = [row for rows in covered for row in rows]
    assert len(set(sampled)) == len(sampled)
    assert set(sampled) <= set(every)
    if len(every) <= COST_ROWS or len(every) * columns <= COST_VALUES:
        assert sampled == every
    else:
        assert len(sampled) == COST_ROWS or len(sampled) * columns <= COST_VALUES
        gaps = np.diff([every.index(row) for row in sampled])
        assert max(gaps) <= len(every) / COST_ROWS + 1


def test_rounding_by_chance_keeps_the_update_and_depends_on_its_seed_alone(faint, tmp_path):
    base, adapter = faint
    settings = {"parity": False, "rounding": "stochastic", "seed": 5}
    first = export(adapter, tmp_path / "first", base, ExportSettings(**settings))
    again = export(adapter, tmp_path / "again", base, ExportSettings(**settings, max_shard=100_000))
    other = export(adapter, tmp_path / "other", base, ExportSettings(**{**settings, "seed": 6}))
    one, two, three = (
        {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}
        for folder in (first, again, other)
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert any(not torch.equal(value, three[name]) for name, value in one.items())
    nearest = export(adapter, tmp_path / "nearest", base, ExportSettings(parity=False))
    assert abs(np.mean(lost(first))) < 0.5 * np.mean(lost(nearest))


def test_a_stochastic_merge_passes_its_own_comparison(merged, base, adapter, tmp_path):
    settings = ExportSettings(dtype="bfloat16", rounding="stochastic", seed=1)
    out = export(adapter, tmp_path / "out", base, settings)
    report = json.loads((out / "parity" / "parity.json").read_text())
    assert report["passed"]
    assert len(report["rounding"]) == 21


def test_unmerge_gives_the_base_back_and_notices_what_does_not(base, adapter, merged, tmp_path):
    def check(folder):
        command = ["export", "--merge", adapter, "--base", base, "--unmerge", folder]
        return CliRunner().invoke(imod, [str(word) for word in command])

    assert check(merged).exit_code == 0
    for dtype, rounding in (("bfloat16", "nearest"), ("float16", "nearest"), ("bfloat16", "stochastic")):
        settings = ExportSettings(parity=False, dtype=dtype, rounding=rounding)
        half = export(adapter, tmp_path / f"{dtype}-{rounding}", base, settings)
        assert check(half).exit_code == 0, check(half).exception
    tensors = load_file(merged / "model.safetensors")
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "config.json").write_text((merged / "config.json").read_text())
    for name in ("model.language_model.layers.1.mlp.down_proj.weight", "model.language_model.norm.weight"):
        changed = {**tensors, name: tensors[name].clone()}
        changed[name].view(-1)[0] += 1e-3
        save_file(changed, tmp_path / "wrong" / "model.safetensors", metadata={"format": "pt"})
        result = check(tmp_path / "wrong")
        assert (result.exit_code, result.exception.exit_code) == (1, 1)
        assert name in str(result.exception)
    assert "are not base and adapter" in str(check(base).exception)
