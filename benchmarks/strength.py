"""A sweep over IMoD's settings from one set of aligned projectors: what each does to accuracy and to dominance.

    python benchmarks/strength.py RECIPE.yaml --aligned RUN --questions test.jsonl --out DIR [--steps 200] \\
        lora reduction=mean,lambda1=0.01 reduction=energy,lambda1=0.3 reduction=relative,lambda1=0.1,warmup_steps=20

Every setting trains the recipe's last stage on its own, with the same data order, from what the stages before it
came to in RUN; is merged; and answers the questions; once for each of `--seeds`. `lora` is IMoD with weights too small
to matter, so that it is measured in the same way. Any other key of `ImodConfig` can be set too. With `--fisher N` the
non-text dominance rate is measured after training too, on N of the questions alone, each with its clip. DIR/table.md
has means over the seeds, and the lowest and highest; DIR/table.json every run. What is done is not done again, so the
sweep can be interrupted and extended.
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from imod_core.artifacts import MANIFEST, write_json, write_text
from imod_core.console import console
from imod_core.errors import ImodError, InputError
from imod_core.samples import read_samples
from imod_train.dominance import run_dominance
from imod_train.recipe import Recipe, read_recipe

LORA = "lambda1=1.0e-12,lambda2=0"
RATE = "non-text dominance after training"
SIGNALS = ("text_foreign_energy", "non_text_foreign_energy", "non_text_dominance", "injected_over_task")
LAST = 0.25
"""Share of the log lines, from the end, over which a loss or signal is averaged: single ones vary."""


def sweep(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The row of every setting and seed; the table is written after each."""
    rows: list[dict[str, Any]] = []
    for seed in options.seeds or [read_recipe(options.recipe).seed]:
        for setting in options.settings:
            run = options.out / f"seed-{seed}" / setting.replace(",", "+").replace("=", "-")
            changes = [*_changes(setting, options), f"seed={seed}"]
            _prepare(run, read_recipe(options.recipe, tuple(changes)), options.aligned)
            words = [word for change in changes for word in ("--set", change)]
            _step(run / MANIFEST, "train", options.recipe, "--out", run, "--resume", *words)
            _step(run / "merged" / MANIFEST, "export", "--merge", run, "--out", run / "merged", "--no-parity")
            _step(run / "scores/scores.json", "eval", options.questions, "--model", run / "merged",
                  "--out", run / "scores", *(f"--media={name}" for name in options.media))  # fmt: skip
            measured = _dominance(run, options) if options.fisher else {}
            rows.append({"setting": setting, "seed": seed} | _row(run) | measured)
            write_json(options.out / "table.json", rows)
            write_text(options.out / "table.md", table(rows))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The results in Markdown, a line for each setting."""
    columns = [name for name in rows[0] if name.startswith("accuracy ")] + ["loss", *SIGNALS]
    columns += [RATE] if RATE in rows[0] else []
    heads = ["setting", *(_words(name) for name in columns)]
    lines = [heads, ["---"] * len(heads)]
    for setting in dict.fromkeys(row["setting"] for row in rows):
        same = [row for row in rows if row["setting"] == setting]
        lines.append([setting, *(_cell([row[name] for row in same]) for name in columns)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _words(column: str) -> str:
    return column.replace("accuracy ", "accuracy, media ").replace("_", " ").replace("non text", "non-text")


def _cell(numbers: list[float | None]) -> str:
    """The mean, and the range where there are several."""
    known = [number for number in numbers if number is not None]
    if not known:
        return ""
    ends = f" ({min(known):.3f} to {max(known):.3f})" if len(known) > 1 else ""
    return f"{statistics.mean(known):.3f}{ends}"


def _changes(setting: str, options: argparse.Namespace) -> list[str]:
    """The recipe's changes that make a setting."""
    pairs = (LORA if setting == "lora" else setting).split(",")
    stage = read_recipe(options.recipe).stages[-1].name
    steps = [f"stages.{stage}.steps={options.steps}", f"stages.{stage}.epochs=null"] if options.steps else []
    return ["method=imod", *(f"imod.{pair}" for pair in pairs), *steps, *options.set]


def _prepare(run: Path, recipe: Recipe, aligned: Path) -> None:
    """A run folder whose stages before the last are done: `imod train --resume` goes on from there."""
    if run.exists():
        return
    (run / "checkpoints").mkdir(parents=True)
    for stage in recipe.stages[:-1]:
        result = aligned / "checkpoints" / f"{stage.name}.safetensors"
        if not result.is_file():
            raise InputError(f"{aligned} has not finished the stage '{stage.name}' ({result} does not exist).")
        shutil.copy(result, run / "checkpoints")
    write_text(run / "recipe.yaml", recipe.to_yaml())


def _row(run: Path) -> dict[str, Any]:
    accuracy = json.loads((run / "scores/scores.json").read_text())["accuracy"]
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [step for step in steps if "loss" in step]
    last = steps[-max(1, round(LAST * len(steps))) :]

    def mean(name: str) -> float | None:
        known = [step[name] for step in last if step.get(name) is not None]
        return statistics.mean(known) if known else None

    return {
        **{f"accuracy {name}": value for name, value in accuracy.items()},
        "loss": mean("loss"),
        **{name: mean(f"imod/{name}") for name in SIGNALS},
    }


def _dominance(run: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The dominance rate on the same random questions for every setting, and the tokens that it was counted over."""
    found = run / f"dominance-{options.fisher}.json"
    if not found.exists():
        samples = read_samples(options.questions)
        chosen = random.Random("fisher").sample(samples, min(options.fisher, len(samples)))
        write_json(found, asdict(run_dominance(run, chosen)))
    counted = json.loads(found.read_text())
    return {RATE: counted.pop("rate"), **counted}


def _step(result: Path, *words: Any) -> None:
    """Run an `imod` command unless its result is there."""
    if result.exists():
        return
    command = [sys.executable, "-m", "imod_core.cli", *map(str, words)]
    console.print(f"$ imod {' '.join(command[3:])}", style="bold")
    code = subprocess.run(command, stdout=sys.stderr).returncode
    if code:
        sys.exit(code)


def main() -> None:
    """Sweep and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("settings", nargs="+", metavar="SETTING", help="lora, or key=value,… of ImodConfig")
    parser.add_argument("--aligned", type=Path, required=True, help="a run that has finished the earlier stages")
    parser.add_argument("--questions", type=Path, required=True, help="samples with true answers")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="of the last stage; the recipe's if not given")
    parser.add_argument("--seeds", type=int, nargs="+", help="of training; the recipe's if not given")
    parser.add_argument("--media", nargs="+", default=["as_is", "blanked"], help="conditions of imod eval")
    parser.add_argument("--fisher", type=int, default=0, metavar="N", help="questions for the dominance rate")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other recipe change")
    try:
        print(table(sweep(parser.parse_args())))
    except ImodError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
