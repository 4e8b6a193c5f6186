"""Matching adapter to base: every dialect of names finds its tensor, everything else is refused with a reason."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from imod_core.errors import InputError, MissingFileError
from imod_export.adapter import read_adapter
from imod_export.names import canonical, without_peft
from imod_export.plan import make_plan
from imod_export.tensors import read_checkpoint

LAYER = "layers.0.self_attn.q_proj"


def write_base(folder, names, config=None, shape=(6, 4)):
    folder.mkdir()
    save_file({name: torch.zeros(shape) for name in names}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": False, **(config or {})}))
    return read_checkpoint(folder)


def write_adapter(folder, tensors, **config):
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none", **config})
    )
    return read_adapter(folder)


def pair(module, rank=2, shape=(6, 4), ending=".weight"):
    return {
        f"base_model.model.{module}.lora_A{ending}": torch.ones(rank, shape[1]),
        f"base_model.model.{module}.lora_B{ending}": torch.ones(shape[0], rank),
    }


@pytest.mark.parametrize("in_adapter", ["model.language_model.", "language_model.model.", "model.", "thinker.model."])
@pytest.mark.parametrize(
    "in_base",
    ["model.language_model.", "language_model.model.", "model.", "thinker.model.", "thinker.model.language_model."],
)
def test_every_dialect_of_an_adapter_finds_its_tensor_in_every_dialect_of_a_base(tmp_path, in_adapter, in_base):
    names = [f"{in_base}{LAYER}.weight", f"{in_base}embed_tokens.weight", f"talker.model.{LAYER}.weight"]
    plan = make_plan(write_base(tmp_path / "b", names), write_adapter(tmp_path / "a", pair(f"{in_adapter}{LAYER}")))
    assert list(plan.changes) == [names[0]]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("model.visual.blocks.0.attn.qkv", "visual.blocks.0.attn.qkv"),
        ("thinker.audio_tower.layers.0.fc1", "audio_tower.layers.0.fc1"),
        ("thinker.lm_head.weight", "lm_head.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.multi_modal_projector.linear_1", "multi_modal_projector.linear_1"),
    ],
)
def test_towers_projectors_and_heads_have_one_spelling(first, second):
    assert canonical(first) == canonical(second)


@pytest.mark.parametrize("other", [f"talker.model.{LAYER}", "model.language_model.layers.1.self_attn.q_proj"])
def test_different_weights_keep_different_spellings(other):
    assert canonical(other) != canonical(f"model.{LAYER}")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("base_model.model.x.lora_A.weight", "x.lora_A.weight"),
        ("base_model.model.x.lora_A.default.weight", "x.lora_A.weight"),
        ("base_model.model.x.lora_embedding_B.mine", "x.lora_embedding_B"),
        ("base_model.model.x.modules_to_save.default.fc1.bias", "x.fc1.bias"),
        ("base_model.model.x.fc1.bias", "x.fc1.bias"),
    ],
)
def test_pefts_additions_to_a_name_are_taken_off(found, expected):
    assert without_peft(found) == expected


@pytest.mark.parametrize(
    ("config", "rank", "scale"),
    [
        ({}, 2, 4.0),
        ({"use_rslora": True}, 2, 8 / math.sqrt(2)),
        ({"rank_pattern": {"q_proj": 4}}, 4, 2.0),
        ({"alpha_pattern": {r"layers\.0\..*": 1}}, 2, 0.5),
        ({"alpha_pattern": {"proj": 1}}, 2, 4.0),
    ],
    ids=["alpha / r", "rslora", "rank pattern", "alpha pattern", "a pattern ends at a dot"],
)
def test_the_scale_is_pefts(tmp_path, config, rank, scale):
    adapter = write_adapter(tmp_path / "a", pair(f"model.{LAYER}", rank), **config)
    assert adapter.pairs[0].scale == pytest.approx(scale)


def test_saved_modules_replace_the_bases_tensors(tmp_path):
    tensors = {"base_model.model.model.projector.weight": torch.ones(6, 4), **pair(f"model.{LAYER}")}
    names = ["model.projector.weight", f"model.language_model.{LAYER}.weight"]
    plan = make_plan(write_base(tmp_path / "b", names), write_adapter(tmp_path / "a", tensors))
    assert plan.changes["model.projector.weight"].replacement
    assert not plan.changes["model.projector.weight"].updates
    assert [update.pair.module for update in plan.changes[names[1]].updates] == [f"model.{LAYER}"]


REFUSED = {
    "unmatched": (
        {"base": ["model.layers.0.self_attn.k_proj.weight"]},
        "nearest there are model.layers.0.self_",
    ),
    "doubly matched": (
        {"base": [f"model.{LAYER}.weight", f"model.language_model.{LAYER}.weight"]},
        "expected one",
    ),
    "two adapter tensors for one": (
        {"tensors": pair(f"model.{LAYER}") | pair(f"model.language_model.{LAYER}")},
        "expected one for each",
    ),
    "an embedding saved alone and under LoRA": (
        {
            "tensors": {
                **pair(f"model.{LAYER}"),
                "base_model.model.model.embed_tokens.base_layer.weight": torch.ones(6, 4),
                "base_model.model.model.embed_tokens.weight": torch.zeros(6, 4),
            },
        },
        r"holds 'model\.embed_tokens\.weight' twice",
    ),
    "other width": ({"tensors": pair(f"model.{LAYER}", shape=(6, 5))}, r"\[6, 5\].*\[6, 4\]"),
    "A without B": ({"tensors": dict([next(iter(pair(f"model.{LAYER}").items()))])}, "only lora_A"),
    "rank other than configured": ({"tensors": pair(f"model.{LAYER}", rank=3)}, "says 2"),
    "A and B of different rank": (
        {"tensors": {**pair(f"model.{LAYER}"), f"base_model.model.model.{LAYER}.lora_B.weight": torch.ones(6, 3)}},
        r"expected \(r, in\)",
    ),
    "dora": ({"config": {"use_dora": True}}, "DoRA"),
    "bias": ({"config": {"bias": "all"}}, "bias 'all'"),
    "not lora": ({"config": {"peft_type": "LOHA"}}, "LOHA"),
    "pissa": ({"config": {"init_lora_weights": "pissa"}}, "changes the base"),
    "zero rank": ({"config": {"r": 0}}, "above 0"),
    "token ids without rows": ({"config": {"trainable_token_indices": [3]}}, "trained token rows"),
    "a magnitude vector": (
        {"tensors": {**pair(f"model.{LAYER}"), f"base_model.model.model.{LAYER}.lora_magnitude_vector": torch.ones(6)}},
        "plain LoRA does not have",
    ),
    "quantised base": ({"base_config": {"quantization_config": {"bits": 4}}}, "quantised"),
    "tied head": (
        {
            "base": ["model.embed_tokens.weight", f"model.{LAYER}.weight"],
            "base_config": {"tie_word_embeddings": True},
            "tensors": pair("lm_head"),
        },
        "tied embeddings",
    ),
    "tied embedding with lora": (
        {
            "base": ["thinker.model.embed_tokens.weight", f"model.{LAYER}.weight"],
            "base_config": {"tie_word_embeddings": True},
            "tensors": {
                "base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 6),
                "base_model.model.model.embed_tokens.lora_embedding_B": torch.ones(4, 2),
            },
        },
        "changes one of the tied embeddings .* --untie",
    ),
    "tied embedding saved": (
        {
            "base": ["model.embed_tokens.weight", f"model.{LAYER}.weight"],
            "base_config": {"tie_word_embeddings": True},
            "tensors": {"base_model.model.model.embed_tokens.weight": torch.ones(6, 4)},
        },
        "tied embeddings",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged_is_refused_with_a_reason(tmp_path, case):
    given, message = REFUSED[case]
    base = write_base(tmp_path / "b", given.get("base", [f"model.{LAYER}.weight"]), given.get("base_config"))
    with pytest.raises(InputError, match=message):
        make_plan(
            base, write_adapter(tmp_path / "a", given.get("tensors", pair(f"model.{LAYER}")), **given.get("config", {}))
        )


def test_an_adapter_saved_as_a_pickle_is_refused(tmp_path):
    write_adapter(tmp_path / "a", pair(f"model.{LAYER}"))
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(MissingFileError, match="only a pickle"):
        read_adapter(tmp_path / "a")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "empty"),
        (lambda data: data[:5], "empty"),
        (lambda data: data[:40], "header wants"),
        (lambda data: data[:-3], "its header describes"),
        (lambda data: data + b"xx", "its header describes"),
        (lambda data: (2**62).to_bytes(8, "little") + data[8:], "header wants"),
        (lambda data: data[:8] + b"#" + data[9:], "cannot be read"),
        (lambda data: data.replace(b'"F32"', b'"F99"'), "cannot be read"),
        (lambda data: data.replace(b"[6,4]", b"[6,5]"), "cannot be read"),
        (lambda data: data.replace(b"[0,96]", b"[4,96]"), "cannot be read|begin"),
    ],
)
def test_a_damaged_safetensors_file_is_named(tmp_path, damage, message):
    write_base(tmp_path / "b", ["w"])
    path = tmp_path / "b" / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message) as error:
        read_checkpoint(tmp_path / "b")
    assert str(path) in str(error.value)
