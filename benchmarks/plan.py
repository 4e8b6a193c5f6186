"""The memory that `imod train --plan` estimates beside what the same run takes: the peak of its resident memory.

    python benchmarks/plan.py RECIPE [--steps 3] [--set KEY=VALUE ...] [--json]

For CPU runs. Every stage runs a few steps, in a process whose peak the kernel tells when it ends; the plan is made for
those steps in another process. Takes the time of the steps.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from imod_train.recipe import read_recipe

PLAN = """
import json, sys
from pathlib import Path
from imod_train.plan import make_plan
from imod_train.recipe import read_recipe
plan = make_plan(read_recipe(Path(sys.argv[1])), "cpu")
stages = {stage.name: plan.memory(stage) for stage in plan.stages}
print(json.dumps({"peak": plan.peak, "stages": stages}))
"""


def shorten(path: Path, changes: tuple[str, ...], steps: int, folder: Path) -> Path:
    """The recipe with so many steps a stage, as a file in `folder`."""
    names = [stage.name for stage in read_recipe(path, changes).stages]
    few = [change for name in names for change in (f"stages.{name}.steps={steps}", f"stages.{name}.epochs=null")]
    recipe = folder / "recipe.yaml"
    recipe.write_text(read_recipe(path, (*changes, *few)).to_yaml())
    return recipe


def estimated(recipe: Path) -> dict:
    """The plan's peak and its parts."""
    words = [sys.executable, "-c", PLAN, str(recipe)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(recipe: Path, run: Path) -> int:
    """Peak bytes of resident memory of the run."""
    words = [sys.executable, "-m", "imod_core.cli", "train", str(recipe), "--out", str(run)]
    process = subprocess.Popen(words)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the run ended with status {status}")
    return usage.ru_maxrss * 1024


def main() -> None:
    """Estimate, measure, print both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="imod-plan-") as place:
        recipe = shorten(options.recipe, tuple(options.changes), options.steps, Path(place))
        plan = estimated(recipe)
        peak = measured(recipe, Path(place) / "run")
    found = {**plan, "measured": peak, "ratio": plan["peak"] / peak}
    if options.json:
        print(json.dumps(found))
        return
    for name, parts in plan["stages"].items():
        print(f"{name}: " + ", ".join(f"{kind} {size / 1e6:,.0f} MB" for kind, size in parts.items()))
    print(f"estimated {plan['peak'] / 1e9:.2f} GB, measured {peak / 1e9:.2f} GB, ratio {found['ratio']:.3f}")


if __name__ == "__main__":
    main()
