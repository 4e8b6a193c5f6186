"""Taking media away or swapping them, and scoring: what evaluation says is what was asked."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers import call, imod, read_json
from transformers import AutoModelForImageTextToText, AutoProcessor

import imod_core.avt  # noqa: F401
from imod_core.avt.states import TowerStates
from imod_core.errors import InputError
from imod_core.media import load_audio, load_image
from imod_core.samples import Message, Sample, read_samples
from imod_eval.conditions import shown, states_under, swap
from imod_eval.prediction import CONDITIONS, Prediction, read_predictions, write_predictions
from imod_eval.predictor import Predictor
from imod_eval.score import accuracy, accuracy_by, is_right, majority


@pytest.fixture(scope="module")
def samples(scenes: Path) -> list[Sample]:
    return read_samples(scenes / "test.jsonl")


@pytest.fixture(scope="module")
def states(tiny_base: Path, samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> TowerStates:
    processor = AutoProcessor.from_pretrained(tiny_base)
    found = TowerStates(tiny_base, processor, tmp_path_factory.mktemp("states"))
    found.prepare(samples)
    return found


def test_each_condition_takes_away_what_it_names(samples, states) -> None:
    asked = {c: states_under(c, shown(c, samples), states) for c in CONDITIONS}
    blank = states.blank()

    def same(one, two) -> bool:
        return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))

    def repeated(kind, own) -> list[torch.Tensor]:
        return [blank[kind].repeat(len(state) // len(blank[kind]), 1) for state in own]

    for i in range(len(samples)):
        own = asked["as_is"][i]
        for kind in ("image", "video"):
            assert same(asked["picture_only"][i][kind], own[kind])
            assert same(asked["sound_only"][i][kind], repeated(kind, own[kind]))
        assert same(asked["sound_only"][i]["audio"], own["audio"])
        assert same(asked["picture_only"][i]["audio"], repeated("audio", own["audio"]))
        assert not same(asked["blanked"][i]["audio"], own["audio"])
        assert {k: len(v) for k, v in asked["swapped"][i].items()} == {k: len(v) for k, v in own.items()}


def test_a_blanked_sound_is_as_long_as_it_was(states, tmp_path) -> None:
    rate, seconds = states.processor.feature_extractor.sampling_rate, states.processor.audio_window_seconds
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).normal(0, 0.1, int(2.5 * seconds * rate)), rate)
    sample = Sample("long", (Message("user", "<audio>?"),), audios=(tmp_path / "long.wav",))
    states.prepare([sample])
    (own,), (blanked,) = (states_under(c, [sample], states)[0]["audio"] for c in ("as_is", "blanked"))
    window = states.processor.audio_window_tokens
    assert len(own) == len(blanked) == 3 * window
    assert all(torch.equal(part, states.blank()["audio"]) for part in blanked.split(window))


def test_swapping_gives_every_sample_media_of_another_scene(samples) -> None:
    swapped = swap(samples, seed=0)
    assert all(a.meta["scene"] != b.meta["scene"] for a, b in zip(samples, swapped, strict=True))
    assert swap(samples, seed=0) == swapped
    with pytest.raises(InputError, match="no other"):
        swap(samples[:1], seed=0)


def test_batched_answers_begin_like_one_by_one_generation_from_the_media(tiny_base, samples, tmp_path) -> None:
    predictor = Predictor(tiny_base, tmp_path, "float32")
    few = list({s.meta["scene"]: s for s in samples if s.images}.values())[:3]
    predictions = list(predictor.predict(few))
    model = AutoModelForImageTextToText.from_pretrained(tiny_base).eval()
    processor = AutoProcessor.from_pretrained(tiny_base)
    assert list(predictor.predict(few, "swapped")) != predictions
    ids = [sample.id for sample in few]
    assert list(predictor.predict(few, done=ids)) == []
    assert list(predictor.predict(few, done=ids[1:])) == predictions  # the same batch, so the same answers
    with pytest.raises(InputError, match=r"'odd' has <\|audio\|> in its text"):
        next(predictor.predict([Sample("odd", (Message("user", "<|audio|>?"), Message("assistant", "left")))]))
    for sample, prediction in zip(few, predictions, strict=True):
        turn = [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "audio"}, {"type": "text", "text": sample.question}],
            }
        ]
        text = processor.apply_chat_template(turn, add_generation_prompt=True)
        inputs = processor(
            text=[text],
            images=[load_image(sample.images[0])],
            audio=[load_audio(sample.audios[0])],
            return_tensors="pt",
        )
        output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert prediction.answer[:8] == answer.strip()[:8]  # later a random model turns on the rounding of states


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("left", "left", True),
        ("Left.", "left", True),
        (" two ", "two", True),
        ("lef", "left", False),
        ("", "left", False),
    ],
)
def test_an_answer_is_right_if_it_is_the_same_words(answer: str, gold: str, right: bool) -> None:
    assert is_right(Prediction("a", "Audio Counting", "?", gold, answer)) is right


def test_scores_count_every_prediction() -> None:
    predictions = [
        Prediction("1", "Audio Counting", "?", "two", "two"),
        Prediction("2", "Audio Counting", "?", "two", ""),
        Prediction("3", "Visual Location", "?", "left", "left"),
    ]
    assert accuracy(predictions) == pytest.approx(2 / 3)
    assert accuracy_by(predictions, "type") == {"Audio Counting": 0.5, "Visual Location": 1.0}
    assert accuracy_by(predictions, "modality") == {"Audio": 0.5, "Visual": 1.0}


def test_the_majority_is_taken_from_training_by_template() -> None:
    def sample(answer: str, template: str) -> Sample:
        return Sample("x", (Message("user", "?"), Message("assistant", answer)), meta={"template": template})

    train = [sample("yes", "a"), sample("yes", "a"), sample("no", "a"), sample("two", "b")]
    test = [sample("yes", "a"), sample("no", "a"), sample("two", "b"), sample("one", "c")]
    assert majority(train, test) == 0.5


def test_predictions_are_read_back_as_written(tmp_path: Path) -> None:
    predictions = [Prediction("1", "Audio Counting", "wie viele?", "zwei\u2028drei", "fünf")]
    write_predictions(tmp_path / "p.jsonl", predictions)
    assert read_predictions(tmp_path / "p.jsonl") == predictions


def test_the_command_writes_scores_of_every_condition(tiny_base, scenes, samples, tmp_path) -> None:
    media = [f"--media={c}" for c in CONDITIONS]
    out, train = tmp_path / "out", scenes / "train.jsonl"
    done = imod(
        "eval",
        scenes / "test.jsonl",
        "--model",
        tiny_base,
        *media,
        "--out",
        out,
        "--train",
        train,
        "--states",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    scores = read_json(out / "scores.json")
    assert set(scores["accuracy"]) == set(CONDITIONS)
    assert scores["questions"] == len(samples)
    assert 0 < scores["majority"] < 1
    assert len(read_predictions(out / "test.blanked.jsonl")) == len(samples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "one of --model DIR and --url URL"),
        (["--model", "nowhere"], "is no model folder"),
        (["--url", "http://127.0.0.1:1", "--media=blanked"], "use it with --model"),
        (["--url", "http://127.0.0.1:1"], "127.0.0.1:1"),
    ],
)
def test_bad_options_are_one_sentence(scenes: Path, options: list[str], message: str) -> None:
    outcome = call("eval", scenes / "test.jsonl", *options)
    assert outcome.code == 2
    assert message in outcome.message
