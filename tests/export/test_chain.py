"""The chain with real vLLM: green on a right merge, red on a wrong one, and every control told apart."""

import json
import shutil

import pytest
from click.testing import CliRunner
from helpers import imod
from safetensors.torch import load_file, save_file

from imod_core.cli import imod as group
from imod_core.errors import InputError
from imod_export.links import Reply, make_link
from imod_export.parity import Chain, ask_link, check_parity
from imod_export.server_link import lossless, messages

LAYER = "model.language_model.layers.1.mlp.down_proj.weight"
LINKS = ("attached ↔ merged", "merged ↔ onnx", "merged ↔ vllm")
KINDS = ["text", "image", "audio", "video", "image+audio", "video+audio"]


@pytest.fixture(scope="module")
def chain(merged, onnx_folder, tmp_path_factory):
    """`imod parity` as a user calls it, on what `imod export` wrote: adapter and base are in its manifest."""
    out = tmp_path_factory.mktemp("chain")
    whole = shutil.copytree(merged, out / "whole")
    for graph in onnx_folder.iterdir():  # float32 alone; the smaller forms have tests of their own
        if not graph.stem.endswith(("_fp16", "_int8", "_q4")):
            (whole / "onnx").mkdir(exist_ok=True)
            shutil.copy(graph, whole / "onnx" / graph.name)
    done = imod("parity", whole, "--out", out)
    return done, json.loads((out / "parity.json").read_text()), out


def test_attached_merged_onnx_and_vllm_are_one_model_on_every_kind_of_probe(chain):
    done, report, out = chain
    assert done.returncode == 0, done.stderr
    assert report["chain"] == ["attached", "merged", "onnx", "vllm"]
    found = {(p["name"], p["link"]): p for p in report["probes"]}
    assert found.keys() == {(kind, link) for kind in KINDS for link in LINKS}
    for probe in report["probes"]:
        assert probe["same_prompt"]
        assert probe["greedy_prefix"] == probe["greedy"] > 0
        assert probe["distance"]["relative"] < 2e-5
    assert "merged ↔ vllm" in (out / "parity.html").read_text()


def test_every_control_is_told_apart_by_vllm_too(chain):
    _, report, _ = chain
    assert all(control["told_apart"] for control in report["controls"])
    names = {(c["name"], c["link"]) for c in report["controls"]}
    links = ("merged ↔ onnx", "merged ↔ vllm")
    assert {(f"other {m}", link) for m in ("image", "audio", "video") for link in links} <= names
    assert {"sound dropped", "one layer left out", "scale halved", "base against merged"} <= {name for name, _ in names}


class Deaf:
    """A link that answers every question as if it had been the first: media do not reach it."""

    name, arithmetic, weaves = "deaf", "float32", True

    def __init__(self, tolerance):
        self.tolerance = tolerance

    def ask(self, questions):
        from imod_export.subject import POSITIONS

        replies = {}
        for question in questions:
            first, name = len(question.answer) + 1 - POSITIONS, question.probe.name
            replies[name] = Reply(question.ids, question.answer, "", first, self.logits[name.split(",")[0]])
        return replies


def test_a_link_that_drops_media_is_caught_by_its_controls(merged):
    """It gives the right logits, whatever medium it is asked with; only the swapped media can tell."""
    from imod_core.families.load import load_processor
    from imod_export.folder_link import FolderLink
    from imod_export.parity import ask_merged, prepare
    from imod_export.subject import Subject, load_model

    chain = Chain(merged, "float32")
    probes, _ = prepare(chain)
    subject = Subject(load_model(merged, "float32", "float32"), load_processor(merged))
    _, _, said = ask_merged(chain, subject, probes, None, "float32")
    deaf = Deaf(FolderLink(merged).tolerance)
    deaf.logits = {name: reference.logits for name, reference in said.items()}
    results, controls = ask_link(deaf, probes, said)
    assert not [p.faults for p in results if p.faults]
    assert {c.told_apart for c in controls} == {False}
    assert len(controls) == 7


def test_another_folder_is_a_link_and_a_forgotten_layer_in_it_is_seen(merged, base, tmp_path):
    wrong = shutil.copytree(merged, tmp_path / "wrong", ignore=shutil.ignore_patterns("parity", "manifest.json"))
    assert check_parity(Chain(merged, "float32", against=(str(wrong),))).passed
    tensors, original = load_file(wrong / "model.safetensors"), load_file(base / "model.safetensors")[LAYER]
    save_file({**tensors, LAYER: original}, wrong / "model.safetensors", metadata={"format": "pt"})
    report = check_parity(Chain(merged, "float32", against=(str(wrong),)))
    assert not report.passed
    assert report.chain == ("merged", "wrong")
    command = ["parity", str(merged), "--against", str(wrong), "--out", str(tmp_path / "report")]
    strict = CliRunner().invoke(group, command)
    assert strict.exception.exit_code == 1
    assert "fails the comparison" in str(strict.exception)
    assert "Failed" in (tmp_path / "report" / "parity.html").read_text()
    lax = CliRunner().invoke(group, [*command, "--no-strict"])
    assert lax.exit_code == 0
    assert "Warning" in lax.output


def test_the_manifest_follows_a_new_comparison(merged, tmp_path):
    from imod_core.artifacts import blake3_of

    folder = shutil.copytree(merged, tmp_path / "merged")
    result = CliRunner().invoke(group, ["parity", str(folder), "--against", str(merged)])
    assert result.exit_code == 0, result.exception
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["parity"]["chain"] == ["attached", "merged", "merged"]
    assert all(blake3_of(folder / name) == digest for name, digest in manifest["files"].items())


def test_a_merge_that_fails_is_kept_when_asked_for(forge, base, tmp_path):
    idle = forge.adapter("idle", b_std=0.0, modules_to_save=None)
    command = ["export", "--merge", str(idle), "--base", str(base), "--out", str(tmp_path / "out"), "--no-strict"]
    result = CliRunner().invoke(group, command)
    assert result.exit_code == 0, result.exception
    assert not json.loads((tmp_path / "out" / "manifest.json").read_text())["parity"]["passed"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [("tensorrt", "is neither vllm"), ("onnx:int99", "onnx"), ("/nowhere/at/all", "is neither")],
)
def test_a_link_that_there_is_not_is_one_sentence(merged, spec, words):
    with pytest.raises(InputError, match=words):
        make_link(spec, merged, "float32")


def test_media_travel_to_a_server_without_loss():
    import base64

    import numpy as np

    from imod_core.media import load_video
    from imod_export.probes import default_probes

    probe = next(p for p in default_probes({"image", "audio", "video"}) if p.name == "video+audio")
    frames = probe.media["video"][0]
    assert np.array_equal(load_video(lossless(frames), len(frames)), frames)
    parts = messages(probe, 16_000)[0]["content"]
    assert [part["type"] for part in parts] == ["video_url", "input_audio", "text"]
    sent = base64.b64decode(parts[0]["video_url"]["url"].partition(",")[2])
    assert np.array_equal(load_video(sent, len(frames)), frames)
