"""The graphs: checked, named as transformers.js wants, equal to the model at every length, nothing stored twice."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from imod_core.cli import imod
from imod_core.errors import CheckFailed
from imod_core.families.load import load_processor
from imod_export.onnx.export import COMPANIONS, export_onnx
from imod_export.onnx.graph import DUPLICATE_BYTES, OPSET, duplicates, trace, write
from imod_export.onnx.layout import AUDIO, COMPONENTS, DECODER, EMBED, KEEP, SUFFIXES, VISION, data_name, file_name
from imod_export.onnx.variants import dequantized, precise_nodes, weight_errors, write_variant
from imod_export.subject import load_model
from imod_export.tolerances import ONNX_WEIGHT

CLOSE = 2e-5
"""float32 sums in another order, logits of size 10."""


@pytest.fixture(scope="module")
def decoder(onnx_folder):
    return onnxruntime.InferenceSession(onnx_folder / file_name(DECODER))


@pytest.fixture(scope="module")
def model(merged):
    return load_model(merged, "float32", "float32")


def feeds(decoder, batch, length, past, seed=0):
    """Random inputs of a decoder step."""
    make = np.random.default_rng(seed)
    values = {"attention_mask": np.ones((batch, past + length), np.int64), KEEP: np.array(0, np.int64)}
    values["position_ids"] = np.tile(np.arange(past, past + length), (batch, 1))
    for item in decoder.get_inputs():
        if item.name.startswith("past"):
            shape = (batch, item.shape[1], past, item.shape[3])
            values[item.name] = make.standard_normal(shape, np.float32)
    values["inputs_embeds"] = make.standard_normal((batch, length, 64), np.float32)
    return values


def test_every_form_of_every_graph_is_there_and_passes_the_checker(onnx_folder):
    for variant in SUFFIXES:
        for name in COMPONENTS:
            path = onnx_folder / file_name(name, variant)
            onnx.checker.check_model(path, full_check=True)
            versions = {entry.domain: entry.version for entry in onnx.load(path).opset_import}
            assert versions[""] == OPSET
    assert (onnx_folder / "decoder_model_merged_q4.onnx").is_file()
    manifest = json.loads((onnx_folder / "manifest.json").read_text())
    assert manifest["opset"] == OPSET
    assert manifest["bytes"]["q4"][DECODER] < manifest["bytes"]["int8"][DECODER] < manifest["bytes"]["fp32"][DECODER]


def test_inputs_and_outputs_have_the_names_of_transformers_js(onnx_folder, decoder):
    names = {name: onnxruntime.InferenceSession(onnx_folder / file_name(name)) for name in COMPONENTS[:3]}
    found = {n: ([i.name for i in s.get_inputs()], [o.name for o in s.get_outputs()]) for n, s in names.items()}
    assert found == {
        EMBED: (["input_ids"], ["inputs_embeds"]),
        VISION: (["pixel_values"], ["image_features"]),
        AUDIO: (["input_features"], ["audio_features"]),
    }
    cache = [f"past_key_values.{i}.{part}" for i in range(3) for part in ("key", "value")]
    assert [i.name for i in decoder.get_inputs()] == ["inputs_embeds", "attention_mask", "position_ids", *cache, KEEP]
    present = [name.replace("past_key_values", "present") for name in cache]
    assert [o.name for o in decoder.get_outputs()] == ["logits", *present]


@pytest.mark.parametrize(("batch", "length", "past"), [(1, 1, 0), (1, 9, 0), (1, 1, 7), (3, 4, 0), (2, 3, 11)])
def test_a_decoder_step_equals_the_models_at_any_batch_length_and_past(decoder, model, batch, length, past):
    values = feeds(decoder, batch, length, past)
    cache = [torch.from_numpy(values[name]) for name in values if name.startswith("past")]
    from transformers import DynamicCache

    pairs = [(cache[i], cache[i + 1]) for i in range(0, len(cache), 2)]
    with torch.no_grad():
        expected = model(
            inputs_embeds=torch.from_numpy(values["inputs_embeds"]),
            attention_mask=torch.from_numpy(values["attention_mask"]),
            past_key_values=DynamicCache(pairs) if past else None,
            use_cache=True,
        )
    logits, *present = decoder.run(None, values)
    np.testing.assert_allclose(logits, expected.logits.numpy(), atol=CLOSE * np.abs(logits).max())
    assert {p.shape for p in present} == {(batch, 1, past + length, 32)}
    assert np.abs(logits - np.roll(logits, 1, axis=-1)).max() > 1


def test_padding_on_the_left_changes_nothing(decoder):
    alone = feeds(decoder, 1, 4, 0)
    padded = feeds(decoder, 1, 6, 0, seed=1)
    padded["inputs_embeds"][:, 2:] = alone["inputs_embeds"]
    padded["attention_mask"][:, :2] = 0
    padded["position_ids"] = np.array([[0, 0, 0, 1, 2, 3]])
    wanted, found = decoder.run(None, alone)[0], decoder.run(None, padded)[0][:, 2:]
    np.testing.assert_allclose(found, wanted, atol=CLOSE * np.abs(wanted).max())
    padded["attention_mask"][:, :2] = 1
    assert np.abs(decoder.run(None, padded)[0][:, 2:] - wanted).max() > 0.1


def test_the_caller_chooses_how_many_last_logits_it_gets(decoder):
    values = feeds(decoder, 2, 5, 3)
    every = decoder.run(None, values)[0]
    last = decoder.run(None, {**values, KEEP: np.array(2, np.int64)})[0]
    assert (every.shape[1], last.shape[1]) == (5, 2)
    np.testing.assert_allclose(last, every[:, -2:], atol=CLOSE * np.abs(every).max())


def test_encoders_take_any_number_of_media(onnx_folder, model, merged):
    processor = load_processor(merged)
    make = torch.Generator().manual_seed(0)
    for name, shape in ((VISION, (3, 48, 48)), (AUDIO, (40, 200))):
        session = onnxruntime.InferenceSession(onnx_folder / file_name(name))
        media = torch.randn(5, *shape, generator=make)
        with torch.no_grad():
            if name == VISION:
                wanted = model.model.get_image_features(media).pooler_output
            else:
                wanted = model.model.get_audio_features(media[:, None]).pooler_output
        every = session.run(None, {session.get_inputs()[0].name: media.numpy()})[0]
        one = session.run(None, {session.get_inputs()[0].name: media[:1].numpy()})[0]
        np.testing.assert_allclose(every, wanted.numpy(), atol=1e-5)
        np.testing.assert_allclose(one, every[:1], atol=1e-5)
        assert np.abs(every[0] - every[1]).max() > 1e-3
    assert processor.vision_grid**2 == 9


def test_no_weight_is_stored_twice_in_a_file(onnx_folder, tmp_path):
    for name in COMPONENTS:
        assert not list(duplicates(ir.load(onnx_folder / file_name(name))))
    double = ir.load(onnx_folder / file_name(EMBED))
    table = next(v for v in double.graph.initializers.values() if v.const_value.nbytes > DUPLICATE_BYTES)
    double.graph.register_initializer(ir.Value(name="again", const_value=ir.tensor(table.const_value.numpy().copy())))
    assert len(list(duplicates(double))) == 1


def test_large_weights_lie_in_a_file_of_their_own(onnx_folder, tmp_path):
    for name in COMPONENTS:
        write(ir.load(onnx_folder / file_name(name)), tmp_path, name, small=100_000)
        assert (tmp_path / data_name(name)).is_file()
        assert (tmp_path / file_name(name)).stat().st_size < 200_000
    assert data_name(DECODER) == "decoder_model_merged.onnx_data"
    for variant in ("fp16", "int8", "q4"):
        write_variant(tmp_path, DECODER, variant, small=10_000)
        assert (tmp_path / data_name(DECODER, variant)).is_file()
    for variant in ("fp32", "q4"):
        names = (folder / file_name(DECODER, variant) for folder in (onnx_folder, tmp_path))
        small, large = map(onnxruntime.InferenceSession, names)
        values = feeds(small, 1, 4, 2)
        np.testing.assert_array_equal(small.run(None, values)[0], large.run(None, values)[0])


def test_graphs_name_no_file_of_the_machine_they_were_made_on(onnx_folder):
    for path in onnx_folder.glob("*.onnx"):
        content = path.read_bytes()
        assert b".py" not in content, path
        assert b"site-packages" not in content


def test_config_processor_and_tokenizer_lie_beside_the_graphs(onnx_folder, merged):
    for name in COMPANIONS:
        assert (merged / name).is_file() == (onnx_folder / name).is_file()
    config = json.loads((onnx_folder / "config.json").read_text())
    assert config["transformers.js_config"]["kv_cache_dtype"] == {"fp16": "float16"}
    assert "auto_map" not in config


def test_half_precision_keeps_norms_and_angles_in_float32(onnx_folder):
    graph = onnx.load(onnx_folder / file_name(DECODER)).graph
    kept = {node.op_type for node in precise_nodes(graph)}
    assert {"Cos", "Sin", "Sqrt", "Pow", "ReduceMean", "Div"} <= kept
    assert "Reciprocal" not in {node.op_type for node in graph.node}
    half = onnxruntime.InferenceSession(onnx_folder / file_name(DECODER, "fp16"))
    types = {i.name: i.type for i in half.get_inputs()}
    assert types["inputs_embeds"] == "tensor(float)"
    assert types["past_key_values.0.key"] == "tensor(float16)"
    values = feeds(half, 1, 3, 0)
    values = {n: v.astype(np.float16) if n.startswith("past") else v for n, v in values.items()}
    near, far = values, {**values, "position_ids": values["position_ids"] + 4097}
    wanted = onnxruntime.InferenceSession(onnx_folder / file_name(DECODER))
    full = {n: v.astype(np.float32) if n.startswith("past") else v for n, v in far.items()}
    spread = half.run(None, far)[0] - wanted.run(None, full)[0]
    assert np.abs(spread).max() < 0.2
    assert half.run(None, near)[0].dtype == np.float32


@pytest.mark.parametrize("variant", ["int8", "q4"])
def test_weights_in_blocks_are_the_weights_but_for_rounding(onnx_folder, variant):
    errors = weight_errors(onnx_folder, DECODER, variant)
    assert len(errors) == 22
    assert all(e.relative < ONNX_WEIGHT[variant] for e in errors)
    assert min(e.relative for e in errors) > ONNX_WEIGHT[variant] / 5


def test_blocks_multiply_out_as_onnxruntime_does(onnx_folder):
    """A product with the identity is the dequantised weight itself."""
    for variant in ("int8", "q4"):
        node = next(n for n in ir.load(onnx_folder / file_name(DECODER, variant)).graph if n.op_type == "MatMulNBits")
        inner = node.attributes["K"].as_int()
        inputs = [v.const_value.numpy() for v in node.inputs[1:] if v is not None]
        names = ["x", "b", "s", "z"][: len(inputs) + 1]
        attributes = {n: node.attributes[n].as_int() for n in ("K", "N", "bits", "block_size")}
        alone = onnx.helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", **attributes)
        graph = onnx.helper.make_graph(
            [alone],
            "alone",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [inner, inner])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            [onnx.numpy_helper.from_array(v, n) for n, v in zip(names[1:], inputs, strict=True)],
        )
        versions = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid("com.microsoft", 1)]
        proto = onnx.helper.make_model(graph, opset_imports=versions, ir_version=10)
        found = onnxruntime.InferenceSession(proto.SerializeToString()).run(
            None, {"x": np.eye(inner, dtype=np.float32)}
        )
        np.testing.assert_allclose(found[0], dequantized(node), atol=1e-6)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--onnx"], "Give one of --merge RUN|ADAPTER and --model DIR."),
        (["--model", "{merged}"], "use it with --onnx"),
        (["--model", "{merged}", "--onnx-variants", "q4"], "use it with --onnx"),
        (["--model", "{merged}", "--onnx", "--onnx-variants", "q4,q5"], "'q5': expected some of fp16, int8, q4"),
        (["--model", "nowhere", "--onnx"], "no model folder"),
    ],
)
def test_what_cannot_be_written_is_refused_in_a_sentence(merged, tmp_path, words, sentence):
    out = tmp_path / "out"
    words = [word.format(merged=merged) for word in words]
    result = CliRunner().invoke(imod, ["export", "--out", str(out), *words])
    assert getattr(result.exception, "exit_code", None) == 2
    assert sentence in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_a_sliding_window_and_a_foreign_architecture_are_refused():
    import transformers

    from imod_core.errors import InputError
    from imod_export.onnx.components import check_kind

    sliding = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    with pytest.raises(InputError, match="layers of full_attention, sliding_attention"):
        check_kind(transformers.Qwen2_5OmniThinkerConfig(text_config=sliding))
    with pytest.raises(InputError, match="'mamba'"):
        check_kind(transformers.MambaConfig())
    check_kind(transformers.Qwen2_5OmniThinkerConfig())


def test_a_model_that_is_not_what_its_graphs_say_is_rejected(merged, tmp_path, monkeypatch):
    """The graphs are made from a spoiled copy: the command ends with 1 and keeps them aside, with the report."""
    import shutil

    spoiled = shutil.copytree(merged, tmp_path / "spoiled")
    tensors = load_file(spoiled / "model.safetensors")
    name = "model.language_model.layers.1.mlp.down_proj.weight"
    save_file({**tensors, name: tensors[name] * 1.02}, spoiled / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr("imod_export.onnx.export.export_onnx", lambda model, *rest: export_onnx(spoiled, *rest))
    result = CliRunner().invoke(imod, ["export", "--model", str(merged), "--onnx", "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, CheckFailed)
    assert result.exception.exit_code == 1
    kept = tmp_path / "out.rejected"
    report = json.loads((kept / "parity" / "parity.json").read_text())
    assert not report["passed"]
    assert any("decoder_model_merged is off by" in fault for fault in report["faults"])
    assert not any("vision_encoder is off" in fault for fault in report["faults"])
    assert not (tmp_path / "out").exists()


def test_a_traced_graph_can_be_written_with_any_limit(model, merged, tmp_path):
    from imod_export.onnx.components import components_of

    embed = components_of(model, load_processor(merged))[0]
    graph = trace(embed)
    for small, files in ((10**9, 1), (10, 2)):
        folder = tmp_path / str(small)
        folder.mkdir()
        write(graph, folder, EMBED, small=small)
        assert len(list(folder.iterdir())) == files
