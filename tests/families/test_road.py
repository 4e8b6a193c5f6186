"""The road of a family: adapters on the attention of a mixture of experts, and folders that keep their other models."""

import peft
import pytest
import torch
from safetensors.torch import load_file

from imod_core.errors import InputError
from imod_core.families import FAMILIES, lora_modules
from imod_core.families.served import adapter_for_vllm
from imod_eval.families.rehearsal import rehearse
from imod_eval.families.road import Road
from imod_eval.families.table import cell, faults, report
from imod_export.export import ExportSettings, export
from imod_export.links import Unmerged, make_link
from imod_export.subject import load_model, read_config
from imod_train import ImodConfig, attach
from tests.helpers import imod

pytestmark = pytest.mark.timeout(600)


def weights(folder):
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """Qwen3-Omni's, by the command, without vLLM."""
    out = tmp_path_factory.mktemp("road")
    done = imod("families", "--only", "qwen3-omni", "--no-vllm", "--out", out)
    assert done.returncode == 0, done.stderr
    return Road(FAMILIES["qwen3-omni"], out / "qwen3-omni", vllm=False), done.stdout


def test_the_table_has_a_figure_or_a_reason_in_every_cell(road):
    walked, page = road
    (row,) = [line for line in page.splitlines() if line.startswith("| Qwen3-Omni |") and "→" in line]
    cells = [part.strip() for part in row.strip("|").split("|")]
    assert all(cells)
    assert cells[4] == "clean"
    assert cells[5] == "not offered"
    assert float(cells[2]) <= 1e-5
    assert float(cells[3]) <= 1e-4
    assert not faults(walked)


def test_talker_and_vocoder_stay_byte_for_byte_and_so_do_the_experts(road):
    base, merged = (weights(road[0].folder / name) for name in ("base", "merged"))
    assert base.keys() == merged.keys()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed
    assert all(name.startswith("thinker.model.layers.") and ".self_attn." in name for name in changed)


def test_a_second_walk_makes_nothing_again(road):
    before = {path: path.stat().st_mtime_ns for path in road[0].folder.rglob("*.safetensors")}
    road[0].walk()
    assert {path: path.stat().st_mtime_ns for path in road[0].folder.rglob("*.safetensors")} == before


def test_a_failed_step_is_named_in_the_table_and_a_fault(tmp_path):
    broken = Road(FAMILIES["qwen3-vl"], tmp_path, vllm=False)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    broken.walk()
    assert cell(broken, "adapter").startswith("failed: ")
    assert cell(broken, "merged") == "not reached"
    assert faults(broken)
    assert "failed: " in report([broken])


def test_experts_take_no_adapter(road, tmp_path):
    """PEFT reaches stacked experts through their parameters; IMoD says no, and so does the merge."""
    base = road[0].folder / "base"
    settings = peft.LoraConfig(r=2, target_modules=[], target_parameters=["mlp.experts.down_proj"])
    model = peft.get_peft_model(load_model(base, "float32", "float32"), settings)
    with pytest.raises(InputError, match="linear layers"):
        attach(model, ImodConfig())
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError):
        export(tmp_path / "adapter", tmp_path / "out", base, ExportSettings(parity=False))
    assert not (tmp_path / "out").exists()


def test_a_thinkers_adapter_leaves_the_rest_of_qwen2_5_omni_alone(shrunken, tmp_path):
    base = shrunken("qwen2.5-omni")
    found = rehearse(base, tmp_path / "adapter")
    assert found["losses"][-1] < found["losses"][0]
    assert max(found["reload"].values()) <= 1e-5
    out = export(tmp_path / "adapter", tmp_path / "merged", base)
    before, after = weights(base), weights(out)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("thinker.model.layers.") for name in changed)
    for name in ("spk_dict.pt", "preprocessor_config.json", "chat_template.json", "config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()


def test_ears_keep_their_own_weights_where_peft_forgets_the_pattern(road):
    """PEFT takes the pattern for a mixture of experts by its last names; the family's second pattern mends it."""
    base = road[0].folder / "base"
    for options, ears in (({"exclude_modules": None}, True), ({}, False)):
        settings = peft.LoraConfig(r=2, **{**lora_modules(base), **options})
        model = peft.get_peft_model(load_model(base, "float32", "float32"), settings)
        assert any("audio_tower" in name for name, _ in model.named_modules() if name.endswith("lora_A")) == ears


@pytest.mark.parametrize("adapters", [(), ((None, 0.5),), ((None, 1.0), (None, 1.0))])
def test_vllm_unmerged_serves_one_whole_adapter(tmp_path, adapters):
    with pytest.raises(InputError, match="one adapter of weight 1"):
        make_link("vllm:lora", tmp_path, "float32", Unmerged(tmp_path, adapters))


def test_an_adapter_of_the_thinker_gets_the_names_by_which_vllm_finds_it(shrunken, road, tmp_path):
    settings = peft.LoraConfig(r=2, **lora_modules(shrunken("qwen2.5-omni")))
    model = peft.get_peft_model(load_model(shrunken("qwen2.5-omni"), "float32", "float32"), settings)
    model.save_pretrained(tmp_path / "adapter")
    config = read_config(shrunken("qwen2.5-omni"))
    served = adapter_for_vllm(tmp_path / "adapter", config, tmp_path / "served")
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "adapter", served))
    assert all(name.startswith("base_model.model.thinker.model.layers.") for name in after)
    assert sorted(v.sum().item() for v in before.values()) == sorted(v.sum().item() for v in after.values())
    other = road[0].folder / "adapter"
    assert adapter_for_vllm(other, read_config(road[0].folder / "base"), tmp_path / "none") == other
