"""What `--plan` says of a tiny run equals what is counted on the model, the data and the step themselves."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from helpers import call

from imod_core.avt.states import TowerStates
from imod_core.errors import InputError
from imod_core.samples import read_samples
from imod_train.attachment import attach
from imod_train.base import core_config, load_base
from imod_train.dataset import Collator, SampleDataset
from imod_train.footprint import NF4_BYTES, LiveStorages, Shape, footprint
from imod_train.model import add_adapter, set_trainable
from imod_train.plan import count_steps, make_plan
from imod_train.recipe import Recipe, Stage, parse_recipe, read_recipe

ROUNDING = 0.1
"""Share by which the bytes of a step on fake tensors may differ from those of the real one: masks and indices."""


@pytest.fixture(scope="module")
def plan(recipe: Path):
    return make_plan(read_recipe(recipe), "cpu")


def test_parameters_and_weights_are_those_of_the_loaded_model(recipe: Path, plan) -> None:
    settings = read_recipe(recipe)
    model = add_adapter(load_base(settings)[0], settings.lora, settings.seed)
    set_trainable(model, settings.stages[1].train)
    attach(model, settings.imod)
    found = plan.stages[1].footprint
    learns = [p for p in model.parameters() if p.requires_grad]
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.trainable == sum(p.numel() for p in learns)
    tensors = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    assert found.weights + found.adapter == pytest.approx(sum(tensors.values()), rel=0.01)
    assert (found.adapter, found.optimizer) == (4 * found.trainable, 8 * found.trainable)
    assert found.gradients == 4 * found.trainable


def test_tokens_and_steps_are_those_of_the_data(recipe: Path, tiny_base: Path, plan) -> None:
    settings = read_recipe(recipe)
    stage = settings.stages[1]
    samples = read_samples(stage.data[0])
    _, processor = load_base(settings)
    states = TowerStates(tiny_base, processor, Path(settings.state_cache))
    states.prepare(samples)
    rows = [len(item["input_ids"]) for item in map(SampleDataset(samples, processor, states).__getitem__, range(72))]
    lengths = plan.stages[1].lengths
    assert lengths.rows == len(rows) == 72
    assert {row.tokens for row in lengths.sampled} <= set(rows)
    assert sum(lengths.mean().values()) == pytest.approx(sum(rows) / len(rows), rel=0.1)
    assert set(lengths.mean()) >= {"text", "image", "audio", "video"}
    epochs = Stage(name="t", data=("d",), epochs=1.5, batch_size=4, micro_batch_size=2)
    assert (plan.stages[1].steps, count_steps(epochs, 72), count_steps(epochs, 3)) == (6, 27, 2)


@pytest.mark.parametrize("method", ["imod", "lora"])
def test_the_bytes_of_a_step_are_those_of_the_real_step(recipe: Path, tiny_base: Path, method: str) -> None:
    settings = read_recipe(recipe, (f"method={method}",))
    stage = settings.stages[1]
    model, processor = load_base(settings)
    states = TowerStates(tiny_base, processor, Path(settings.state_cache))
    samples = [s for s in read_samples(stage.data[0]) if s.images][:8]
    states.prepare(samples)
    data = SampleDataset(samples, processor, states)
    items = [data[0]] * 8  # rows of one length: nothing is padded
    batch = Collator(processor.tokenizer)(items)
    answers = int((batch["labels"][0] != -100).sum())
    media = sum(states.of(samples[0])[kind][0].shape[0] for kind in ("image", "audio"))
    shape = Shape(8, batch["input_ids"].shape[1], media, answers)
    expected = footprint(core_config(tiny_base), settings, stage, shape, "eager")

    peft_model = add_adapter(model, settings.lora, settings.seed)
    set_trainable(peft_model, stage.train)
    if method == "imod":
        attach(peft_model, settings.imod)
    peft_model.train()
    with LiveStorages() as storages:
        peft_model(**batch).loss.backward()
    most = expected.activations + expected.logits + expected.gradients
    assert most == pytest.approx(storages.most, rel=ROUNDING)
    halved = footprint(core_config(tiny_base), settings, stage, Shape(4, shape.length, media, answers), "eager")
    assert halved.activations < 0.7 * expected.activations


def test_checkpointing_and_four_bits_take_less(recipe: Path, tiny_base: Path) -> None:
    settings, config, shape = read_recipe(recipe), core_config(tiny_base), Shape(4, 128, 20, 10)

    def found(**changes) -> tuple[int, int]:
        values = yaml.safe_load(settings.to_yaml()) | changes
        result = footprint(config, parse_recipe(values), settings.stages[1], shape, "eager")
        return result.activations, result.weights

    plain, checkpointed, coded = found(), found(gradient_checkpointing=True), found(base_quantization="nf4")
    assert checkpointed[0] < plain[0]  # by little: three tiny layers, of which one is always whole
    assert checkpointed[1] == plain[1]
    text = config.text_config
    head = text.hidden_size // text.num_attention_heads
    attention = text.hidden_size * (2 * text.hidden_size + 2 * head * text.num_key_value_heads)
    linears = text.num_hidden_layers * (attention + 3 * text.hidden_size * text.intermediate_size)
    assert plain[1] - coded[1] == pytest.approx(linears * (4 - NF4_BYTES), rel=0.01)


def test_the_command_tells_all_of_it_and_judges_the_memory(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    assert call("train", recipe, "--plan", "--memory", "24GB").code == 0
    told = capsys.readouterr().out
    for word in ("of which", "tokens a row", "activations", "optimizer", "Peak:", "24.00 GB suffice", "Time: at least"):
        assert word in told
    little = call("train", recipe, "--plan", "--memory", "1MB")
    assert little.code == 1
    assert "do not suffice" in little.message
    assert call("train", recipe, "--memory", "24GB", "--out", "x").code == 2
    assert call("train", recipe, "--plan", "--memory", "plenty").code == 2
    assert call("train", recipe).code == 2


def test_rows_beyond_the_models_context_are_told(
    recipe: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    sample = json.loads((scenes / "train.jsonl").read_text().splitlines()[0])
    sample["messages"][0]["content"] += " Think." * 3000
    sample |= {key: [str(scenes / name) for name in sample[key]] for key in ("images", "audios", "videos")}
    (tmp_path / "long.jsonl").write_text(json.dumps(sample))
    changes = (f"stages.tune.data={tmp_path / 'long.jsonl'}", "stages.tune.steps=1", "stages.tune.batch_size=1")
    words = [word for change in changes for word in ("--set", change)]
    assert call("train", recipe, "--plan", *words).code == 0
    assert "longer than the model's context of 2048" in " ".join(capsys.readouterr().err.split())
    assert call("train", recipe, "--out", tmp_path / "run", *words).code == 0
    assert "longer than the model's context of 2048" in " ".join(capsys.readouterr().err.split())


def test_a_base_that_transformers_does_not_know_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    recipe = parse_recipe({"base": str(tmp_path), "stages": [{"name": "tune", "data": ["d.jsonl"], "steps": 1}]})
    with pytest.raises(InputError, match=r"no configuration that loads \(.*unheard-of"):
        make_plan(recipe)


def test_a_native_plan_needs_no_weights(scenes: Path, tmp_path: Path) -> None:
    from imod_core.families import FAMILIES
    from imod_core.families.shrunken import build_shrunken

    base = tmp_path / "base"
    build_shrunken(FAMILIES["qwen2.5-omni"], base)
    for path in base.glob("*.safetensors"):
        path.unlink()
    stage = {"name": "tune", "train": ["adapter"], "data": [str(scenes / "train.jsonl")], "epochs": 1, "batch_size": 4}
    media = {"video_frames": 4, "image_pixels": 3136}
    recipe: Recipe = parse_recipe({"base": str(base), "media": media, "stages": [stage]})
    plan = make_plan(recipe, "cuda")
    (found,) = plan.stages
    assert found.steps == 18
    assert plan.seconds is None or torch.cuda.is_available()
    assert {"image", "audio", "video", "text", "marks"} <= set(found.lengths.mean())
    index = json.loads((base / "model.safetensors.index.json").read_text())
    assert found.footprint.weights < index["metadata"]["total_size"]  # the thinker alone, in bfloat16
    assert found.footprint.trainable > 0
