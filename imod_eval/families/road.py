"""The road of one family, each step an `imod` command or what stands in for one; what is there is not made again.

    base ─> adapter (a few IMoD steps, loaded again by PEFT) ─> merged ─> doctor, ONNX, vLLM merged, vLLM unmerged

A step that fails leaves its reason in `failed.json` and is tried again the next time.
"""

import json
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import click

from imod_core.artifacts import write_json, write_text
from imod_core.console import console
from imod_core.errors import CheckFailed, ImodError
from imod_core.families.family import Family

STEPS = ("base", "adapter", "merged", "doctor", "onnx", "vllm", "vllm:lora")
FAILED = "failed.json"
REASON_CHARACTERS = 200


class Road:
    """The steps of `family` in `folder`.

    Args:
        vllm: whether to take the two steps with vLLM.
        seed: of the shrunken model.
    """

    def __init__(self, family: Family, folder: Path, vllm: bool = True, seed: int = 0):
        self.family, self.folder, self.seed = family, folder, seed
        self.steps = [step for step in STEPS if self._is_offered(step) and (vllm or not step.startswith("vllm"))]

    def walk(self) -> None:
        """Take every step that is not done; those after a failed one are left out."""
        self.folder.mkdir(parents=True, exist_ok=True)
        failed: dict[str, str] = {}
        for step in self.steps:
            if self.result(step).exists():
                continue
            if failed and (step == "merged" or "merged" in failed or "base" in failed):
                break
            console.print(f"{self.family.name}: {step}")
            if reason := self._take(step):
                failed[step] = reason
                console.print(f"{self.family.name}: {step} failed: {reason}", soft_wrap=True)
        write_json(self.folder / FAILED, failed)

    def result(self, step: str) -> Path:
        """The file that says that a step is done."""
        return (
            self.folder
            / {
                "base": "base/config.json",
                "adapter": "adapter/rehearsal.json",
                "merged": "merged/manifest.json",
                "doctor": "doctor.json",
                "onnx": "onnx/manifest.json",
                "vllm": "vllm/parity.json",
                "vllm:lora": "vllm-lora/parity.json",
            }[step]
        )

    def read(self, step: str) -> Any:
        """What a step found; None where it was not taken or failed."""
        place = {"merged": "merged/parity/parity.json", "onnx": "onnx/parity/parity.json"}.get(step)
        path = self.folder / place if place else self.result(step)
        return json.loads(path.read_text()) if path.is_file() else None

    @property
    def failed(self) -> dict[str, str]:
        """Step to reason."""
        path = self.folder / FAILED
        return json.loads(path.read_text()) if path.is_file() else {}

    def _is_offered(self, step: str) -> bool:
        return step not in self.family.reasons and (self.family.graphs or step != "onnx")

    def _take(self, step: str) -> str | None:
        """Why it failed, if it did."""
        at = self.folder
        against = ["parity", at / "merged", "--no-strict", "--against", step, "--out", self.result(step).parent]
        commands: dict[str, Callable[[], str | None]] = {
            "base": lambda: _imod(
                "base", "build", "--shrunken", self.family.name, "--out", at / "base", "--seed", self.seed
            ),
            "adapter": lambda: _rehearse(at / "base", at / "adapter"),
            "merged": lambda: _imod(
                "export", "--merge", at / "adapter", "--base", at / "base", "--out", at / "merged", "--no-strict"
            ),
            "doctor": lambda: _imod("doctor", at / "merged", "--json", out=at / "doctor.json"),
            "onnx": lambda: _imod("export", "--model", at / "merged", "--onnx", "--out", at / "onnx", "--no-strict"),
        }  # fmt: skip
        return commands.get(step, lambda: _imod(*against))()


def _imod(*words: Any, out: Path | None = None) -> str | None:
    """Run a command here, its output into `out` if given; what went wrong, or None.

    With `out`, a check that did not pass is a result as any other.
    """
    from imod_core.cli import imod

    said = StringIO()
    with redirect_stdout(said):
        reason = _reason(lambda: imod([str(word) for word in words], standalone_mode=False), CheckFailed if out else ())
    if out and not reason:
        write_text(out, said.getvalue())
    return reason


def _rehearse(base: Path, out: Path) -> str | None:
    from imod_eval.families.rehearsal import rehearse

    return _reason(lambda: rehearse(base, out))


def _reason(step: Callable[[], Any], fine: Any = ()) -> str | None:
    """What `step` raised, as one sentence."""
    try:
        step()
    except fine:
        return None
    except (ImodError, click.ClickException) as error:
        return str(error)[-REASON_CHARACTERS:]
    except Exception as error:  # whatever a library raises over a family is what the table has to say
        first = (str(error).strip().splitlines() or [""])[0]
        return f"{type(error).__name__}: {first}"[:REASON_CHARACTERS]
    return None
