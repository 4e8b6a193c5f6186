"""What cannot be exported ends in one sentence and exit code 2, and nothing is left behind."""

import json
import os
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from imod_core.cli import imod
from imod_core.errors import ImodError


def run_export(*arguments):
    return CliRunner().invoke(imod, ["export", *map(str, arguments)])


def refused(result, *words):
    """Assert a refusal of one sentence with exit code 2 that holds `words`."""
    error = result.exception
    assert isinstance(error, ImodError), (error, result.output)
    assert error.exit_code == 2
    message = str(error)
    assert "\n" not in message
    assert message.endswith(".")
    for word in words:
        assert str(word) in message, message


@pytest.fixture
def place(tmp_path):
    """A folder for copies, and an empty one in which OUT is to appear and nothing else may be left."""
    (tmp_path / "target").mkdir()
    yield tmp_path
    assert list((tmp_path / "target").iterdir()) == []


def edit_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def copy(source, target):
    shutil.copytree(source, target)
    return target


def test_a_run_whose_base_is_gone(place, run_folder, base):
    run = copy(run_folder, place / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    edit_json(run / "manifest.json", base={**manifest["base"], "path": str(place / "gone")})
    refused(run_export("--merge", run, "--out", place / "target/out"), place / "gone", "--base")
    out = place / "elsewhere"
    assert run_export("--merge", run, "--base", base, "--out", out, "--no-parity").exit_code == 0


def test_a_base_that_was_changed_since_training(place, forge, adapter, base):
    changed = copy(base, place / "base")
    run = forge.run(f"run-{place.name}", adapter, changed)
    tensors = load_file(changed / "model.safetensors")
    tensors["lm_head.weight" if "lm_head.weight" in tensors else next(iter(tensors))] += 1
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    refused(run_export("--merge", run, "--out", place / "target/out"), "is not the base", "--base")


def test_an_adapter_that_was_changed_since_training(place, run_folder):
    run = copy(run_folder, place / "run")
    edit_json(run / "adapter" / "adapter_config.json", lora_alpha=99)
    refused(run_export("--merge", run, "--out", place / "target/out"), "changed after the run ended")


def test_an_unfinished_run(place, run_folder):
    run = copy(run_folder, place / "run")
    (run / "manifest.json").unlink()
    refused(run_export("--merge", run, "--out", place / "target/out"), "no finished run")


def test_neither_run_nor_adapter(place, base):
    refused(run_export("--merge", place / "nothing", "--out", place / "target/out"), "does not exist")
    refused(run_export("--merge", base, "--out", place / "target/out"), "neither a run folder nor an adapter")


def test_an_adapter_for_another_base(place, adapter, base):
    from transformers import AutoConfig, AutoModelForImageTextToText

    import imod_core.avt  # noqa: F401

    config = AutoConfig.from_pretrained(base)
    config.text_config.hidden_size, config.text_config.num_hidden_layers = 32, 3
    other = place / "other"
    AutoModelForImageTextToText.from_config(config).save_pretrained(other)
    result = run_export("--merge", adapter, "--base", other, "--out", place / "target/out")
    refused(result, "the adapter belongs to another base")


def test_an_adapter_for_a_deeper_base(place, forge, adapter, base):
    shallow = copy(base, place / "shallow")
    tensors = {n: v for n, v in load_file(base / "model.safetensors").items() if ".layers.2." not in n}
    save_file(tensors, shallow / "model.safetensors", metadata={"format": "pt"})
    result = run_export("--merge", adapter, "--base", shallow, "--out", place / "target/out")
    refused(result, "7 of 37", "layers.2.", "nearest there are")


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("which", ["base", "adapter"])
def test_truncated_weights(place, adapter, base, which):
    folders = {"base": copy(base, place / "base"), "adapter": copy(adapter, place / "adapter")}
    cut(next(folders[which].glob("*.safetensors")))
    result = run_export("--merge", folders["adapter"], "--base", folders["base"], "--out", place / "target/out")
    refused(result, folders[which], "no whole safetensors file")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: sorted(folder.glob("*.safetensors"))[1].unlink(), ["does not exist"]),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), ["not JSON"]),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), ["weight_map"]),
        (lambda folder: (folder / "model.safetensors.index.json").unlink(), ["expected model.safetensors"]),
        (lambda folder: edit_json(folder / "config.json", quantization_config={"bits": 4}), ["quantised"]),
        (lambda folder: (folder / "config.json").unlink(), ["not a model folder"]),
    ],
    ids=["missing shard", "index no JSON", "index without map", "no index", "quantised", "no config"],
)
def test_a_sharded_base_that_is_not_whole(place, sharded_base, adapter, damage, words):
    folder = copy(sharded_base, place / "base")
    damage(folder)
    refused(run_export("--merge", adapter, "--base", folder, "--out", place / "target/out"), *words)


def test_an_index_that_names_a_tensor_its_shard_lacks(place, sharded_base, adapter):
    folder = copy(sharded_base, place / "base")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    first = next(iter(index["weight_map"].values()))
    edit_json(folder / "model.safetensors.index.json", weight_map={**index["weight_map"], "ghost": first})
    refused(run_export("--merge", adapter, "--base", folder, "--out", place / "target/out"), "'ghost'")


def test_adapter_values_that_are_not_numbers(place, adapter, base):
    folder = copy(adapter, place / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[next(n for n in tensors if "lora_B" in n)][0, 0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    refused(run_export("--merge", folder, "--base", base, "--out", place / "target/out"), "NaN")


def test_values_beyond_float16(place, adapter, base):
    folder = copy(base, place / "base")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.language_model.norm.weight"] *= 1e6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    result = run_export("--merge", adapter, "--base", folder, "--out", place / "target/out", "--dtype", "float16")
    refused(result, "float16's range", "--dtype bfloat16")


def test_a_target_that_exists_is_left_as_it_is(tmp_path, run_folder):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    refused(run_export("--merge", run_folder, "--out", tmp_path / "out"), "not empty")
    refused(run_export("--merge", run_folder, "--out", tmp_path / "file"), "already exists")
    assert (tmp_path / "out" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "precious"
    assert {p.name for p in tmp_path.iterdir()} == {"out", "file"}


def test_a_target_within_the_base_or_below_a_file(place, run_folder, adapter, base):
    folder = copy(base, place / "base")
    refused(run_export("--merge", adapter, "--base", folder, "--out", folder / "out"), "lies within")
    (place / "file").write_text("x")
    refused(run_export("--merge", run_folder, "--out", place / "file" / "out"), "cannot be written")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_target_in_a_folder_that_cannot_be_written(place, run_folder):
    locked = place / "locked"
    locked.mkdir(mode=0o555)
    refused(run_export("--merge", run_folder, "--out", locked / "out"), "cannot be written")


def test_links_that_go_in_circles(place, run_folder, adapter, base):
    (place / "a").symlink_to(place / "b")
    (place / "b").symlink_to(place / "a")
    refused(run_export("--merge", place / "a", "--out", place / "target/out"), "does not exist")
    refused(run_export("--merge", adapter, "--base", place / "a", "--out", place / "target/out"), "--base")
    refused(run_export("--merge", run_folder, "--out", place / "a"), "link that leads nowhere")
    folder = copy(base, place / "base")
    (folder / "notes.txt").symlink_to(folder / "notes.txt")
    refused(run_export("--merge", adapter, "--base", folder, "--out", place / "target/out"), "notes.txt")


def test_a_folder_link_into_itself_ends(tmp_path, adapter, base):
    folder = copy(base, tmp_path / "base")
    (folder / "again").symlink_to(folder)
    result = run_export("--merge", adapter, "--base", folder, "--out", tmp_path / "out", "--no-parity")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out" / "again").exists()


def test_probes_that_cannot_be_read_are_refused_before_the_merge(place, run_folder):
    (place / "empty.jsonl").write_text("")
    result = run_export("--merge", run_folder, "--out", place / "target/out", "--probes", place / "empty.jsonl")
    refused(result, "no samples")
    result = run_export("--merge", run_folder, "--out", place / "target/out", "--probes", place / "none.jsonl")
    refused(result, "does not exist")


def test_a_base_without_its_processor_cannot_be_compared(place, adapter, base):
    folder = copy(base, place / "base")
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    result = run_export("--merge", adapter, "--base", folder, "--out", place / "target/out")
    refused(result, "no processor that loads")


def test_a_model_that_there_are_no_graphs_for_is_refused_before_the_merge(place):
    import peft
    import transformers

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, **small))
    model.save_pretrained(place / "base")
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(model, settings).save_pretrained(place / "adapter")
    words = ["--merge", place / "adapter", "--base", place / "base", "--out", place / "target/out", "--no-parity"]
    result = run_export(*words, "--onnx")
    refused(result, "'llama'", "avt or qwen2_5_omni")
    assert "Merging" not in result.output


def test_a_base_without_its_processor_gets_no_graphs(place, adapter, base):
    folder = copy(base, place / "base")
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    words = ["--merge", adapter, "--base", folder, "--out", place / "target/out", "--no-parity"]
    result = run_export(*words, "--onnx")
    refused(result, "no processor that loads")
    assert "Merging" not in result.output


def test_a_full_disk_is_noticed_before_the_merge(place, run_folder, monkeypatch):
    usage = shutil.disk_usage(place)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused(run_export("--merge", run_folder, "--out", place / "target/out"), "free")


def test_a_disk_that_fills_up_during_the_merge_leaves_nothing(place, run_folder, monkeypatch):
    import imod_export.writer as writer

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer.os, "fsync", full)
    refused(run_export("--merge", run_folder, "--out", place / "target/out"), "No space left on device")


def test_planning_reads_headers_only(base, adapter, monkeypatch):
    from imod_export.adapter import read_adapter
    from imod_export.plan import make_plan
    from imod_export.tensors import read_checkpoint

    monkeypatch.setattr(torch, "frombuffer", None)
    assert len(make_plan(read_checkpoint(base), read_adapter(adapter)).changes) == 37
