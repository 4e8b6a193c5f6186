"""The sweep over settings, as its user calls it, on a tiny trained run."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks/strength.py"


def sweep(recipe, trained, scenes, out, *settings):
    command = [sys.executable, SCRIPT, recipe, *settings, "--aligned", trained, "--questions", scenes / "test.jsonl"]
    options = ["--out", out, "--steps", "2", "--media", "as_is", "--fisher", "3", "--seeds", "1", "2"]
    return subprocess.run([*map(str, command), *map(str, options)], capture_output=True, text=True)


def test_a_setting_becomes_a_row_for_each_seed_and_is_not_measured_twice(recipe, trained, scenes, tmp_path):
    done = sweep(recipe, trained, scenes, tmp_path, "reduction=energy,lambda1=0.3")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "table.json").read_text())
    assert [row["seed"] for row in rows] == [1, 2]
    row, other = rows
    assert row["loss"] != other["loss"]
    line = done.stdout.strip().splitlines()[-1]
    assert f"{(row['loss'] + other['loss']) / 2:.3f} ({min(row['loss'], other['loss']):.3f} to" in line
    assert 0 <= row["accuracy as_is"] <= 1
    assert row["loss"] > 0
    assert 0 < row["non-text dominance after training"] < 1
    assert row["samples"] == 3
    assert min(row["text_tokens"], row["non_text_tokens"]) > 3
    (run,) = (tmp_path / "seed-1").iterdir()
    assert "reduction: energy" in (run / "recipe.yaml").read_text()
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {(s["stage"], s["step"]) for s in steps if "loss" in s} == {("tune", 1), ("tune", 2)}
    again = sweep(recipe, trained, scenes, tmp_path, "reduction=energy,lambda1=0.3")
    assert "$ imod" not in again.stderr
    assert again.stdout == done.stdout


def test_a_run_that_lacks_the_earlier_stages_is_refused(recipe, scenes, tmp_path):
    done = sweep(recipe, tmp_path / "nothing", scenes, tmp_path / "out", "lora")
    assert done.returncode != 0
    assert "has not finished the stage 'align'" in done.stderr
