"""`imod quickstart`: the whole road on the embedded data, one `imod` command after the other.

Base model, scenes, training, merge with parity, evaluation, server, answers: each step is a command that a user could
run alone, is printed before it runs, and is skipped when its result is there. What came out is in `report.json`.
"""

import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from imod_core.artifacts import MANIFEST, read_json, ready_folder, write_json
from imod_core.console import console
from imod_core.errors import CheckFailed, InputError

RECIPE = Path(__file__).parent / "scenes" / "recipe.yaml"
READY = " is ready at "
"""What `imod serve` prints between the model's name and the URL."""
JOINT = "Audio-Visual"
"""The question types that need picture and sound together."""


@dataclass(frozen=True)
class Size:
    """How much of everything: `smol` learns something in half an hour, `tiny` only shows that the road is whole."""

    preset: str
    scenes: tuple[str, ...]
    """Options of `imod data scenes`."""
    changes: tuple[str, ...]
    """Changes to the recipe."""
    served: int
    """Held-out questions asked of the server."""


SIZES = {
    "smol": Size("smol", (), (), 24),
    "tiny": Size(
        "tiny",
        ("--parts=drawn", "--clips=24", "--val-clips=4", "--test-clips=10", "--unseen-clips=6"),
        (
            "stages.words.steps=4",
            "stages.tune.steps=6",
            "stages.tune.save_steps=2",
            "stages.tune.log_steps=2",
        ),
        4,
    ),
}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("quickstart"), show_default=True)
@click.option("--size", type=click.Choice(list(SIZES)), default="smol", show_default=True)
@click.option("--compare-lora", is_flag=True, help="Train and score a plain LoRA of the same seed beside it.")
def quickstart(out: Path, size: str, compare_lora: bool) -> None:
    """Run the whole road on the embedded data."""
    Road(out, SIZES[size], compare_lora).walk()


class Road:
    """The steps of the quickstart in one folder."""

    def __init__(self, out: Path, size: Size, compare_lora: bool):
        self.out, self.size = out, size
        self.methods = ("imod", "lora") if compare_lora else ("imod",)
        self.seconds: dict[str, float] = _read(out / "seconds.json")
        """Of each step, over all runs that worked on it."""

    def walk(self) -> None:
        """Take every step that is not done yet, then write the report and print its table."""
        out, scenes = self.out, self.out / "scenes"
        ready_folder(out, "--out")
        self._check_size()
        self._step(
            "base", out / "base/config.json", "base", "build", "--preset", self.size.preset, "--out", out / "base"
        )
        self._step("scenes", scenes / MANIFEST, "data", "scenes", "--out", scenes, *self.size.scenes)
        for method in self.methods:
            self._method(method)
        self._step("serve", out / "served/scores.json", call=self._ask_server)
        asked = ["--limit", self.size.served, "--dtype=float32", "--states", out / "states", "--out", out / "local"]
        self._step(
            "local", out / "local/scores.json", "eval", scenes / "test.jsonl", "--model", out / "merged-imod", *asked
        )
        report = self._report()
        write_json(out / "report.json", report)
        print_report(report, _read_lines(out / "served/test.as_is.jsonl"))

    def _method(self, method: str) -> None:
        """Train, merge and score one method. `--resume` on a new folder starts it."""
        out, run, merged = self.out, self.out / f"run-{method}", self.out / f"merged-{method}"
        recipe = [RECIPE, "--out", run, "--resume", *self._changes(method)]
        self._step(f"train_{method}", run / MANIFEST, "train", *recipe)
        self._step(f"export_{method}", merged / MANIFEST, "export", "--merge", run, "--out", merged)
        scores, scenes = out / f"scores-{method}", out / "scenes"
        common = ["--model", merged, "--train", scenes / "train.jsonl", "--states", out / "states", "--out", scores]
        media = [f"--media={m}" for m in ("as_is", "blanked", "swapped", "picture_only", "sound_only")]
        self._step(f"eval_{method}", scores / "scores.json", "eval", scenes / "test.jsonl", *common, *media)
        unseen = scores / "unseen"
        self._step(
            f"eval_unseen_{method}", unseen / "scores.json",
            "eval", scenes / "test_unseen_style.jsonl", *common[:-1], unseen,
        )  # fmt: skip

    def _changes(self, method: str) -> list[str]:
        """The recipe's paths, which depend on `--out`, and the size's settings."""
        out, scenes = self.out, self.out / "scenes"
        changes = [
            f"base={out / 'base'}",
            f"method={method}",
            f"state_cache={out / 'states'}",
            f"stages.words.data={scenes / 'captions.jsonl'}",
            f"stages.tune.data={scenes / 'train.jsonl'}",
            *self.size.changes,
        ]
        return [word for change in changes for word in ("--set", change)]

    def _step(self, name: str, result: Path, *command: Any, call: Any = None) -> None:
        """Run a command, or call a function, unless its result is there; remember how long it took."""
        if result.exists():
            console.print(f"{name}: done before ({result})", style="dim")
            return
        started = time.monotonic()
        try:
            _run(command) if call is None else call()
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0) + time.monotonic() - started, 1)
            write_json(self.out / "seconds.json", self.seconds)

    def _ask_server(self) -> None:
        """Serve the merged IMoD model and ask it held-out questions over HTTP."""
        questions = self.out / "scenes/test.jsonl"
        command = _command("serve", self.out / "merged-imod", "--port", "0", "--log", self.out / "server.log")
        _show(command)
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            url = _wait_until_ready(server)
            _run(["eval", questions, "--url", url, "--limit", str(self.size.served), "--out", self.out / "served"])
        finally:
            server.terminate()
            server.wait()

    def _check_size(self) -> None:
        """A folder belongs to one size; mixing them would report one's numbers as the other's."""
        marker = self.out / "size.json"
        if marker.exists() and _read(marker).get("preset") != self.size.preset:
            raise InputError(f"{self.out} was started with another --size: give another --out, or remove it first.")
        write_json(marker, {"preset": self.size.preset})

    def _report(self) -> dict[str, Any]:
        """Everything that the steps measured, by method where there are two."""
        served = _read(self.out / "served/scores.json")
        local = {row["id"]: row["answer"] for row in _read_lines(self.out / "local/test.as_is.jsonl")}
        rows = _read_lines(self.out / "served/test.as_is.jsonl")
        reports = {method: self._scores(method) for method in self.methods}
        return {
            **reports["imod"],
            "served": {
                "answered": served["answered"],
                "accuracy": served["accuracy"]["as_is"],
                "same_as_transformers": sum(row["answer"] == local[row["id"]] for row in rows),
            },
            "seconds": {**self.seconds, "total": round(sum(self.seconds.values()), 1)},
            **({"lora": reports["lora"]} if "lora" in reports else {}),
        }

    def _scores(self, method: str) -> dict[str, Any]:
        scores = _read(self.out / f"scores-{method}/scores.json")
        unseen = _read(self.out / f"scores-{method}/unseen/scores.json")
        parity = _read(self.out / f"merged-{method}/parity/parity.json")
        by_condition = scores["accuracy"]
        return {
            "accuracy": {
                "test": by_condition["as_is"],
                "test_unseen_style": unseen["accuracy"]["as_is"],
                "media_blanked": by_condition["blanked"],
                "media_swapped": by_condition["swapped"],
                "picture_only": by_condition["picture_only"],
                "sound_only": by_condition["sound_only"],
                "majority": scores["majority"],
            },
            "joint_questions": {c: kinds[JOINT] for c, kinds in scores["by_modality"].items() if JOINT in kinds},
            "by_type": scores["by_type"]["as_is"],
            "parity": {"passed": parity["passed"]},
        }


def _run(words: Any) -> None:
    """Run an `imod` command; one that fails has said why, and ends the quickstart with its exit code."""
    command = _command(*words)
    _show(command)
    code = subprocess.run(command).returncode
    if code == 130:
        raise KeyboardInterrupt
    if code:
        error = CheckFailed(f"the step '{words[0]}' of the quickstart ended with exit code {code}, see above.")
        error.exit_code = code
        raise error


def _command(*words: Any) -> list[str]:
    return [sys.executable, "-m", "imod_core.cli", *map(str, words)]


def _show(command: list[str]) -> None:
    console.print(f"\n$ imod {shlex.join(command[3:])}", style="bold")


def _wait_until_ready(server: subprocess.Popen) -> str:
    assert server.stdout is not None
    for line in server.stdout:
        if READY in line:
            return line.rsplit(READY, 1)[1].strip()
    raise CheckFailed(f"the server ended with exit code {server.wait()} before it was ready, see above.")


def print_report(report: dict[str, Any], answers: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    output = Console()
    table = Table("question", "true answer", "served answer", title="Held-out questions, answered over HTTP")
    for answer in answers:
        table.add_row(*(escape(answer[column]) for column in ("question", "gold", "answer")))
    output.print(table)
    accuracies = {"imod": report["accuracy"], **({"lora": report["lora"]["accuracy"]} if "lora" in report else {})}
    table = Table("accuracy", *accuracies, title="Held-out questions")
    for name in report["accuracy"]:
        table.add_row(name.replace("_", " "), *(f"{values[name]:.3f}" for values in accuracies.values()))
    output.print(table)
    passed = "passed" if report["parity"]["passed"] else "FAILED"
    output.print(f"Parity of adapter and merged model: {passed}. Seconds: {report['seconds']['total']:.0f}.")


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
