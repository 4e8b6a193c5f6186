"""The comparison passes what is equal, fails what is not, and leaves a report either way."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from imod_core.samples import Message, Sample, write_samples
from imod_export.compare import common_prefix, distance, same_greedy
from imod_export.parity import Chain, check_parity
from imod_export.probes import default_probes, draw_picture, draw_sound
from imod_export.tolerances import ARITHMETIC, EFFECT_SHARE, ROUNDING, TRANSFER

LAYER = "model.language_model.layers.1.mlp.down_proj"
KINDS = ["text", "image", "audio", "video", "image+audio", "video+audio"]


@pytest.fixture(scope="module")
def report(merged):
    return json.loads((merged / "parity" / "parity.json").read_text())


def spoil(merged, folder, change):
    """A copy of the merged folder with its tensors run through `change`."""
    shutil.copytree(merged, folder, ignore=shutil.ignore_patterns("parity"))
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_attached_and_merged_agree_on_every_kind_of_probe(report):
    assert report["passed"]
    assert [p["name"] for p in report["probes"]] == KINDS
    for probe in report["probes"]:
        assert probe["distance"]["relative"] <= ARITHMETIC["float32"].relative / 10
        assert probe["base_distance"]["relative"] > 1e-2
        assert probe["greedy_prefix"] == probe["greedy"] > 0


def test_base_and_swapped_media_are_told_apart(report):
    controls = {(c["probe"], c["name"]): c for c in report["controls"]}
    media = {(p, f"other {kind}") for p in KINDS for kind in p.split("+") if kind != "text"}
    dropped = {(p, "sound dropped") for p in KINDS if "audio" in p}
    assert controls.keys() >= media | dropped | {(p, "base against merged") for p in KINDS}
    assert all(c["told_apart"] for c in controls.values())


def test_a_layer_left_out_and_a_halved_scale_are_told_apart(report):
    controls = {c["name"]: c for c in report["controls"]}
    for name in ("one layer left out", "scale halved"):
        assert controls[name]["told_apart"]
        assert "layers" in controls[name]["seen_by"]
    assert "logits" in controls["scale halved"]["seen_by"]


def test_every_adapted_layer_and_saved_module_is_accounted_for(report):
    kinds = [layer["kind"] for layer in report["layers"]]
    assert (kinds.count("lora"), kinds.count("saved")) == (21, 16)
    assert all(
        abs(layer["transfer"] - 1) < TRANSFER["float32"] for layer in report["layers"] if layer["kind"] == "lora"
    )


def test_the_page_says_the_verdict_and_needs_nothing_from_outside(merged):
    page = (merged / "parity" / "parity.html").read_text()
    assert "Passed" in page
    assert "video+audio" in page
    assert LAYER in page
    assert page.count("<img ") == 3
    assert not re.search(r"(src|href)=['\"](?!data:)", page)


def forget_a_layer(merged, base):
    original = load_file(base / "model.safetensors")[f"{LAYER}.weight"]
    return lambda tensors: {**tensors, f"{LAYER}.weight": original}


def halve_the_scale(merged, base):
    original = load_file(base / "model.safetensors")
    return lambda tensors: {n: (v + original[n]) / 2 if "_proj.weight" in n else v for n, v in tensors.items()}


def pass_the_base(merged, base):
    return lambda tensors: load_file(base / "model.safetensors")


def nudge_a_projector(merged, base):
    name = "model.audio_projector.fc1.weight"
    return lambda tensors: {**tensors, name: tensors[name] * 1.001}


SPOILED = {
    forget_a_layer: rf"{LAYER}: the merged weight shows -?0\.\d% of its update",
    halve_the_scale: rf"{LAYER}: the merged weight shows (49|50)\.\d% of its update",
    pass_the_base: "text: base against merged was not told apart",
    nudge_a_projector: r"model\.audio_projector\.fc1\.weight: saved values differ by 1\.0e-03",
}


@pytest.mark.parametrize(
    ("spoiler", "dtype"),
    [(s, d) for s in SPOILED for d in ("float32", "bfloat16") if (s, d) != (nudge_a_projector, "bfloat16")],
)
def test_a_wrong_merge_fails_and_the_report_names_the_fault(merged, base, adapter, tmp_path, spoiler, dtype):
    change = spoiler(merged, base)
    cast = getattr(torch, dtype)
    wrong = spoil(merged, tmp_path / "wrong", lambda t: {n: v.to(cast) for n, v in change(t).items()})
    found = check_parity(Chain(wrong, dtype, base, ((adapter, 1.0),)))
    assert not found.passed
    assert any(re.search(SPOILED[spoiler], fault) for fault in found.faults), found.faults


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bit_merges_pass_at_their_own_tolerances(merged, base, adapter, tmp_path, dtype):
    cast = getattr(torch, dtype)
    half = spoil(merged, tmp_path / "half", lambda t: {n: v.to(cast) for n, v in t.items()})
    found = check_parity(Chain(half, dtype, base, ((adapter, 1.0),)))
    assert found.passed, found.faults
    assert {p.arithmetic for p in found.probes} == {"float32", dtype}
    assert max(p.distance.relative for p in found.probes) > ROUNDING["float32"].relative


def test_an_adapter_without_effect_is_not_told_apart_from_the_base(forge, base, tmp_path):
    from click.testing import CliRunner

    from imod_core.cli import imod
    from imod_core.errors import CheckFailed

    idle = forge.adapter("idle", b_std=0.0, modules_to_save=None)
    out = tmp_path / "out"
    result = CliRunner().invoke(imod, ["export", "--merge", str(idle), "--base", str(base), "--out", str(out)])
    assert isinstance(result.exception, CheckFailed)
    assert result.exception.exit_code == 1
    assert [p.name for p in tmp_path.iterdir()] == ["out.rejected"]
    assert not json.loads((tmp_path / "out.rejected" / "parity" / "parity.json").read_text())["passed"]
    assert "Failed" in (tmp_path / "out.rejected" / "parity" / "parity.html").read_text()


def test_a_users_samples_are_the_probes_when_given(merged, base, adapter, tmp_path):
    for n in range(2):
        draw_picture(n).save(tmp_path / f"{n}.png")
        soundfile.write(tmp_path / f"{n}.wav", draw_sound(n), 16_000)
    samples = [
        Sample(
            f"mine-{n}",
            (Message("user", "<image><audio>What sounds?"), Message("assistant", "nothing")),
            images=(tmp_path / f"{n}.png",),
            audios=(tmp_path / f"{n}.wav",),
        )
        for n in range(2)
    ]
    write_samples(tmp_path / "probes.jsonl", samples)
    found = check_parity(Chain(merged, "float32", base, ((adapter, 1.0),), probes=tmp_path / "probes.jsonl"))
    assert found.passed, found.faults
    assert [p.name for p in found.probes] == ["mine-0", "mine-1"]
    assert len(found.controls) == 10


def test_probes_ask_for_no_medium_that_the_model_lacks():
    assert [p.name for p in default_probes({"image"})] == ["text", "image"]
    assert [p.name for p in default_probes(())] == ["text"]


def test_stand_ins_have_the_same_size_and_other_content():
    for probe in default_probes({"image", "audio", "video"}):
        for kind, items in probe.media.items():
            real, other = np.asarray(items[0]), np.asarray(probe.others[kind][0])
            assert real.shape == other.shape
            assert np.abs(real.astype(float) - other.astype(float)).mean() > 0.05


def test_distance_is_zero_for_equals_and_grows_with_the_difference():
    z = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    limit = ARITHMETIC["float32"]
    assert distance(z, z, limit).within(limit)
    assert distance(z, z + 1.0, limit).kl < 1e-12
    near, far = (distance(z, z + step * torch.flip(z, [1]), limit) for step in (1e-6, 1e-2))
    assert near.within(limit)
    assert not far.within(limit)
    assert far.relative == pytest.approx(1e-2, rel=0.3)


def test_values_that_are_not_numbers_are_infinitely_far():
    z = torch.randn(3, 7)
    spoiled = z.clone()
    spoiled[1, 2] = float("nan")
    limit = ARITHMETIC["bfloat16"]
    assert not distance(z, spoiled, limit).within(limit)
    assert not distance(spoiled, spoiled, limit).within(limit)


def test_a_different_best_token_counts_only_where_the_reference_was_decided():
    z = torch.tensor([[1.0, 0.0], [0.5, 0.4999]])
    y = torch.tensor([[1.0, 0.0], [0.4999, 0.5]])
    found = distance(z, y, ARITHMETIC["float32"])
    assert (found.argmax_agreement, found.near_ties) == (1.0, 1)
    assert distance(z, y.flip(1), ARITHMETIC["float32"]).argmax_agreement == 0.0


def test_greedy_answers_may_part_only_at_a_near_tie():
    limit = ARITHMETIC["float32"]
    tied, decided = [1.0, 1.0], [2.0, 0.0]
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert same_greedy([0, 0], [0, 0], torch.tensor([decided, decided, decided]), limit)
    assert same_greedy([0, 0], [0, 1], torch.tensor([decided, tied, decided]), limit)
    assert not same_greedy([0, 0], [0, 1], torch.tensor([tied, decided, tied]), limit)
    assert not same_greedy([0, 0], [0], torch.tensor([decided, decided, decided]), limit)


def test_limits_leave_room_for_the_effect_share_to_matter():
    assert 0 < EFFECT_SHARE < 1
    assert max(TRANSFER.values()) < 0.5
