"""AVT: media change the logits, cached states equal pixels, ids without media equal the processor's."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import imod_core.avt  # noqa: F401
from imod_core.avt.compose import BOUNDARIES, CODE_FILES, PLACEHOLDERS
from imod_core.avt.prompts import IGNORED_LABEL, check_texts, encode
from imod_core.avt.states import TowerStates
from imod_core.errors import InputError
from imod_core.media import load_audio, load_image, load_video
from imod_core.samples import Message, Sample, conversation, read_samples


@pytest.fixture(scope="module")
def model(tiny_base: Path):
    return AutoModelForImageTextToText.from_pretrained(tiny_base).eval()


@pytest.fixture(scope="module")
def processor(tiny_base: Path):
    return AutoProcessor.from_pretrained(tiny_base)


@pytest.fixture(scope="module")
def samples(scenes: Path) -> list[Sample]:
    """One sample with a picture and a sound, one with a video and its sound track."""
    found = read_samples(scenes / "train.jsonl")
    return [next(s for s in found if s.images), next(s for s in found if s.videos)]


def inputs_of(processor, sample: Sample):
    turns = conversation(sample.messages[:-1])
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    media = {
        "images": [load_image(p) for p in sample.images] or None,
        "audio": [load_audio(p) for p in sample.audios] or None,
        "videos": [load_video(p, processor.video_processor.num_frames) for p in sample.videos] or None,
    }
    return processor(text=[text], return_tensors="pt", **media)


def test_the_base_folder_is_complete(tiny_base: Path) -> None:
    names = {p.name for p in tiny_base.iterdir()}
    assert {
        "config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json",
        "processor_config.json", "model.safetensors", *CODE_FILES,
    } <= names  # fmt: skip
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pkl"))]


def test_the_folder_loads_without_this_package(tiny_base: Path, tmp_path: Path) -> None:
    """With `trust_remote_code` in a process that cannot import the package; the logits are the same."""
    folder = shutil.copytree(tiny_base, tmp_path / "copied")
    code = (
        "import sys, torch; sys.modules['imod_core'] = sys.modules['imod_core.avt'] = None;"
        "from transformers import AutoModelForImageTextToText as M, AutoProcessor as P;"
        f"m = M.from_pretrained({str(folder)!r}, trust_remote_code=True).eval();"
        f"p = P.from_pretrained({str(folder)!r}, trust_remote_code=True);"
        "i = p(text=['Where is the drum?'], return_tensors='pt');"
        "print(type(m).__module__.startswith('transformers_modules'), float(m(**i).logits.detach().abs().sum()))"
    )
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    remote, total = done.stdout.split()
    model = AutoModelForImageTextToText.from_pretrained(tiny_base).eval()
    local = model(**AutoProcessor.from_pretrained(tiny_base)(text=["Where is the drum?"], return_tensors="pt")).logits
    assert remote == "True"
    assert float(total) == pytest.approx(float(local.detach().abs().sum()), rel=1e-6)


def test_every_medium_changes_the_logits(model, processor, samples) -> None:
    for sample in samples:
        inputs = inputs_of(processor, sample)
        with torch.no_grad():
            reference = model(**inputs).logits[0, -1]
            for name in ("pixel_values", "pixel_values_videos", "input_features"):
                if name in inputs:
                    changed = {**inputs, name: torch.flip(inputs[name], [-1]) + 0.5}
                    assert (model(**changed).logits[0, -1] - reference).abs().max() > 1e-4, name


def test_cached_states_give_the_logits_of_the_media_themselves(model, processor, samples, tiny_base, tmp_path) -> None:
    states = TowerStates(tiny_base, processor, tmp_path)
    states.prepare(samples)
    for sample in samples:
        found = states.of(sample)
        cached = {f"{kind}_states": torch.cat(s).float()[None] for kind, s in found.items() if s}
        inputs = inputs_of(processor, sample)
        ids = encode(processor, sample, [len(s) for s in found["audio"]], with_answers=False).input_ids
        assert torch.equal(ids, inputs["input_ids"][0])
        with torch.no_grad():
            from_states = model(input_ids=ids[None], **cached).logits
            from_media = model(**inputs).logits
        assert torch.allclose(from_states, from_media, atol=2e-2)  # states are kept in float16
        mixed = {name: value.flip(1) for name, value in cached.items()}
        assert not torch.allclose(model(input_ids=ids[None], **mixed).logits, from_media, atol=2e-2)


def test_labels_cover_the_answer_and_its_end_marker_alone(processor) -> None:
    turns = ("user", "Where?"), ("assistant", "left"), ("user", "And now?"), ("assistant", "right")
    messages = tuple(Message(role, text) for role, text in turns)
    encoded = encode(processor, Sample("a", messages), [])
    learned = encoded.input_ids[encoded.labels != IGNORED_LABEL]
    assert processor.tokenizer.decode(learned) == "left<|im_end|>right<|im_end|>"
    prompt = encode(processor, Sample("a", messages), [], with_answers=False)
    assert processor.tokenizer.decode(prompt.input_ids).endswith("<|im_start|>assistant\n")
    assert (prompt.labels == IGNORED_LABEL).all()


def test_text_that_spells_a_special_token_is_refused(processor) -> None:
    bad = Sample("odd", (Message("user", "What does <|audio|> mean?"), Message("assistant", "x")))
    with pytest.raises(InputError, match=r"'odd' has <\|audio\|> in its text"):
        check_texts(processor, [bad])


def test_a_long_sound_is_heard_in_windows_up_to_the_limit(processor) -> None:
    second = processor.feature_extractor.sampling_rate
    size = int(processor.audio_window_seconds * second)
    assert len(processor.cut_windows(np.zeros(size))) == 1
    token = size // processor.audio_window_tokens
    assert len(processor.cut_windows(np.zeros(size + token))) == 1, "what codecs pad is no sound to listen to"
    assert len(processor.cut_windows(np.zeros(size + token + 1))) == 2
    windows = processor.cut_windows(np.arange(100 * second, dtype=np.float32))
    assert len(windows) == processor.max_audio_windows
    assert windows[0][0] == 0
    assert windows[-1][-1] == 100 * second - 1


def test_sounds_of_unequal_length_keep_their_own_tokens(model, processor) -> None:
    second = processor.feature_extractor.sampling_rate
    sounds = [np.random.default_rng(i).standard_normal(n * second).astype("f") for i, n in enumerate((1, 5))]
    together = processor(text=["<|audio|><|audio|>"], audio=sounds, return_tensors="pt")
    alone = [processor(text=["<|audio|>"], audio=[s], return_tensors="pt") for s in sounds]
    with torch.no_grad():
        both = model.model.get_audio_features(together["input_features"], together["audio_windows"]).pooler_output
        each = [model.model.get_audio_features(a["input_features"], a["audio_windows"]).pooler_output[0] for a in alone]
    assert torch.allclose(both, torch.cat(each), atol=1e-5)


def test_more_media_than_placeholders_is_an_error(model, processor, samples) -> None:
    inputs = inputs_of(processor, samples[0])
    inputs["pixel_values"] = torch.cat([inputs["pixel_values"]] * 2)
    with pytest.raises(RuntimeError, match="9 image placeholders for 18 image embeddings"):
        model(**inputs)


def test_generation_with_a_cache_equals_generation_without(model, processor, samples) -> None:
    inputs = inputs_of(processor, samples[0])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1}
    fast = model.generate(**inputs, **options)
    assert torch.equal(fast, model.generate(**inputs, **options, use_cache=False))


def test_training_loss_equals_the_full_logits_loss(model, processor) -> None:
    encoded = encode(processor, Sample("a", (Message("user", "Where?"), Message("assistant", "left"))), [])
    batch = {"input_ids": encoded.input_ids[None], "labels": encoded.labels[None]}
    full = model(**batch)
    expected = torch.nn.functional.cross_entropy(full.logits[0, :-1], encoded.labels[1:], ignore_index=IGNORED_LABEL)
    model.train()
    short = model(**batch)
    model.eval()
    assert short.logits is None
    assert torch.allclose(short.loss, expected, atol=1e-6)
    assert torch.allclose(full.loss, expected, atol=1e-6)


def test_placeholders_start_at_zero_and_markers_as_a_newline(model, processor) -> None:
    table = model.get_input_embeddings().weight
    ids = processor.tokenizer.convert_tokens_to_ids
    newline = processor.tokenizer.encode("\n", add_special_tokens=False)[0]
    assert (table[ids(list(PLACEHOLDERS))] == 0).all()
    assert (table[ids(list(BOUNDARIES))] == table[newline]).all()
    assert model.lm_head.weight is table


def test_the_configuration_names_its_code(tiny_base: Path) -> None:
    config = json.loads((tiny_base / "config.json").read_text())
    assert config["architectures"] == ["AvtForConditionalGeneration"]
    assert set(config["auto_map"]) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForImageTextToText",
        "AutoProcessor",
        "AutoVideoProcessor",
    }
