"""Qwen2.5-Omni's thinker at tiny size: its graphs and its prompts in numpy equal transformers'."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from imod_core.cli import imod
from imod_core.families.load import load_processor
from imod_core.samples import Message
from imod_export.compare import same_greedy
from imod_export.onnx.layout import AUDIO, DECODER, VISION, file_name
from imod_export.onnx.omni_inputs import smart_size
from imod_export.onnx.rotary import OPERATOR
from imod_export.onnx.runtime import OnnxModel
from imod_export.probes import Probe, draw_picture, draw_sound, draw_video
from imod_export.subject import Subject, load_model, placeholder_ids
from imod_export.tolerances import ONNX

from .omni import save_thinker


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_thinker(tmp_path_factory.mktemp("omni") / "thinker")


@pytest.fixture(scope="module")
def exported(folder):
    out = folder.parent / "out"
    words = ["export", "--model", str(folder), "--onnx", "--onnx-variants", "int8", "--out", str(out)]
    result = CliRunner().invoke(imod, words)
    assert result.exit_code == 0, f"{result.output}{result.exception}"
    return out


@pytest.fixture(scope="module")
def runtime(exported):
    return OnnxModel(exported / "onnx", "fp32")


@pytest.fixture(scope="module")
def subject(folder):
    return Subject(load_model(folder, "float32", "float32"), load_processor(folder))


def probes():
    make = np.random.default_rng(0)
    wide = Image.fromarray(make.integers(0, 256, (60, 301, 3), dtype=np.uint8))
    sounds = [draw_sound(0), draw_sound(1)[:5000], (0.1 * make.standard_normal(63_999)).astype(np.float32)]
    yield Probe("text", (Message("user", "Where is it?"),))
    yield Probe("image", (Message("user", "<image>Where?"),), {"image": [wide]})
    yield Probe("images", (Message("user", "<image>Where?<image>"),), {"image": [draw_picture(0), wide]})
    yield Probe("audios", (Message("user", "<audio><audio>Loud?<audio>"),), {"audio": sounds})
    yield Probe("video", (Message("user", "<video>Which?"),), {"video": [draw_video(0)]})
    yield Probe("odd video", (Message("user", "<video>Which?"),), {"video": [draw_video(1)[:5]]})
    every = {"image": [draw_picture(1)], "audio": sounds[:1], "video": [draw_video(0)[:4]]}
    yield Probe("all", (Message("user", "<image>and<video><audio>Which?"),), every)


def test_queries_and_keys_turn_by_one_operator_each(exported):
    nodes = onnx.load(exported / "onnx" / file_name(DECODER)).graph.node
    layers = sum(node.op_type == "Softmax" for node in nodes)
    assert sum(node.op_type == OPERATOR for node in nodes) == 2 * layers > 0


@pytest.mark.parametrize("probe", list(probes()), ids=lambda probe: probe.name)
def test_ids_positions_media_and_greedy_answers_equal_transformers(runtime, subject, probe):
    prompt, reference = runtime.prompt(probe.messages, probe.media), subject.prompt(probe)
    inputs = reference.inputs
    assert prompt.ids == reference.ids
    for encoding in prompt.encodings:
        if encoding.component == VISION:
            pixels, grid = ("pixel_values_videos", "video_grid_thw") if encoding.kind == "video" else (
                "pixel_values", "image_grid_thw",
            )  # fmt: skip
            np.testing.assert_array_equal(encoding.feeds["pixel_values"], inputs[pixels].numpy())
            np.testing.assert_array_equal(encoding.feeds["image_grid_thw"], inputs[grid].numpy())
        else:
            assert encoding.component == AUDIO
            heard = inputs["feature_attention_mask"].sum(-1)
            assert encoding.feeds["chunk_lengths"].sum() == heard.sum()
    lengths = inputs["feature_attention_mask"].sum(-1) if "feature_attention_mask" in inputs else None
    positions, _ = subject.model.get_rope_index(
        inputs["input_ids"],
        inputs.get("image_grid_thw"),
        inputs.get("video_grid_thw"),
        inputs["attention_mask"],
        audio_seqlens=lengths,
        second_per_grids=inputs.get("video_second_per_grid", torch.ones(1)),
    )
    np.testing.assert_array_equal(prompt.positions, positions[:, 0].numpy())
    suppress = placeholder_ids(subject.model.config.to_dict())
    wanted, found = subject.greedy(reference), runtime.greedy(prompt, 12, suppress)
    assert same_greedy(wanted, found, subject.logits(reference, wanted), ONNX["fp32"])


def test_the_command_compares_every_graph_and_tells_other_media_apart(exported):
    report = json.loads((exported / "parity" / "parity.json").read_text())
    assert report["passed"]
    parts = {(p["part"], p["variant"]) for p in report["onnx"]["parts"]}
    assert len(parts) == 8
    assert len(report["onnx"]["controls"]) == 7
    assert {w["part"] for w in report["onnx"]["weights"]} == {"vision_encoder", "audio_encoder", "decoder_model_merged"}
    full = [p for p in report["onnx"]["probes"] if p["arithmetic"] == "fp32"]
    assert max(p["distance"]["relative"] for p in full) < 1e-4


def test_a_full_omni_checkpoint_is_read_through_its_thinker(folder, exported, subject, runtime, tmp_path):
    from safetensors.torch import load_file, save_file

    full = shutil.copytree(folder, tmp_path / "full")
    tensors = load_file(full / "model.safetensors")
    save_file({f"thinker.{n}": v for n, v in tensors.items()}, full / "model.safetensors", metadata={"format": "pt"})
    core = json.loads((full / "config.json").read_text())
    config = {"model_type": "qwen2_5_omni", "thinker_config": core, "enable_audio_output": False}
    (full / "config.json").write_text(json.dumps(config))
    loaded = load_model(full, "float32", "float32").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in subject.model.state_dict().items())

    graphs = shutil.copytree(exported / "onnx", tmp_path / "onnx")
    shutil.copyfile(full / "config.json", graphs / "config.json")
    probe = list(probes())[-1]
    found, wanted = (m.logits(m.prompt(probe.messages, probe.media), [5, 6], 8) for m in (OnnxModel(graphs), runtime))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("size", [(60, 301), (96, 128), (2000, 3000), (20, 20), (1000, 28)])
def test_sizes_are_chosen_as_transformers_chooses_them(size):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    for least, most in ((56 * 56, 28 * 28 * 64), (128 * 28 * 28, 768 * 28 * 28)):
        assert smart_size(*size, 28, least, most) == smart_resize(*size, 28, least, most)
