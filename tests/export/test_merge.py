"""The merged folder: equal to PEFT's own merge, otherwise the base byte for byte, and complete."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from imod_export.export import ExportSettings, export
from imod_export.tensors import INDEX, read_checkpoint

NO_PARITY = ExportSettings(parity=False)
RELATIVE = 1e-6
"""Largest difference over the largest value of a tensor, float32: two ways to sum the same products."""


def weights(folder):
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def peft_merged(forge, base, adapter, dtype=torch.float32):
    """What PEFT itself makes of base and adapter, by the names of saved files."""
    with tempfile.TemporaryDirectory() as folder:
        peft.PeftModel.from_pretrained(forge.load(base, dtype), adapter).merge_and_unload().save_pretrained(folder)
        return weights(Path(folder))


def worst(found, expected):
    """Largest difference of any tensor over its largest value."""
    assert found.keys() == expected.keys()
    return max(_relative(found[name].double(), expected[name].double()) for name in found)


def _relative(found, expected):
    assert found.isfinite().all()
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def digest(info):
    with info.path.open("rb") as file:
        file.seek(info.start)
        return hashlib.sha256(file.read(info.nbytes)).hexdigest()


def test_a_merge_equals_pefts_and_differs_from_the_base(forge, base, adapter, merged):
    found = weights(merged)
    assert worst(found, peft_merged(forge, base, adapter)) <= RELATIVE
    assert worst(found, weights(base)) > 1e-2


def test_tensors_that_the_adapter_does_not_name_are_the_bases_byte_for_byte(base, merged):
    before, after = read_checkpoint(base).tensors, read_checkpoint(merged).tensors
    assert list(before) == list(after)
    changed = {name for name in before if digest(before[name]) != digest(after[name])}
    assert changed == {n for n in before if "_projector." in n or ("_proj." in n and ".language_model." in n)}


def test_everything_beside_the_weights_comes_along(base, merged):
    companions = {p.name for p in base.iterdir() if p.suffix != ".safetensors"}
    assert {"chat_template.jinja", "processor_config.json", "generation_config.json", "modeling_avt.py"} <= companions
    for name in companions:
        assert (merged / name).read_bytes() == (base / name).read_bytes()


def test_the_manifest_names_base_adapter_method_and_every_file(base, merged, run_folder):
    manifest = json.loads((merged / "manifest.json").read_text())
    run = json.loads((run_folder / "manifest.json").read_text())
    assert manifest["kind"] == "export"
    assert manifest["method"] == "imod"
    told = {key: manifest["base"][key] for key in ("path", "blake3", "verified")}
    assert told == {"path": str(base), "blake3": run["base"]["blake3"], "verified": True}
    assert manifest["adapter"]["weights_blake3"] == run["files"]["adapter/adapter_model.safetensors"]
    counts = {"lora": 21, "saved": 16, "untouched": 70}
    assert manifest["merged"] == {**counts, "dtype": "float32", "rounding": "nearest"}
    assert manifest["parity"]["passed"]
    assert {"model.safetensors", "parity/parity.json", "parity/parity.html"} <= manifest["files"].keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 8}, "alpha_pattern": {"q_proj": 3, "down_proj": 32}},
        {"target_modules": r".*audio_tower.*(q_proj|out_proj|fc1)", "modules_to_save": None},
        {"target_modules": r".*audio_tower\.conv[12]", "modules_to_save": None},
    ],
    ids=["rslora", "patterns", "tower", "convolutions"],
)
def test_every_plain_form_of_lora_merges_as_peft_does(forge, base, tmp_path, request, changes):
    adapter = forge.adapter(f"adapter-{request.node.callspec.id}", **changes)
    found = weights(export(adapter, tmp_path / "out", base, NO_PARITY))
    assert worst(found, peft_merged(forge, base, adapter)) <= RELATIVE
    assert worst(found, weights(base)) > 1e-3


def test_a_sharded_base_keeps_its_shards_and_its_index(forge, sharded_base, adapter, tmp_path):
    out = export(adapter, tmp_path / "out", sharded_base, NO_PARITY)
    before, after = (json.loads((folder / INDEX).read_text()) for folder in (sharded_base, out))
    assert after["weight_map"] == before["weight_map"]
    assert after["metadata"]["total_size"] == sum(v.nbytes for v in weights(out).values())
    assert worst(weights(out), peft_merged(forge, sharded_base, adapter)) <= RELATIVE
    assert forge.load(out).state_dict().keys() == forge.load(sharded_base).state_dict().keys()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_cast_merge_is_the_float32_merge_rounded_once(merged, sharded_base, adapter, tmp_path, dtype):
    out = export(adapter, tmp_path / "out", sharded_base, ExportSettings(dtype=dtype, parity=False))
    exact, found = weights(merged), weights(out)
    for name, value in found.items():
        assert value.dtype == getattr(torch, dtype)
        assert torch.equal(value, exact[name].to(value.dtype)), name
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    assert json.loads((out / INDEX).read_text())["metadata"]["total_size"] == sum(v.nbytes for v in found.values())


def test_a_bfloat16_base_is_merged_in_float32_and_stays_bfloat16(forge, base, adapter, tmp_path):
    half = tmp_path / "half"
    forge.load(base, torch.bfloat16).save_pretrained(half)
    found = weights(export(adapter, tmp_path / "out", half, NO_PARITY))
    expected = peft_merged(forge, half, adapter, torch.bfloat16)
    assert {v.dtype for v in found.values()} == {torch.bfloat16}
    assert worst(found, expected) <= 2**-8
    assert sum(torch.equal(found[n], expected[n]) for n in found) > 0.8 * len(found)


def test_small_blocks_make_the_same_merge(base, adapter, merged, tmp_path, monkeypatch):
    monkeypatch.setattr("imod_export.weight.BLOCK_BYTES", 1000)
    out = export(adapter, tmp_path / "out", base, NO_PARITY)
    assert worst(weights(out), weights(merged)) <= RELATIVE


def test_an_untied_embedding_and_head_merge_as_peft_does(forge, base, tmp_path):
    model = forge.load(base)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 0.01)
    model.save_pretrained(tmp_path / "untied")
    adapter = forge.adapter(
        "adapter-untied", tmp_path / "untied", target_modules=["embed_tokens", "lm_head"], modules_to_save=None
    )
    found = weights(export(adapter, tmp_path / "out", tmp_path / "untied", NO_PARITY))
    expected = peft_merged(forge, tmp_path / "untied", adapter)
    assert worst(found, expected) <= RELATIVE
    assert (found["model.language_model.embed_tokens.weight"] - found["lm_head.weight"]).abs().max() > 0.02


def test_the_header_written_for_another_dtype_is_read_by_the_formats_own_reader(base, adapter, tmp_path):
    out = export(adapter, tmp_path / "out", base, ExportSettings(dtype="bfloat16", parity=False))
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(weights(base))


def test_pickles_of_the_base_stay_behind(base, adapter, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base" / "spk_dict.pt").write_bytes(b"voices that transformers asks for")
    (tmp_path / "base" / "optimizer.pt").write_bytes(b"x")
    (tmp_path / "base" / "onnx").mkdir()
    (tmp_path / "base" / "onnx" / "decoder.onnx").write_bytes(b"x")
    (tmp_path / "base" / "more").mkdir()
    (tmp_path / "base" / "more" / "notes.txt").write_text("kept")
    out = export(adapter, tmp_path / "out", tmp_path / "base", NO_PARITY)
    assert (out / "more" / "notes.txt").read_text() == "kept"
    assert (out / "spk_dict.pt").exists()
    assert not (out / "optimizer.pt").exists()
    assert not (out / "onnx").exists()
