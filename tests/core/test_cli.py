"""The command: cheap to ask for help, one sentence for a user's mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers import imod as run

from imod_core.cli import COMMANDS, imod

HEAVY = ("torch", "transformers", "vllm", "gradio", "peft", "numpy")


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from imod_core.cli import imod;"
        "out = CliRunner().invoke(imod, ['--help']).output;"
        f"print(out, [m for m in {HEAVY} if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.rstrip().endswith("[]")
    assert all(name in output for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(imod, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_no_command_imports_torch(name: str) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from imod_core.cli import imod;"
        f"print(CliRunner().invoke(imod, ['{name}', '--help']).exit_code, 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "0 False"


def test_an_unknown_command_is_a_usage_error() -> None:
    done = subprocess.run([sys.executable, "-m", "imod_core.cli", "tarin"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "No such command 'tarin'" in done.stderr


def test_a_users_mistake_is_one_sentence_without_a_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "imod_core.cli", "train", "nowhere.yaml", "--out", "x"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "imod: nowhere.yaml does not exist: expected a recipe in YAML."


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("data convert llava a.json --media . --out folder", "folder already exists"),
        ("data convert llava a.json --media . --out a.json/x.jsonl", "a.json cannot be used (File exists)"),
        ("data scenes --parts drawn --out /proc/sc", "/proc/sc cannot be written"),
        ("quickstart --out a.json", "a.json cannot be written (File exists)"),
        ("quickstart --out broken", "broken/size.json is not JSON"),
        ("eval folder --url http://127.0.0.1:1", "folder is a folder: expected a sample file"),
    ],
)
def test_a_place_that_cannot_be_used_is_one_sentence(words: str, fault: str, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
    (tmp_path / "a.json").write_text(json.dumps([{"id": "a", "conversations": turns}]))
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/size.json").write_text('{"preset": ')
    done = run(*words.split(), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert fault in done.stderr
    assert done.stderr.startswith("imod: ")
    assert done.stderr.count("\n") == 1
