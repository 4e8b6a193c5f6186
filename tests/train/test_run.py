"""Training runs: a plain adapter comes out, interruption loses little, bad input leaves nothing behind."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from helpers import Outcome, call, imod, listen_to_interrupts, read_json
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

import imod_core.avt  # noqa: F401
from imod_core.avt.states import TowerStates
from imod_core.samples import read_samples
from imod_train.base import load_base
from imod_train.calibrate import calibrate
from imod_train.dataset import Collator, SampleDataset
from imod_train.model import add_adapter
from imod_train.recipe import read_recipe
from imod_train.stage import last_whole_checkpoint


def adapter_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter/adapter_model.safetensors")


def train(recipe: Path, run: Path, *changes: str) -> Outcome:
    words = [word for change in changes for word in ("--set", change)]
    return call("train", recipe, "--out", run, *words)


def test_the_run_folder_holds_a_plain_lora_adapter(trained: Path) -> None:
    config = read_json(trained / "adapter/adapter_config.json")
    assert config["peft_type"] == "LORA"
    assert config["modules_to_save"] == ["vision_projector", "audio_projector"]
    tensors = adapter_of(trained)
    assert len([k for k in tensors if "lora_A" in k]) == 21
    assert not [k for k in tensors if "partition" in k or "mask" in k]
    assert not [k for k in tensors if "lora" in k and "language_model" not in k]
    manifest = read_json(trained / "manifest.json")
    assert (manifest["kind"], manifest["method"], manifest["imod"]["modules"]) == ("run", "imod", 21)


def test_stock_peft_loads_the_adapter_with_identical_logits(trained: Path, recipe: Path, tiny_base: Path) -> None:
    """Against the training-side model with the stage's weights put back in, on a batch with media."""
    settings = read_recipe(recipe)
    model, processor = load_base(settings)
    states = TowerStates(tiny_base, processor, Path(settings.state_cache))
    data = SampleDataset(read_samples(settings.stages[1].data[0])[:4], processor, states)
    batch = Collator(processor.tokenizer)([data[i] for i in range(4)])
    batch.pop("labels")
    ours = add_adapter(model, settings.lora, settings.seed).eval()
    with torch.no_grad():
        untrained = ours(**batch).logits
    set_peft_model_state_dict(ours, load_file(trained / "checkpoints/tune.safetensors"))
    base = AutoModelForImageTextToText.from_pretrained(tiny_base, attn_implementation="eager")
    stock = PeftModel.from_pretrained(base, trained / "adapter").eval()
    with torch.no_grad():
        expected, found = ours(**batch).logits, stock(**batch).logits
    assert torch.equal(found, expected)
    assert not torch.allclose(untrained, expected, atol=1e-3)


def test_without_constraints_imod_is_lora_bit_for_bit(recipe: Path, trained: Path, tmp_path: Path) -> None:
    assert train(recipe, tmp_path / "lora", "method=lora").code == 0
    assert train(recipe, tmp_path / "zero", "imod.lambda1=0", "imod.lambda2=0").code == 0
    lora, zero, full = adapter_of(tmp_path / "lora"), adapter_of(tmp_path / "zero"), adapter_of(trained)
    assert all(torch.equal(lora[name], zero[name]) for name in lora)
    assert any(not torch.equal(lora[name], full[name]) for name in lora)


def test_a_killed_run_resumes_to_the_same_adapter(recipe: Path, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    command = [sys.executable, "-m", "imod_core.cli", "train", str(recipe), "--out", str(run)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    checkpoint = run / "checkpoints/tune/checkpoint-2/trainer_state.json"
    wait_for(checkpoint, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "manifest.json").exists()
    refused = train(recipe, run)
    assert refused.code == 2
    assert "unfinished run" in refused.message
    resumed = imod("train", recipe, "--out", run, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "Stage tune: 2 of 6 steps done" in resumed.stderr or "Stage tune: 4 of 6 steps done" in resumed.stderr
    undisturbed, after = adapter_of(trained), adapter_of(run)
    assert all(torch.equal(undisturbed[name], after[name]) for name in undisturbed)
    steps = [line["step"] for line in metrics(run) if line["stage"] == "tune" and "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_ctrl_c_ends_without_a_traceback_and_can_be_resumed(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "interrupted"
    command = [sys.executable, "-m", "imod_core.cli", "train", str(recipe), "--out", str(run)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen_to_interrupts)
    wait_for(run / "checkpoints/tune/checkpoint-2/trainer_state.json", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "--resume" in errors
    assert call("train", recipe, "--out", run, "--resume").code == 0


def test_a_half_written_checkpoint_is_not_used(recipe: Path, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    shutil.copytree(trained / "checkpoints/tune", folder)
    whole = last_whole_checkpoint(folder)
    assert whole is not None
    broken = folder / "checkpoint-99"
    shutil.copytree(whole, broken)
    (broken / "trainer_state.json").write_text("{")
    assert last_whole_checkpoint(folder) == whole
    assert not broken.exists()


def test_a_finished_run_is_left_as_it_is(recipe: Path, trained: Path) -> None:
    before = (trained / "manifest.json").stat().st_mtime_ns
    assert train(recipe, trained).code == 0
    assert (trained / "manifest.json").stat().st_mtime_ns == before
    other = train(recipe, trained, "lora.rank=8")
    assert other.code == 2
    assert "another recipe" in other.message


def test_a_finished_run_of_other_data_is_not_handed_back(recipe: Path, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    inputs = json.loads((run / "inputs.json").read_text())
    inputs["data"] = dict.fromkeys(inputs["data"], "of before")
    (run / "inputs.json").write_text(json.dumps(inputs))
    again = call("train", recipe, "--out", run)
    assert again.code == 2
    assert "another base or other data" in again.message


def test_a_run_that_diverged_is_not_called_done(recipe: Path, tmp_path: Path) -> None:
    done = train(recipe, tmp_path / "run", "stages.tune.learning_rate=1.0e30")
    assert done.code == 1
    assert re.search("stage 'tune' diverged: .*holds NaN or infinity", done.message)
    assert not (tmp_path / "run/manifest.json").exists()


def test_accumulated_micro_batches_train_like_one_batch(recipe: Path, tmp_path: Path) -> None:
    quiet = ("lora.dropout=0", "stages.tune.state_noise=0", "stages.tune.steps=2")
    assert train(recipe, tmp_path / "whole", *quiet).code == 0
    halves = train(
        recipe, tmp_path / "halves", *quiet, "stages.align.micro_batch_size=2", "stages.tune.micro_batch_size=2"
    )
    assert halves.code == 0, halves.message
    whole, parts = metrics(tmp_path / "whole"), metrics(tmp_path / "halves")
    for one, two in zip(whole, parts, strict=True):
        if "loss" in one:
            assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)
            assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)


def test_a_run_does_not_go_on_with_another_base_or_other_data(recipe: Path, scenes: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    values = yaml.safe_load(recipe.read_text())
    set_data(values, data / "train.jsonl")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    run = tmp_path / "run"
    assert train(path, run).code == 0
    (run / "manifest.json").unlink()
    lines = (data / "train.jsonl").read_text().splitlines()
    (data / "train.jsonl").write_text("\n".join(lines[1:]))
    resumed = call("train", path, "--out", run, "--resume")
    assert resumed.code == 2
    assert "another base or other data" in resumed.message


def test_a_run_may_train_projectors_alone(recipe: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(recipe.read_text())
    values["stages"] = values["stages"][:1]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    assert train(path, tmp_path / "run").code == 0
    tensors = adapter_of(tmp_path / "run")
    assert all((tensor == 0).all() for name, tensor in tensors.items() if "lora_B" in name)


def test_calibration_gives_every_channel_mean_zero_and_deviation_one(recipe: Path, tiny_base: Path) -> None:
    settings = read_recipe(recipe)
    model, processor = load_base(settings)
    states = TowerStates(tiny_base, processor, Path(settings.state_cache))
    samples = read_samples(settings.stages[0].data[0])
    peft_model = add_adapter(model, settings.lora, settings.seed)
    norm = peft_model.get_base_model().model.audio_projector.modules_to_save["default"].norm_in
    tokens = torch.cat([state for sample in samples for state in states.of(sample)["audio"]]).float()
    before = norm(tokens).std(0)
    calibrate(peft_model, samples, states)
    after = norm(tokens)
    assert after.mean(0).abs().max() < 1e-3
    quiet = before < 0.1 * before.median()
    assert torch.allclose(after.std(0)[~quiet], torch.ones(1), atol=1e-3)
    assert not torch.allclose(before, torch.ones(1), atol=0.1)
    weight = norm.weight.clone()
    calibrate(peft_model, samples[:3], states)
    assert torch.equal(norm.weight, weight)


def test_metrics_carry_the_signals_of_the_method(trained: Path) -> None:
    lines = [line for line in metrics(trained) if line["stage"] == "tune" and "loss" in line]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all("imod/injected_over_task" in line for line in lines[2:])  # until then B is zero
    assert list((trained / "tensorboard").rglob("events.out.*"))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d, r: r.update(base=str(d / "nowhere")), "is not a model folder"),
        (lambda d, r: (d / "empty.jsonl").write_text("") or set_data(r, d / "empty.jsonl"), "holds no samples"),
        (lambda d, r: set_data(r, d / "absent.jsonl"), "does not exist"),
        (lambda d, r: corrupt(d, r, "images", b"not a picture"), "bad.png"),
        (lambda d, r: corrupt(d, r, "audios", b""), "bad.wav"),
        (lambda d, r: corrupt(d, r, "videos", b"\0" * 100), "bad.mp4"),
        (lambda d, r: corrupt(d, r, "audios", wav(0)), "bad.wav"),
        (lambda d, r: too_many(d, r), "more media than placeholders"),
        (lambda d, r: text_alone(d, r), "No sample of the stage 'tune' has a picture, sound or video"),
        (lambda d, r: medium_in_answer(d, r), "has a medium in an answer"),
        (lambda d, r: r["lora"].update(targets=["no_such_layer"]), "lora.targets"),
        (lambda d, r: r.update(base=str(other_architecture(d))), "imod train takes AVT bases"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_run(
    recipe: Path, scenes: Path, tmp_path: Path, break_it, message: str
) -> None:
    values = yaml.safe_load(recipe.read_text())
    break_it(tmp_path, values)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    done = train(path, tmp_path / "run")
    assert done.code == 2
    assert message in done.message
    assert "\n" not in done.message
    assert not (tmp_path / "run").exists()


def set_data(values: dict, path: Path) -> None:
    values["stages"][1]["data"] = [str(path)]


def corrupt(folder: Path, values: dict, kind: str, content: bytes) -> None:
    """A sample file whose one medium is broken."""
    suffix = {"images": "png", "audios": "wav", "videos": "mp4"}[kind]
    (folder / f"bad.{suffix}").write_bytes(content)
    tag = f"<{kind[:-1]}>"
    sample = {
        "id": "bad",
        "messages": [{"role": "user", "content": f"{tag}What?"}, {"role": "assistant", "content": "x"}],
        kind: [f"bad.{suffix}"],
    }
    (folder / "bad.jsonl").write_text(json.dumps(sample))
    set_data(values, folder / "bad.jsonl")


def too_many(folder: Path, values: dict) -> None:
    """A sample with a medium that no tag asks for."""
    corrupt(folder, values, "audios", wav(100))
    sample = json.loads((folder / "bad.jsonl").read_text())
    sample["messages"][0]["content"] = "What?"
    (folder / "bad.jsonl").write_text(json.dumps(sample))


def text_alone(folder: Path, values: dict) -> None:
    messages = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "x"}]
    (folder / "text.jsonl").write_text(json.dumps({"id": "t", "messages": messages}))
    set_data(values, folder / "text.jsonl")


def medium_in_answer(folder: Path, values: dict) -> None:
    corrupt(folder, values, "audios", wav(100))
    sample = json.loads((folder / "bad.jsonl").read_text())
    sample["messages"] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "<audio>x"}]
    (folder / "bad.jsonl").write_text(json.dumps(sample))


def wav(samples: int) -> bytes:
    """A sound file of so many samples."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(samples), 16000, format="WAV")
    return file.getvalue()


def other_architecture(folder: Path) -> Path:
    """A plain LLM's folder."""
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, vocab_size=32
    )
    LlamaForCausalLM(config).save_pretrained(folder / "llama")
    return folder / "llama"


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, f"ended with {process.returncode} before {path.name} was there"
        assert time.monotonic() < until
        time.sleep(0.02)
