"""`imod eval` from end to end: interrupted and repeated, with places that cannot be written, on native models."""

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from helpers import call, imod, read_json

from imod_core.families import FAMILIES
from imod_core.families.shrunken import build_shrunken
from imod_core.samples import Message, Sample, read_samples, write_samples
from imod_eval.native import NativePredictor
from imod_eval.prediction import CONDITIONS, MAX_NEW_TOKENS, read_predictions
from imod_serve.answer import Answer
from imod_serve.local import LocalModel

URL = "http://127.0.0.1:1"


class Server:
    """Stands in for a server: answers what it is told, is interrupted after so many questions, counts them."""

    def __init__(self) -> None:
        self.model, self.url, self.answer = "one", URL, "left"
        self.asked: list[str] = []
        self.patience = 100

    def ask_sample(self, sample: Sample, **_: object) -> Answer:
        if len(self.asked) == self.patience:
            raise KeyboardInterrupt
        self.asked.append(sample.id)
        return Answer(self.answer, 1, 1)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    found = Server()
    monkeypatch.setattr("imod_serve.client.Client", lambda _url: found)
    return found


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_questions(tmp_path / "q.jsonl", "Audio Counting")


def write_questions(path: Path, kind: str, count: int = 6) -> Path:
    turns = Message("user", "Where?"), Message("assistant", "left")
    write_samples(path, [Sample(f"q{n}", turns, meta={"type": kind, "template": "where"}) for n in range(count)])
    return path


def interrupt(server: Server, after: int, *words: object) -> None:
    server.patience = len(server.asked) + after
    with pytest.raises(click.Abort):
        call(*words)
    server.patience, server.asked = 100, []


# Interrupted and repeated


def test_a_repeated_command_goes_on_where_it_was_interrupted(server: Server, questions: Path, tmp_path: Path) -> None:
    command = ["eval", questions, "--url", URL, "--out", tmp_path / "out"]
    interrupt(server, 4, *command)
    server.answer = "right"
    assert call(*command).code == 0
    assert server.asked == ["q4", "q5"]
    answers = {p.id: p.answer for p in read_predictions(tmp_path / "out/q.as_is.jsonl")}
    assert answers == {**{f"q{n}": "left" for n in range(4)}, "q4": "right", "q5": "right"}
    assert read_json(tmp_path / "out/scores.json")["accuracy"]["as_is"] == pytest.approx(4 / 6)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"q.as_is.jsonl", "scores.json"}


def test_an_interruption_without_a_folder_says_that_nothing_is_kept(
    server: Server, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.patience = 4
    with pytest.raises(SystemExit, match="130"):
        call("eval", questions, "--url", URL)
    assert capsys.readouterr().err.endswith("without --out no answer is kept.\n")


def test_a_line_that_was_cut_off_is_answered_again(server: Server, questions: Path, tmp_path: Path) -> None:
    command = ["eval", questions, "--url", URL, "--out", tmp_path / "out"]
    interrupt(server, 4, *command)
    (partial,) = (tmp_path / "out").glob(".q.as_is.*.partial")
    partial.write_bytes(partial.read_bytes()[:-5])
    interrupt(server, 1, *command)
    assert [json.loads(line)["id"] for line in partial.read_text().splitlines()[1:]] == ["q0", "q1", "q2", "q3"]
    assert call(*command).code == 0
    assert server.asked == ["q4", "q5"]


@pytest.mark.parametrize("other", ["model", "questions"])
def test_answers_of_another_model_or_to_other_questions_are_not_taken_over(
    server: Server, questions: Path, tmp_path: Path, other: str
) -> None:
    command = ["eval", questions, "--url", URL, "--out", tmp_path / "out"]
    interrupt(server, 4, *command)
    if other == "model":
        server.model = "two"
    else:
        questions.write_text(questions.read_text().replace("Where?", "Where now?"))
    assert call(*command).code == 0
    assert len(server.asked) == 6


def test_files_of_another_models_conditions_do_not_stay(server: Server, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["eval", questions, "--url", URL, "--out", out]
    assert call(*command).code == 0
    for name in ("q.blanked.jsonl", "other.blanked.jsonl"):
        (out / name).write_bytes((out / "q.as_is.jsonl").read_bytes())
    assert call(*command).code == 0
    assert (out / "q.blanked.jsonl").exists(), "of the same model and questions"
    server.model = "two"
    assert call(*command).code == 0
    assert {path.name for path in out.iterdir()} == {"q.as_is.jsonl", "other.blanked.jsonl", "scores.json"}


# Places and what is printed


@pytest.mark.parametrize("place", ["file", "file/sub", "/proc/nowhere"])
def test_a_place_that_cannot_be_written_is_said_before_anything_is_asked(
    server: Server, questions: Path, tiny_base: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    bad = tmp_path / place
    outcome = call("eval", questions, "--url", URL, "--out", bad)
    assert outcome.code == 2
    assert outcome.message.startswith(f"{bad} cannot be written (")
    assert outcome.message.endswith("give another --out.")
    assert server.asked == []
    outcome = call("eval", questions, "--model", tiny_base, "--states", bad)
    assert outcome.code == 2
    assert outcome.message.endswith("give another --states.")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_majority_is_printed_without_a_folder_too(
    server: Server, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("eval", questions, "--url", URL, "--train", questions).code == 0
    assert "the majority's answer │ 1.000" in capsys.readouterr().out


def test_question_types_are_printed_as_they_are(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("eval", write_questions(tmp_path / "q[b].jsonl", "[bold]x[/y]"), "--url", URL).code == 0
    printed = capsys.readouterr().out
    assert "[bold]x[/y]" in printed
    assert "q[b].jsonl" in printed.replace("\n", "")


# Native models


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen") / "model"
    build_shrunken(FAMILIES["qwen2.5-vl"], folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def pictures(scenes: Path) -> list[Sample]:
    """Questions about pictures and about videos without their sound."""
    samples = [s for s in read_samples(scenes / "captions.jsonl") if not s.audios]
    found = [s for s in samples if s.images][:2] + [s for s in samples if s.videos][:2]
    assert len(found) == 4
    return found


def test_a_native_model_answers_as_it_is_asked_alone(qwen: Path, pictures: list[Sample], tmp_path: Path) -> None:
    write_samples(tmp_path / "q.jsonl", pictures)
    command = ["eval", tmp_path / "q.jsonl", "--model", qwen, "--out", tmp_path / "out", "--dtype=float32"]
    done = imod(*command, *(f"--media={c}" for c in CONDITIONS))
    assert done.returncode == 0, done.stderr
    assert set(read_json(tmp_path / "out/scores.json")["accuracy"]) == set(CONDITIONS)
    model = LocalModel(qwen, "float32")
    alone = [model.ask_sample(sample, max_tokens=MAX_NEW_TOKENS).text.strip() for sample in pictures]
    assert [p.answer for p in read_predictions(tmp_path / "out/q.as_is.jsonl")] == alone


def test_a_native_model_is_shown_what_the_condition_says(
    qwen: Path, pictures: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Sample, tuple[str, ...]]] = []

    def record(sample: Sample, blanked: tuple[str, ...], max_tokens: int) -> Answer:
        seen.append((sample, blanked))
        return Answer("x", 1, max_tokens)

    predictor = NativePredictor(qwen)
    monkeypatch.setattr(predictor.model, "ask_sample", record)

    def shown(condition: str, done: tuple[str, ...] = ()) -> list[tuple[Sample, tuple[str, ...]]]:
        seen.clear()
        answered = list(predictor.predict(pictures, condition, done))
        assert [p.id for p in answered] == [s.id for s in pictures if s.id not in done]
        return list(seen)

    assert shown("as_is") == [(s, ()) for s in pictures]
    assert shown("sound_only") == [(s, ("image", "video")) for s in pictures]
    swapped = shown("swapped")
    assert all(
        other.images != s.images or other.videos != s.videos for (other, _), s in zip(swapped, pictures, strict=True)
    )
    assert shown("swapped", done=(pictures[0].id,)) == swapped[1:]


def test_a_condition_that_cannot_be_made_is_said_before_another_is_asked(
    qwen: Path, pictures: list[Sample], tmp_path: Path
) -> None:
    write_samples(tmp_path / "q.jsonl", pictures[:1])
    media, out = ("--media=as_is", "--media=swapped"), tmp_path / "out"
    outcome = call("eval", tmp_path / "q.jsonl", "--model", qwen, *media, "--out", out)
    assert outcome.code == 2
    assert "has no other with the same kinds of media to swap with" in outcome.message
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("of", [lambda scenes: scenes / "test.jsonl", lambda scenes: scenes])
def test_samples_that_cannot_be_asked_are_one_sentence(of: Callable[[Path], Path], qwen: Path, scenes: Path) -> None:
    outcome = call("eval", of(scenes), "--model", qwen)
    assert outcome.code == 2
    assert ("has audios; this model takes image, video alone" in outcome.message) != ("is a folder" in outcome.message)
