"""The command: cheap to ask for help, one sentence for a user's mistake."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

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
