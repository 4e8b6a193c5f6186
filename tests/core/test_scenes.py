"""The embedded scenes: true questions, media that show what the facts say, files that are whole or absent."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
from click.testing import CliRunner
from helpers import listen_to_interrupts

from imod_core.data_cli import data
from imod_core.errors import InputError
from imod_core.media import has_sound, load_image, load_video
from imod_core.samples import Sample, read_samples
from imod_core.scenes import dataset
from imod_core.scenes.dataset import build_scenes
from imod_core.scenes.instruments import NAMES
from imod_core.scenes.pictures import styles
from imod_core.scenes.plan import SPLITS, ScenesSettings
from imod_core.scenes.questions import TYPES
from imod_core.scenes.render import Stock, take_stock

SMALL = ScenesSettings(clips=24, val_clips=3, test_clips=9, unseen_clips=9, train_questions=3, parts="drawn")
ANSWERS = {"yes", "no", "zero", "one", "two", "three", "left", "middle", "right", "simultaneously", *NAMES}


@pytest.fixture(scope="module")
def stock() -> Stock:
    return take_stock("drawn")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_scenes(tmp_path_factory.mktemp("scenes") / "set", SMALL, workers=1)


def questions_of(folder: Path) -> list[Sample]:
    return [sample for split in SPLITS for sample in read_samples(folder / f"{split}.jsonl")]


# Files


def test_a_set_holds_the_splits_it_was_asked_for(built: Path) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    assert manifest["clips"] == {"test": 9, "test_unseen_style": 9, "val": 3, "train": 24}
    for split, clips in manifest["clips"].items():
        assert len(read_samples(built / f"{split}.jsonl")) == clips * SMALL.questions
    assert len(read_samples(built / "captions.jsonl")) == 2 * SMALL.clips
    assert {path.name for path in built.parent.iterdir()} == {"set"}


def test_all_nine_types_are_asked_with_answers_of_the_benchmark(built: Path) -> None:
    training = read_samples(built / "train.jsonl")
    assert {tuple(sample.meta["type"]) for sample in training} == set(TYPES)
    assert len(TYPES) == 9
    assert {sample.answer for sample in questions_of(built)} <= ANSWERS


def test_a_share_of_the_clips_comes_as_video_with_sound_track(built: Path) -> None:
    samples = questions_of(built)
    videos = [sample for sample in samples if sample.videos]
    assert 0.1 < len(videos) / len(samples) < 0.45
    assert all(s.messages[0].content.startswith("<video><audio>") and s.audios == s.videos for s in videos)
    stills = [sample for sample in samples if sample.images]
    assert all(s.messages[0].content.startswith("<image><audio>") for s in stills)
    assert len(videos) + len(stills) == len(samples)


def test_no_composition_is_shared_between_splits(built: Path) -> None:
    compositions: dict[str, set] = {split: set() for split in SPLITS}
    for line in (built / "scenes.jsonl").read_text().splitlines():
        scene = json.loads(line)
        heard = sorted(sound["instrument"] for sound in scene["sounds"])
        compositions[scene["split"]].add((*scene["places"].values(), *heard))
    assert sum(map(len, compositions.values())) == len(set().union(*compositions.values()))
    assert len(compositions["train"]) > 10


def test_the_unseen_split_alone_has_the_unseen_style(built: Path) -> None:
    training_styles, unseen_style = styles("drawn")
    for sample in questions_of(built):
        expected = {unseen_style} if "unseen" in sample.id else set(training_styles)
        assert sample.meta["style"] in expected


def test_every_clip_decodes_as_picture_sound_and_video(built: Path) -> None:
    for png in sorted((built / "media").glob("*.png"))[:6]:
        assert load_image(png).size == (224, 224)
        sound = soundfile.info(png.with_suffix(".wav"))
        assert (sound.samplerate, sound.channels, sound.duration) == (16000, 2, 4.0)
        assert load_video(png.with_suffix(".mp4"), 4).shape == (4, 224, 224, 3)
        assert has_sound(png.with_suffix(".mp4"))


def test_same_seed_same_bytes_however_many_workers(built: Path, tmp_path: Path) -> None:
    again = build_scenes(tmp_path / "again", SMALL, workers=2)
    files = {path.relative_to(built) for path in built.rglob("*") if path.is_file()}
    assert len(files) == 3 * 45 + 8
    for name in files:
        assert (again / name).read_bytes() == (built / name).read_bytes(), name


def test_another_seed_gives_another_set(built: Path, tmp_path: Path) -> None:
    settings = ScenesSettings(2, 1, 1, 1, seed=1, parts="drawn")
    other = build_scenes(tmp_path / "other", settings, workers=1)
    name = Path("media") / "train-00000.wav"
    assert (other / name).read_bytes() != (built / name).read_bytes()


# A finished, a foreign and an interrupted folder


def test_a_finished_set_is_left_alone(built: Path) -> None:
    before = (built / "manifest.json").stat().st_mtime_ns
    assert build_scenes(built, SMALL) == built
    assert (built / "manifest.json").stat().st_mtime_ns == before


def test_a_set_of_other_settings_is_refused_by_name(built: Path) -> None:
    with pytest.raises(InputError, match=r"other settings \(clips, seed\)"):
        build_scenes(built, replace(SMALL, clips=25, seed=4))


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is no scenes set"):
        build_scenes(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    arguments = ["data", "scenes", "--parts", "drawn", "--out", str(tmp_path / "set"), "--workers", "2"]
    command = [sys.executable, "-m", "imod_core.cli", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=listen_to_interrupts)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".set.*/media/*.mp4")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches the workers too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("same", [True, False])
def test_a_set_that_another_command_finished_meanwhile_is_whole_and_used(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    settings = ScenesSettings(3, 1, 1, 1, parts="drawn")
    render_all = dataset.render_all

    def overtaken(*arguments) -> None:
        monkeypatch.setattr(dataset, "render_all", render_all)
        build_scenes(tmp_path / "set", settings if same else replace(settings, seed=1), workers=1)
        render_all(*arguments)

    monkeypatch.setattr(dataset, "render_all", overtaken)
    if same:
        assert build_scenes(tmp_path / "set", settings, workers=1) == tmp_path / "set"
    else:
        with pytest.raises(InputError, match=r"other settings \(seed\)"):
            build_scenes(tmp_path / "set", settings, workers=1)
    assert len(list((tmp_path / "set/media").iterdir())) == 3 * 6
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("name", "fault"), [("media/train-00000.wav", "has 134 of its 135 media"), ("val.jsonl", r"lacks val\.jsonl")]
)
def test_a_set_that_lost_a_file_does_not_count_as_finished(built: Path, tmp_path: Path, name: str, fault: str) -> None:
    damaged = shutil.copytree(built, tmp_path / "set")
    assert build_scenes(damaged, SMALL) == damaged
    (damaged / name).unlink()
    with pytest.raises(InputError, match=rf"{fault}: remove it, and the command makes it anew"):
        build_scenes(damaged, SMALL)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"clips": 0}, "clips is 0: expected 1 or more"),
        ({"seed": -1}, "seed is -1: expected 0 or more"),
        ({"questions": 10}, "questions is 10: expected at most 9"),
        ({"parts": "none"}, "parts is 'none': allowed are real and drawn"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        ScenesSettings(**changes)


def test_the_command_makes_a_set_and_prints_its_folder(tmp_path: Path) -> None:
    counts = ["--clips", "3", "--val-clips", "1", "--test-clips", "1", "--unseen-clips", "1"]
    arguments = ["scenes", "--out", str(tmp_path / "set"), *counts, "--parts", "drawn", "--workers", "1"]
    result = CliRunner().invoke(data, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path.resolve() / "set")
    assert len(read_samples(tmp_path / "set" / "train.jsonl")) == 18


# Truth


def truth(question: str, facts: dict) -> str:
    """The answer from the facts alone, worked out apart from the templates."""
    places = {place: name for place, name in facts["places"].items() if name}
    where = {name: place for place, name in places.items()}
    sounds = {sound["instrument"]: sound for sound in facts["sounds"]}
    playing = [name for name in where if name in sounds]
    words = question.rstrip("?").replace(",", "").split()
    named = [word for word in words if word in NAMES]
    asked = named or [places[word] for word in words if word in places]
    number = ["zero", "one", "two", "three"]
    order = sorted(sounds, key=lambda name: sounds[name]["entrance"])

    def yes(fact: bool) -> str:
        return "yes" if fact else "no"

    def spoken(name: str) -> str:
        return name if named else where[name]

    if "hear" in words:
        return yes(named[0] in sounds) if named else number[len(sounds)]
    if words[-2:] == ["in", "picture"] or question.endswith("in the picture?"):
        return yes(named[0] in where) if named else number[len(where)]
    if "outside" in words:
        return yes(len(playing) < len(sounds))
    if words[:2] == ["How", "many"]:
        return number[len(playing) if words[-1] == "playing" else len(where) - len(playing)]
    if "louder" in words:
        louder = next(name for name in asked if sounds[name]["level"] == "loud")
        return spoken(louder) if words[0] == "Which" else yes(louder == asked[0])
    if "before" in words:
        return yes(sounds[asked[0]]["entrance"] < sounds[asked[1]]["entrance"])
    if "loudest" in words:
        return where[next(name for name in sounds if sounds[name]["level"] == "loud")]
    if question.startswith("Which starts first"):
        first, second = (sounds[name]["entrance"] for name in asked)
        return "simultaneously" if first == second else where[asked[first > second]]
    if words[-1] in ("first", "last"):
        return where[order[0 if words[-1] == "first" else -1]]
    if words[-1] == "silent":
        return next(name for name in where if name not in sounds)
    if words[-1] == "playing":
        if words[0] == "Is":
            return yes(asked[0] in sounds)
        return playing[0] if words[0] == "Which" else ""
    if question == "Where is the playing instrument?":
        return where[playing[0]]
    return where[named[0]] if words[0] == "Where" else asked[0]


def test_every_answer_is_true_of_its_scene(built: Path) -> None:
    samples = questions_of(built)
    wrong = [s for s in samples if truth(s.question, s.meta["facts"]) != s.answer]
    assert not wrong, wrong[:3]
    swapped = [truth_or_none(s.question, t.meta["facts"]) for s, t in zip(samples, samples[3:], strict=False)]
    assert sum(found == s.answer for found, s in zip(swapped, samples, strict=False)) < len(samples) / 2


def truth_or_none(question: str, facts: dict) -> str | None:
    try:
        return truth(question, facts)
    except (KeyError, IndexError, StopIteration):
        return None


# Sounds
