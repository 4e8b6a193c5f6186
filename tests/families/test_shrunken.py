"""Shrunken models have the hub's layout: transformers and vLLM, which nobody here wrote, are asked."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from imod_core.artifacts import model_identity
from imod_core.families import BACKBONES, FAMILIES
from imod_core.families.load import load_processor
from imod_core.modality import modalities
from imod_export.doctor import vllm_source
from imod_export.doctor.cli import examine
from imod_export.probes import default_probes
from imod_export.subject import Subject, load_model, read_config
from imod_export.tensors import read_checkpoint
from tests.helpers import call

from .conftest import NATIVE

HUB_NAMES = {
    "qwen2.5-vl": ("model.layers.0.self_attn.q_proj.bias", "visual.blocks.0.attn.qkv.weight"),
    "qwen3-vl": ("model.language_model.layers.0.self_attn.q_norm.weight", "model.visual.pos_embed.weight"),
    "qwen2.5-omni": (
        "thinker.model.layers.0.self_attn.q_proj.bias", "thinker.visual.blocks.0.attn.q.weight",
        "thinker.audio_tower.layers.0.fc1.weight", "talker.codec_head.weight",
        "token2wav.code2wav_dit_model.proj_out.weight",
    ),
    "qwen3-omni": (
        "thinker.model.layers.0.mlp.experts.3.gate_proj.weight", "thinker.model.layers.0.mlp.gate.weight",
        "talker.model.layers.0.mlp.shared_expert.up_proj.weight", "code2wav.code_embedding.weight",
    ),
    "gemma4": (
        "model.language_model.layers.0.per_layer_input_gate.weight", "model.embed_audio.embedding_projection.weight",
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight",
    ),
}  # fmt: skip
"""Some of the names in the hub's index of each family."""
TAKES = {
    "qwen2.5-vl": ("image", "video"),
    "qwen3-vl": ("image", "video"),
    "qwen2.5-omni": ("image", "audio", "video"),
    "qwen3-omni": ("image", "audio", "video"),
    "gemma4": ("image", "audio", "video"),
}
MEGABYTES = 15


@pytest.mark.parametrize("name", NATIVE)
def test_tensors_have_the_hubs_names_in_several_shards(shrunken, name):
    checkpoint = read_checkpoint(shrunken(name))
    assert checkpoint.tensors.keys() >= set(HUB_NAMES[name])
    assert checkpoint.index
    assert len(checkpoint.shards) > 2
    assert sum(path.stat().st_size for path in shrunken(name).iterdir()) < MEGABYTES * 1e6


@pytest.mark.parametrize("name", FAMILIES)
def test_the_doctor_finds_nothing_wrong(shrunken, name):
    """Keys, shapes, companions, ids within the embedding, vLLM's registry and its mapper."""
    found = examine(shrunken(name))
    assert not [f for f in found if f.level == "wrong"]
    assert not [f for f in found if f.check == "keys"], found


@pytest.mark.parametrize("name", NATIVE)
def test_vllm_runs_the_architecture_that_the_family_names(shrunken, name):
    (architecture,) = read_config(shrunken(name))["architectures"]
    assert vllm_source.architectures()[architecture][1] == FAMILIES[name].serves


@pytest.mark.parametrize("name", NATIVE)
def test_a_doctor_sees_a_lost_tensor(shrunken, name, tmp_path):
    """The control: what is not there is missed, in every family's own names."""
    folder = shutil.copytree(shrunken(name), tmp_path / "copy")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    lost = next(key for key in index["weight_map"] if key.endswith("layers.0.self_attn.o_proj.weight"))
    shard = folder / index["weight_map"].pop(lost)
    kept = {key: value for key, value in load_file(shard).items() if key != lost}
    save_file(kept, shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [f for f in examine(folder) if f.check == "keys" and f.level == "wrong"]


@pytest.mark.parametrize("name", NATIVE)
def test_modalities_are_read_from_the_placeholders(shrunken, name):
    config = read_config(shrunken(name))
    assert modalities(config) == TAKES[name]


def test_a_gemma_without_ears_takes_no_sound(shrunken):
    config = {**read_config(shrunken("gemma4")), "audio_config": None}
    assert modalities(config) == ("image", "video")


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_go_into_the_decoder_alone(shrunken, name):
    """What transformers itself calls the decoder holds every linear that the family's pattern names, and no other."""
    model = load_model(shrunken(name), "float32", "float32")
    linears = {key: module for key, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = {key for key in linears if re.fullmatch(FAMILIES[name].linears, key)}
    inside = {id(module) for module in model.get_decoder().modules()}
    assert chosen
    assert all(id(linears[key]) in inside for key in chosen)
    layers = {key.split(".layers.")[1].split(".")[0] for key in chosen}
    assert len(layers) == model.config.get_text_config().num_hidden_layers


@pytest.mark.parametrize("name", NATIVE)
def test_every_medium_changes_what_the_model_says(shrunken, name):
    folder = shrunken(name)
    subject = Subject(load_model(folder, "float32", "float32"), load_processor(folder))
    for probe in default_probes(modalities(read_config(folder))):
        prompt = subject.prompt(probe)
        answer = subject.greedy(prompt)
        assert answer
        assert max(prompt.ids) < subject.model.get_input_embeddings().num_embeddings
        for kind in probe.media:
            other = subject.logits(subject.prompt(probe.swapped(kind)), answer)
            difference = other[-len(answer) :] - subject.logits(prompt, answer)[-len(answer) :]
            assert difference.abs().max() > 1e-3, (probe.name, kind)


def test_no_weight_is_what_the_memory_held_before(tmp_path):
    """transformers leaves the experts of a talker uninitialised."""
    written = []
    for name in ("one", "other"):
        before = [torch.full((1 << 16,), float("nan")) for _ in range(50)]
        del before
        assert call("base", "build", "--shrunken", "qwen3-omni", "--out", tmp_path / name).code == 0
        shards = [load_file(path) for path in sorted((tmp_path / name).glob("*.safetensors"))]
        written.append({key: tensor for shard in shards for key, tensor in shard.items()})
    assert all(tensor.isfinite().all() for tensor in written[0].values())
    assert all(torch.equal(tensor, written[1][key]) for key, tensor in written[0].items())


def test_the_seed_decides(tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert call("base", "build", "--shrunken", "qwen2.5-vl", "--out", tmp_path / folder, "--seed", seed).code == 0
    same, again, other = (model_identity(tmp_path / folder) for folder in "abc")
    assert same == again != other


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_alone_is_a_text_model_that_avt_takes(tmp_path, name):
    import transformers

    assert call("base", "build", "--shrunken", name, "--out", tmp_path / "llm").code == 0
    kind = transformers.AutoModelForCausalLM
    model, info = kind.from_pretrained(tmp_path / "llm", output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(model).__name__ == BACKBONES[name].model
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "llm")
    assert words.decode(words("Where is the violin?", add_special_tokens=False).input_ids) == "Where is the violin?"
    out = call("base", "build", "--preset", "tiny", "--llm", tmp_path / "llm", "--out", tmp_path / "avt")
    assert out.code == 0, out.message
    assert read_config(tmp_path / "avt")["text_config"]["model_type"] == model.config.model_type


def test_shrunken_takes_no_parts(tmp_path):
    outcome = call("base", "build", "--shrunken", "gemma4", "--llm", "x", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "random throughout" in outcome.message
    assert not (tmp_path / "out").exists()
