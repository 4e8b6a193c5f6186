"""The README's commands at tiny size: the quickstart is all of them, and each says in the README what it does."""

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import imod, read_json

from imod_core.cli import COMMANDS
from imod_core.cli import imod as group
from imod_core.quickstart import print_report
from imod_core.samples import read_samples
from imod_eval.prediction import MAX_NEW_TOKENS
from imod_serve.local import LocalModel

HALF_CHARACTER = "\ufffd"
"""What a random model's text may end in; a server leaves it out, waiting for the rest."""
README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny quickstart: training, merge, parity, evaluation, a real server."""
    folder = tmp_path_factory.mktemp("road")
    done = imod("quickstart", "--size", "tiny", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Held-out questions, answered over HTTP" in done.stdout
    return folder / "quickstart"


@pytest.mark.server
def test_the_quickstart_reports_what_it_measured(walked: Path) -> None:
    report = read_json(walked / "report.json")
    wanted = {"test", "test_unseen_style", "media_blanked", "media_swapped", "picture_only", "sound_only", "majority"}
    assert set(report["accuracy"]) == wanted
    assert all(0 <= value <= 1 for value in report["accuracy"].values())
    assert report["parity"]["passed"] is True
    assert report["served"]["answered"] == 4
    assert {"base", "scenes", "train_imod", "export_imod", "eval_imod", "serve", "total"} <= set(report["seconds"])


@pytest.mark.server
def test_served_answers_equal_transformers_greedy_answers(walked: Path) -> None:
    lines = (walked / "served/test.as_is.jsonl").read_text().splitlines()
    served = {p["id"]: p["answer"] for p in map(json.loads, lines)}
    assert len(served) == 4
    model = LocalModel(walked / "merged-imod")
    for sample in read_samples(walked / "scenes/test.jsonl"):
        if sample.id in served:
            local = model.ask_sample(sample, max_tokens=MAX_NEW_TOKENS).text.strip()
            assert served[sample.id].rstrip(HALF_CHARACTER) == local.rstrip(HALF_CHARACTER)


@pytest.mark.server
def test_a_second_quickstart_redoes_nothing(walked: Path) -> None:
    before = {
        p: p.stat().st_mtime_ns for p in walked.rglob("*") if p.is_file() and p.name not in ("report.json", "size.json")
    }
    done = imod("quickstart", "--size", "tiny", cwd=walked.parent)
    assert done.returncode == 0, done.stderr
    assert "$ imod" not in done.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.server
def test_a_plain_lora_of_the_same_seed_can_be_put_beside_it(walked: Path) -> None:
    done = imod("quickstart", "--size", "tiny", "--compare-lora", cwd=walked.parent)
    assert done.returncode == 0, done.stderr
    report = read_json(walked / "report.json")
    assert set(report["lora"]["accuracy"]) == set(report["accuracy"])
    assert report["lora"]["parity"]["passed"] is True
    recipes = [(walked / f"run-{method}/recipe.yaml").read_text() for method in ("lora", "imod")]
    assert recipes[0].replace("method: lora", "method: imod") == recipes[1]
    assert "train_imod: done before" in done.stderr


@pytest.mark.server
def test_a_quickstart_of_another_size_is_refused(walked: Path) -> None:
    done = imod("quickstart", "--size", "smol", cwd=walked.parent)
    assert done.returncode == 2
    assert "another --size" in done.stderr


def test_answers_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    report = {"accuracy": {"test": 1.0}, "parity": {"passed": True}, "seconds": {"total": 1}}
    print_report(report, [{"question": "[bold]What?", "gold": "x", "answer": "[/b]"}])
    printed = capsys.readouterr().out
    assert "[bold]What?" in printed
    assert "[/b]" in printed


def readme_commands() -> list[list[str]]:
    """Every `imod …` line of the README's console blocks, without comments."""
    blocks = re.findall(r"```console\n(.*?)```", README.read_text(), re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("imod ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize("words", readme_commands(), ids=" ".join)
def test_every_command_in_the_readme_has_the_options_it_shows(words: list[str]) -> None:
    known = CliRunner().invoke(group, [words[0], "--help"]).output
    if words[0] in ("base", "data"):
        known = CliRunner().invoke(group, [*words[:2], "--help"]).output
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    assert words[0] in COMMANDS
    assert all(option in known for option in options), known


def test_the_readme_names_every_command() -> None:
    text = README.read_text()
    assert all(f"imod {name}" in text for name in COMMANDS)
