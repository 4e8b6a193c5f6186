"""Thirty malformed inputs through the command: each ends in one sentence and exit code 2, the target as it was."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from imod_core.cli import imod
from imod_core.errors import ImodError
from imod_export.tensors import INDEX

LORA = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_{}.weight"


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def retensor(path, change):
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def rebyte(path, change):
    path.write_bytes(change(path.read_bytes()))


def reheader(path, change):
    """The file with its JSON header changed, its data as it is."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def shard(base):
    return sorted(base.glob("*.safetensors"))[0]


def first_entry(header, **changes):
    name = next(n for n in header if n != "__metadata__")
    return {**header, name: {**header[name], **changes}}


def loop(path):
    path.unlink(missing_ok=True)
    path.symlink_to(path)


def weights(adapter):
    return adapter / "adapter_model.safetensors"


def config(adapter):
    return adapter / "adapter_config.json"


BASE = {
    "a truncated shard": (lambda b: rebyte(shard(b), lambda d: d[:-7]), "no whole safetensors file"),
    "an empty shard": (lambda b: rebyte(shard(b), lambda d: b""), "it is empty"),
    "a shard of noise": (lambda b: rebyte(shard(b), lambda d: os.urandom(500)), "no whole safetensors file"),
    "a header that is a list": (
        lambda b: rebyte(shard(b), lambda d: (2).to_bytes(8, "little") + b"[]"), "cannot be read",
    ),
    "overlapping tensors": (
        lambda b: reheader(shard(b), lambda h: first_entry(h, data_offsets=[0, 4], shape=[1])), "data of",
    ),
    "an unknown dtype": (lambda b: reheader(shard(b), lambda h: first_entry(h, dtype="F12")), "cannot be read"),
    "a negative shape": (lambda b: reheader(shard(b), lambda h: first_entry(h, shape=[-1])), "cannot be read"),
    "a missing shard": (lambda b: shard(b).unlink(), "does not exist"),
    "a shard that is a circle of links": (lambda b: loop(shard(b)), "does not exist"),
    "an index of nonsense": (lambda b: (b / INDEX).write_text('{"weight_map": {"a": 3}}'), "no usable weight_map"),
    "an index that leaves the folder": (
        lambda b: edit(b / INDEX, weight_map={"a": "../elsewhere.safetensors"}), "no usable weight_map",
    ),
    "a tensor that its shard lacks": (
        lambda b: edit(b / INDEX, weight_map={"ghost": shard(b).name}), "places 'ghost'",
    ),
    "a configuration that is no JSON": (lambda b: (b / "config.json").write_text("}"), "not JSON"),
    "a configuration that is a list": (lambda b: (b / "config.json").write_text("[]"), "expected a JSON object"),
    "a companion that is a circle of links": (lambda b: loop(b / "notes.txt"), "notes.txt"),
    "a quantised base": (
        lambda b: edit(b / "config.json", quantization_config={"quant_method": "gptq"}), "is quantised",
    ),
}  # fmt: skip
ADAPTER = {
    "truncated weights": (lambda a: rebyte(weights(a), lambda d: d[:-7]), "no whole safetensors file"),
    "no weights": (lambda a: weights(a).unlink(), "no weights"),
    "a pickle": (lambda a: weights(a).rename(a / "adapter_model.bin"), "only a pickle"),
    "a configuration that is no JSON": (lambda a: config(a).write_text("{"), "not JSON"),
    "another kind of adapter": (lambda a: edit(config(a), peft_type="LOHA"), "LOHA"),
    "a rank that is a word": (lambda a: edit(config(a), r="four"), "expected numbers above 0"),
    "a rank that its weights do not have": (lambda a: edit(config(a), r=5), "they must agree"),
    "DoRA": (lambda a: edit(config(a), use_dora=True), "use_dora"),
    "a matrix without its partner": (
        lambda a: retensor(weights(a), lambda t: {k: v for k, v in t.items() if k != LORA.format("B")}), "only lora_A",
    ),
    "a matrix of another width": (
        lambda a: retensor(weights(a), lambda t: {**t, LORA.format("A"): t[LORA.format("A")][:, 1:].clone()}),
        "another base",
    ),
    "weights that are no numbers": (
        lambda a: retensor(weights(a), lambda t: {**t, LORA.format("B"): t[LORA.format("B")] * float("nan")}), "NaN",
    ),
    "names of a foreign model": (
        lambda a: retensor(weights(a), lambda t: {k.replace("self_attn", "attention"): v for k, v in t.items()}),
        "nearest there are",
    ),
    "integers": (lambda a: retensor(weights(a), lambda t: {k: v.to(torch.int8) for k, v in t.items()}), "as I8"),
    "a base that it names and is not there": (
        lambda a: edit(config(a), base_model_name_or_path="/no/such/base"), "is no folder",
    ),
}  # fmt: skip


def test_there_are_thirty():
    assert len(BASE) + len(ADAPTER) == 30


@pytest.mark.parametrize(("kind", "name"), [("base", n) for n in BASE] + [("adapter", n) for n in ADAPTER])
def test_a_malformed_input_ends_in_one_sentence_and_leaves_the_target(sharded_base, adapter, tmp_path, kind, name):
    folders = {"base": Path(shutil.copytree(sharded_base, tmp_path / "base"))}
    folders["adapter"] = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    edit(config(folders["adapter"]), base_model_name_or_path=str(folders["base"]))
    damage, words = {"base": BASE, "adapter": ADAPTER}[kind][name]
    damage(folders[kind])
    out = tmp_path / "target" / "out"
    out.mkdir(parents=True)
    before = out.stat().st_mtime_ns

    result = CliRunner().invoke(imod, ["export", "--merge", str(folders["adapter"]), "--out", str(out), "--no-parity"])

    error = result.exception
    assert isinstance(error, ImodError), (error, result.output)
    assert error.exit_code == 2
    assert words in str(error)
    assert str(error).endswith(".")
    assert "\n" not in str(error)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (list(out.iterdir()), out.stat().st_mtime_ns) == ([], before)
