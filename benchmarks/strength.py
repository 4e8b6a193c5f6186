"""A sweep over IMoD's settings from one set of aligned projectors: what each does to accuracy and to dominance.

    python benchmarks/strength.py RECIPE.yaml --aligned RUN --questions test.jsonl --out DIR [--steps 200] \\
        lora reduction=mean,lambda1=0.01 reduction=energy,lambda1=0.3 reduction=relative,lambda1=0.1,warmup_steps=20

Every setting trains the recipe's last stage on its own, with the same data order and seed, from what the stages before
it came to in RUN; is merged; and answers the questions. `lora` is IMoD with weights too small to matter, so that it is
measured in the same way. Any other key of `ImodConfig` can be set too. With `--fisher N` the non-text dominance rate is
measured after training too, on N of the questions alone, each with its clip. DIR/table.md has the results,
DIR/table.json the same for programs; what is done is not done again, so the sweep can be interrupted and extended.
"""

import argparse
import json
import random
import shutil
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


def sweep(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The row of every setting, in their order; the table is written after each."""
    rows = []
    for setting in options.settings:
        run = options.out / setting.replace(",", "+").replace("=", "-")
        changes = _changes(setting, options)
        _prepare(run, read_recipe(options.recipe, tuple(changes)), options.aligned)
        words = [word for change in changes for word in ("--set", change)]
        _step(run / MANIFEST, "train", options.recipe, "--out", run, "--resume", *words)
        _step(run / "merged" / MANIFEST, "export", "--merge", run, "--out", run / "merged", "--no-parity")
        _step(run / "scores/scores.json", "eval", options.questions, "--model", run / "merged", "--out", run / "scores",
              *(f"--media={name}" for name in options.media))  # fmt: skip
        rows.append(_row(setting, run) | (_dominance(run, options) if options.fisher else {}))
        write_json(options.out / "table.json", rows)
        write_text(options.out / "table.md", table(rows))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The results in Markdown; energies and the dominance rate as the last log line of training has them."""
    media = [name.removeprefix("accuracy ") for name in rows[0] if name.startswith("accuracy ")]
    heads = ["setting", *(f"accuracy, media {name.replace('_', ' ')}" for name in media), "loss"]
    heads += [name.replace("_", " ").replace("non text", "non-text") for name in SIGNALS]
    heads += [RATE] if RATE in rows[0] else []
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        numbers = [row[f"accuracy {name}"] for name in media] + [row["loss"], *(row[name] for name in SIGNALS)]
        numbers += [row[RATE]] if RATE in row else []
        lines.append([row["setting"], *("" if number is None else f"{number:.3f}" for number in numbers)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


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


def _row(setting: str, run: Path) -> dict[str, Any]:
    accuracy = json.loads((run / "scores/scores.json").read_text())["accuracy"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "loss" in line)
    return {
        "setting": setting,
        **{f"accuracy {name}": value for name, value in accuracy.items()},
        "loss": last["loss"],
        **{name: last.get(f"imod/{name}") for name in SIGNALS},
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
    parser.add_argument("--media", nargs="+", default=["as_is", "blanked"], help="conditions of imod eval")
    parser.add_argument("--fisher", type=int, default=0, metavar="N", help="questions for the dominance rate")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other recipe change")
    try:
        print(table(sweep(parser.parse_args())))
    except ImodError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
