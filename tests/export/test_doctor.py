"""The doctor: a whole folder has nothing, each fault is named with its reason, and the command given mends it."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from imod_core.cli import imod
from imod_export.doctor import vllm_source
from imod_export.doctor.cli import examine
from imod_export.tensors import INDEX

LAYER = "model.language_model.layers.1.mlp.down_proj.weight"


def edit(path, **values):
    found = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**found, **values}.items() if v is not None}))


def resave(folder, change):
    """The folder's single weight file with its tensors run through `change`."""
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def first_shard(folder):
    return sorted(folder.glob("*.safetensors"))[0]


@pytest.fixture
def whole(base, tmp_path):
    return shutil.copytree(base, tmp_path / "whole")


@pytest.fixture
def sharded(sharded_base, tmp_path):
    return shutil.copytree(sharded_base, tmp_path / "sharded")


def test_a_whole_folder_has_nothing_wrong(base, sharded_base, merged):
    for folder in (base, sharded_base, merged):
        assert examine(folder) == []
    result = CliRunner().invoke(imod, ["doctor", str(merged)])
    assert (result.exit_code, "nothing is wrong" in result.output) == (0, True)


def untied_without_head(folder):
    edit(folder / "config.json", tie_word_embeddings=False)


def tied_with_another_head(folder):
    name = "model.language_model.embed_tokens.weight"
    resave(folder, lambda t: {**t, "lm_head.weight": t[name] + 1})


def beyond_the_vocabulary(folder):
    edit(folder / "config.json", image_token_id=10**6)


def hollow_vocabulary(folder):
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit(folder / "config.json", text_config={**text, "vocab_size": 7})


FAULTS = {
    "no config": (lambda f: (f / "config.json").unlink(), "storage", "no config.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "storage", "not JSON"),
    "truncated weights": (lambda f: cut(f / "model.safetensors"), "weights", "no whole safetensors file"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "weights", "no weights"),
    "weights as a pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "weights", "pickle files lie beside",
    ),
    "a second copy": (
        lambda f: shutil.copy(f / "model.safetensors", f / "adapter_model.safetensors"), "weights", "is no part of",
    ),
    "missing tensor": (lambda f: resave(f, lambda t: {k: v for k, v in t.items() if k != LAYER}), "keys", LAYER),
    "misshapen tensor": (lambda f: resave(f, lambda t: {**t, LAYER: t[LAYER][1:].clone()}), "keys", "another shape"),
    "names of a wrapped model": (
        lambda f: resave(f, lambda t: {**t, f"base_model.model.{LAYER[:-7]}.lora_A.weight": torch.ones(2, 2)}),
        "keys", "tensors of an adapter",
    ),
    "unknown architecture": (
        lambda f: edit(f / "config.json", architectures=["Qwen2_5OmniThinkerForConditionalGeneration"]),
        "architecture", "does not know",
    ),
    "no architecture": (lambda f: edit(f / "config.json", architectures=None), "architecture", "names no arch"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "companions", "no tokenizer"),
    "no chat template": (lambda f: (f / "chat_template.jinja").unlink(), "companions", "no chat template"),
    "no processor": (lambda f: (f / "processor_config.json").unlink(), "companions", "how a image is read"),
    "untied without a head": (untied_without_head, "embeddings", "no head on disk"),
    "tied with another head": (tied_with_another_head, "embeddings", "is not the embedding"),
    "token beyond the vocabulary": (beyond_the_vocabulary, "companions", "beyond the embedding"),
    "another vocabulary size": (hollow_vocabulary, "companions", "vocab_size is 7"),
    "leftover quantisation": (
        lambda f: edit(f / "config.json", quantization_config={"quant_method": "bitsandbytes"}),
        "storage", "all weights are plain",
    ),
    "silent quantisation": (
        lambda f: resave(f, lambda t: {**t, LAYER + "_scale_inv": torch.ones(1)}), "storage", "nothing of quantisation",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_with_reason_and_command(whole, fault):
    damage, check, words = FAULTS[fault]
    damage(whole)
    found = [f for f in examine(whole) if f.check == check and words in f.what]
    assert len(found) == 1, examine(whole)
    assert found[0].level == "wrong"
    assert len(found[0].why) > 20
    assert shlex.split(found[0].mend)[0] in ("imod", "cp", "rm", "python", "pip", "vllm")


SHARD_FAULTS = {
    "total size": (lambda f: edit(f / INDEX, metadata={"total_size": 1}), "total_size 1"),
    "missing shard": (lambda f: first_shard(f).unlink(), "does not exist"),
    "index no JSON": (lambda f: (f / INDEX).write_text("["), "not JSON"),
    "a shard too many": (lambda f: shutil.copy(first_shard(f), f / "model-old.safetensors"), "is no part"),
}


@pytest.mark.parametrize("fault", SHARD_FAULTS)
def test_faults_of_shards_and_index(sharded, fault):
    damage, words = SHARD_FAULTS[fault]
    damage(sharded)
    assert any(words in f.what and f.check == "weights" for f in examine(sharded))


@pytest.mark.parametrize(
    ("damage", "which"),
    [
        (lambda f: edit(f / INDEX, metadata={"total_size": 1}), "sharded"),
        (lambda f: shutil.copy(first_shard(f), f / "model-old.safetensors"), "sharded"),
        (lambda f: edit(f / "config.json", quantization_config={"quant_method": "fp8"}), "whole"),
        (lambda f: edit(f / "config.json", dtype="float16"), "whole"),
        (untied_without_head, "whole"),
        (tied_with_another_head, "whole"),
        (hollow_vocabulary, "whole"),
        (lambda f: (f / "scheduler.pt").write_bytes(b"x"), "whole"),
    ],
)
def test_the_command_mends_it(request, damage, which):
    folder = request.getfixturevalue(which)
    damage(folder)
    finding = next(f for f in examine(folder) if f.mend.startswith(("python", "rm")))
    subprocess.run(re.sub("^python", sys.executable, finding.mend), shell=True, check=True)
    assert not any(f.what == finding.what for f in examine(folder))


def test_copying_from_the_base_mends_what_is_missing(base, whole):
    edit(whole / "config.json", _name_or_path=str(base))
    for name in ("chat_template.jinja", "processor_config.json", "generation_config.json"):
        (whole / name).unlink()
    for finding in examine(whole):
        if finding.mend.startswith("cp "):
            subprocess.run(finding.mend, shell=True, check=False, stderr=subprocess.DEVNULL)
    assert examine(whole) == []


def test_notes_alone_leave_the_exit_code_0_and_faults_make_it_1(whole):
    (whole / "generation_config.json").unlink()
    result = CliRunner().invoke(imod, ["doctor", str(whole)])
    assert result.exit_code == 0
    assert "[note] companions: there is no generation_config.json" in result.output
    (whole / "tokenizer.json").unlink()
    result = CliRunner().invoke(imod, ["doctor", str(whole), "--json"])
    assert result.exception.exit_code == 1
    told = json.loads(result.output)
    assert not told["passed"]
    assert [f["level"] for f in told["findings"]] == ["wrong", "note"]


def test_what_is_no_folder_of_ours_is_bad_usage(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "none", tmp_path / "empty"):
        result = CliRunner().invoke(imod, ["doctor", str(folder)])
        assert result.exception.exit_code == 2


def test_an_adapter_is_looked_over_too(forge, adapter, base, run_folder, tmp_path):
    assert examine(adapter, base) == []
    assert examine(run_folder, base) == []
    foreign = shutil.copytree(base, tmp_path / "foreign")
    resave(foreign, lambda t: {k: v for k, v in t.items() if ".layers.2." not in k})
    assert "of another base" in examine(adapter, foreign)[0].what
    assert examine(adapter, tmp_path / "gone")[0].level == "note"
    broken = shutil.copytree(adapter, tmp_path / "broken")
    cut(broken / "adapter_model.safetensors")
    assert {f.check for f in examine(broken, base)} == {"adapter", "weights"}


def test_other_peoples_merges_of_an_omni_model(tmp_path):
    """A thinker saved alone, and one whose config was edited to look like the whole model."""
    from .test_dialects import omni_thinker

    omni_thinker().save_pretrained(tmp_path / "thinker")
    found = examine(tmp_path / "thinker")
    fault = next(f for f in found if f.check == "architecture")
    assert "full omni model" in fault.why
    assert "--base FULL_MODEL" in fault.mend
    thinker = json.loads((tmp_path / "thinker" / "config.json").read_text())
    config = {"architectures": ["Qwen2_5OmniForConditionalGeneration"], "model_type": "qwen2_5_omni"}
    (tmp_path / "thinker" / "config.json").write_text(json.dumps({**config, "thinker_config": thinker}))
    found = examine(tmp_path / "thinker")
    assert any("they lack 'thinker.'" in f.why for f in found)
    assert any("spk_dict.pt is not there" in f.what for f in found)


def test_the_registry_read_from_source_is_vllms_own():
    """A few that the documentation lists, and a mapper that facts and vLLM's class agree on."""
    known = vllm_source.architectures()
    assert len(known) > 200
    assert {"LlamaForCausalLM", "Qwen2_5OmniModel", "Qwen2_5_VLForConditionalGeneration"} <= known.keys()
    assert "Qwen2_5OmniThinkerForConditionalGeneration" not in known
    assert "thinker." in vllm_source.prefixes("Qwen2_5OmniModel")


def test_a_text_model_is_examined_without_this_projects_classes(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    assert {f.what for f in examine(tmp_path) if f.level == "wrong"} == {
        "there is no tokenizer",
        "there is no chat template",
    }
