"""Native models, shrunken: samples become batches, answers are labelled, adapters train, resume and load elsewhere."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
import yaml
from helpers import Outcome, call, read_json
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from imod_core.avt.prompts import IGNORED_LABEL
from imod_core.errors import InputError
from imod_core.samples import Message, Sample, read_samples
from imod_train.answer_head import supervise_answers_only
from imod_train.base import core_config, decoder_name, load_base, skeleton
from imod_train.model import add_adapter
from imod_train.native import NativeCollator, NativeDataset, SampleEncoder
from imod_train.recipe import LoraSettings, MediaSettings, Recipe, parse_recipe

OMNI, VISION = "qwen2.5-omni", "qwen2.5-vl"
MEDIA = {"video_frames": 4, "image_pixels": 56 * 56}


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shrunken models in the hub's layout, by family."""
    from imod_core.families import FAMILIES
    from imod_core.families.shrunken import build_shrunken

    place = tmp_path_factory.mktemp("native")
    for name in (OMNI, VISION):
        build_shrunken(FAMILIES[name], place / name)
    return {name: place / name for name in (OMNI, VISION)}


@pytest.fixture(scope="session")
def questions(scenes: Path) -> dict[str, list[Sample]]:
    """Two samples with a picture and one with a video, with sounds for the omni model."""
    found = read_samples(scenes / "train.jsonl")
    chosen = [*[s for s in found if s.images][:2], next(s for s in found if s.videos)]
    silent = [
        replace(s, audios=(), messages=tuple(Message(m.role, m.content.replace("<audio>", "")) for m in s.messages))
        for s in chosen
    ]
    return {OMNI: chosen, VISION: silent}


def recipe_of(base: Path, **changes) -> Recipe:
    stage = {"name": "tune", "train": ["adapter"], "data": ["d.jsonl"], "steps": 1}
    return parse_recipe({"base": str(base), "precision": "float32", "media": MEDIA, "stages": [stage], **changes})


@pytest.fixture(scope="module")
def loaded(bases: dict[str, Path]):
    """Models with their encoders, loaded once."""
    made = {}
    for name, base in bases.items():
        model, processor = load_base(recipe_of(base))
        made[name] = (model.eval(), SampleEncoder(processor, MediaSettings(**MEDIA), model))
    return made


@pytest.mark.parametrize("name", [OMNI, VISION])
def test_answers_and_their_end_marker_are_the_only_labels(loaded, questions, name: str) -> None:
    _, encoder = loaded[name]
    picture = questions[name][0]
    talk = (
        Message("system", "Short."),
        Message("user", "<image>Where is it?"),
        Message("assistant", "left"),
        Message("user", "And here: <image>?"),
        Message("assistant", "right, middle"),
    )
    sample = Sample("talk", talk, images=picture.images * 2)
    item = encoder(sample)
    ids, labels = item["input_ids"][0], item["labels"][0]
    tokenizer = encoder.processor.tokenizer
    by_hand = [
        tokenizer.encode(f"{answer}<|im_end|>", add_special_tokens=False) for answer in ("left", "right, middle")
    ]
    assert labels[labels != IGNORED_LABEL].tolist() == by_hand[0] + by_hand[1]
    learned = labels != IGNORED_LABEL
    assert torch.equal(ids[learned], labels[learned])
    before = ids[: int(learned.nonzero()[0])]
    assert tokenizer.decode(before).endswith("Where is it?<|im_end|>\n<|im_start|>assistant\n")
    assert int(learned[-1]) == 0  # the line break after the last marker


@pytest.mark.parametrize("name", [OMNI, VISION])
def test_padding_and_neighbours_change_nothing(loaded, questions, name: str) -> None:
    model, encoder = loaded[name]
    items = [*map(NativeDataset(questions[name], encoder).__getitem__, range(3))]
    collate = NativeCollator(encoder.processor.tokenizer.pad_token_id)
    with torch.no_grad():
        together = model(**collate(items)).logits
        for row, item in enumerate(items):
            alone = model(**collate([item])).logits[0]
            assert torch.allclose(together[row, : len(alone)], alone, atol=1e-4)
    swapped = {**items[0], "pixel_values": 1 - items[0]["pixel_values"]}
    with torch.no_grad():
        assert not torch.allclose(model(**collate([swapped])).logits, model(**collate([items[0]])).logits, atol=1e-2)


def test_a_videos_own_sound_is_woven_in_as_transformers_does(loaded, questions) -> None:
    model, beside = loaded[OMNI]
    encoder = SampleEncoder(beside.processor, MediaSettings(**MEDIA, weave_sound=True), model)
    item = NativeDataset(questions[OMNI], encoder)[2]
    assert "<|audio_bos|><|VIDEO|>" not in encoder.processor.tokenizer.decode(
        beside(questions[OMNI][2])["input_ids"][0]
    )
    tokenizer = encoder.processor.tokenizer
    text = tokenizer.decode(item["input_ids"][0])
    assert "<|vision_bos|><|audio_bos|><|VIDEO|>" in text
    batch = NativeCollator(tokenizer.pad_token_id)([item])
    positions, labels = batch.pop("position_ids"), batch.pop("labels")
    with torch.no_grad():
        ours = model(**batch, position_ids=positions, labels=labels).logits
        stock = model(**batch, use_audio_in_video=True).logits
        without = model(**batch).logits
    assert torch.equal(ours, stock)
    assert not torch.equal(ours, without)


@pytest.mark.parametrize("name", [OMNI, VISION])
def test_the_head_on_answers_alone_gives_the_same_loss_and_gradients(bases, loaded, questions, name: str) -> None:
    model, processor = load_base(recipe_of(bases[name]))
    encoder = SampleEncoder(processor, MediaSettings(**MEDIA), model)
    dataset = NativeDataset(questions[name], encoder)
    batch = NativeCollator(processor.tokenizer.pad_token_id)([dataset[0], dataset[1]])
    peft_model = add_adapter(model, LoraSettings(dropout=0.0), 0).train()

    def step(**extra):
        peft_model.zero_grad()
        loss = peft_model(**batch, **extra).loss
        loss.backward()
        return loss.detach(), torch.cat([p.grad.flatten() for p in peft_model.parameters() if p.requires_grad])

    whole, counted = step(), step(num_items_in_batch=torch.tensor(50))
    supervise_answers_only(model)
    for wanted, found in ((whole, step()), (counted, step(num_items_in_batch=torch.tensor(50)))):
        assert torch.allclose(found[0], wanted[0], rtol=1e-5)
        assert torch.allclose(found[1], wanted[1], rtol=1e-3, atol=1e-6)
    assert not torch.allclose(whole[0], counted[0])
    peft_model.eval()
    assert peft_model(**batch).logits.shape[:2] == batch["input_ids"].shape


def write_recipe(folder: Path, base: Path, samples: list[Sample], **changes) -> Path:
    from imod_core.samples import write_samples

    folder.mkdir(parents=True, exist_ok=True)
    write_samples(folder / "data.jsonl", samples)
    stage = {
        "name": "tune",
        "train": ["adapter"],
        "data": [str(folder / "data.jsonl")],
        "steps": 6,
        "batch_size": 2,
        "micro_batch_size": 1,
        "learning_rate": 1e-2,
        "log_steps": 1,
        "save_steps": 2,
    }
    stage |= changes.pop("stage", {})
    values = {"base": str(base), "precision": "float32", "media": MEDIA, "stages": [stage], **changes}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def runs(bases, questions, tmp_path_factory) -> dict[str, Path]:
    """A finished run of each model on one memorised sample, its recipe beside it."""
    made = {}
    for name, base in bases.items():
        folder = tmp_path_factory.mktemp(name.replace(".", "-"))
        recipe = write_recipe(folder, base, questions[name][-1:])
        assert call("train", recipe, "--out", folder / "run") == Outcome(0, "")
        made[name] = folder / "run"
    return made


@pytest.mark.parametrize("name", [OMNI, VISION])
def test_the_loss_falls_and_stock_peft_loads_the_adapter(runs, bases, loaded, questions, name: str) -> None:
    lines = [json.loads(line) for line in (runs[name] / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    config = read_json(runs[name] / "adapter/adapter_config.json")
    assert config["peft_type"] == "LORA"
    assert config["modules_to_save"] is None
    _, encoder = loaded[name]
    item = NativeDataset(questions[name][-1:], encoder)[0]
    batch = NativeCollator(encoder.processor.tokenizer.pad_token_id)([item])
    fresh = AutoModelForImageTextToText.from_pretrained(
        bases[name], config=core_config(bases[name]), attn_implementation="eager"
    )
    with torch.no_grad():
        base_loss = fresh.eval()(**batch).loss
        adapted = PeftModel.from_pretrained(fresh, runs[name] / "adapter").eval()(**batch).loss
    assert adapted < 0.7 * base_loss


def test_an_interrupted_run_resumes_to_the_same_adapter(runs, tmp_path: Path) -> None:
    recipe, run = runs[VISION].parent / "recipe.yaml", tmp_path / "run"

    def interrupt() -> None:
        while not (run / "checkpoints/tune/checkpoint-2/trainer_state.json").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt, daemon=True)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores Ctrl-C
    watcher.start()
    try:
        with pytest.raises(click.exceptions.Abort):
            call("train", recipe, "--out", run)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert not (run / "manifest.json").exists()
    assert call("train", recipe, "--out", run, "--resume").code == 0
    whole, resumed = (load_file(r / "adapter/adapter_model.safetensors") for r in (runs[VISION], run))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert any((value != 0).any() for key, value in whole.items() if "lora_B" in key)


def test_gradient_checkpointing_and_micro_batches_change_nothing_but_rounding(runs, bases, questions, tmp_path) -> None:
    recipe = write_recipe(tmp_path, bases[VISION], questions[VISION][-1:], gradient_checkpointing=True)
    assert call("train", recipe, "--out", tmp_path / "run", "--set", "stages.tune.micro_batch_size=2").code == 0
    plain, other = (load_file(r / "adapter/adapter_model.safetensors") for r in (runs[VISION], tmp_path / "run"))
    assert all(torch.allclose(plain[key], other[key], atol=0.05) for key in plain)


def test_the_merge_of_an_omni_run_leaves_talker_and_vocoder_byte_for_byte(runs, bases, tmp_path: Path) -> None:
    assert call("export", "--merge", runs[OMNI], "--out", tmp_path / "merged", "--no-parity").code == 0
    before, after = ({k: v for p in sorted(folder.glob("*.safetensors")) for k, v in load_file(p).items()}
                     for folder in (bases[OMNI], tmp_path / "merged"))  # fmt: skip
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key].view(torch.uint8), after[key].view(torch.uint8))}
    assert len(changed) == 14
    assert all(key.startswith("thinker.model.layers.") for key in changed)


def test_qlora_quantises_the_language_model_alone_and_merges_into_the_plain_base(bases, questions, tmp_path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    recipe = write_recipe(tmp_path, bases[VISION], questions[VISION][-1:], base_quantization="nf4")
    model, _ = load_base(recipe_of(bases[VISION], base_quantization="nf4"))
    coded = {name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}
    linears = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith(decoder_name(model) + ".")
    }
    assert coded == linears
    assert coded
    assert call("train", recipe, "--out", tmp_path / "run") == Outcome(0, "")
    losses = [json.loads(line).get("loss") for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert losses[-1] < 0.8 * losses[0]
    assert call("export", "--merge", tmp_path / "run", "--out", tmp_path / "merged", "--no-parity").code == 0


def test_qlora_without_bitsandbytes_names_the_extra(bases, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"imod-lora\[qlora\]"):
        load_base(recipe_of(bases[VISION], base_quantization="nf4"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train": ["projectors", "adapter"]},
            "'stages.tune.train' is ['projectors', 'adapter']; it must be",
        ),
        ({"train": ["projectors"], "objective": "words"}, "'stages.tune.objective' is 'words'"),
        ({"questions_per_row": 3}, "'stages.tune.questions_per_row' is 3"),
        ({"state_noise": 0.1}, "'stages.tune.state_noise' is 0.1"),
    ],
)
def test_what_only_avt_has_is_refused_in_one_sentence(bases, questions, tmp_path, change, message: str) -> None:
    recipe = write_recipe(tmp_path, bases[VISION], questions[VISION], stage=change)
    done = call("train", recipe, "--out", tmp_path / "run")
    assert done.code == 2
    assert message in done.message
    assert "\n" not in done.message
    assert not (tmp_path / "run").exists()


def test_a_medium_that_the_model_does_not_take_is_refused(loaded, questions) -> None:
    with pytest.raises(InputError, match="has a medium <audio>; this model takes image, video alone"):
        NativeDataset(questions[OMNI], loaded[VISION][1])


def test_a_target_that_the_language_model_lacks_is_refused(tmp_path: Path) -> None:
    """Qwen3-Omni's experts are one tensor a layer: adapters on them would silently be left out."""
    from imod_core.families import FAMILIES
    from imod_core.families.shrunken import build_shrunken

    build_shrunken(FAMILIES["qwen3-omni"], tmp_path / "base")
    model = skeleton(core_config(tmp_path / "base"))
    with pytest.raises(InputError, match=r"has no linear layer .*gate_proj"):
        add_adapter(model, LoraSettings(), 0)
    attention = LoraSettings(targets=("q_proj", "k_proj", "v_proj", "o_proj"))
    names = [name for name, _ in add_adapter(model, attention, 0).named_parameters() if "lora_A" in name]
    assert names
    beside = [name for name in names if "self_attn" not in name or "audio_tower" in name or "visual" in name]
    assert not beside
