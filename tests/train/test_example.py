"""The example of the examples folder, run as its docstring says."""

import re
import subprocess
import sys
from pathlib import Path

import torch
from peft import PeftModel

EXAMPLE = Path(__file__).parents[2] / "examples" / "stock_trainer.py"


def test_the_example_trains_logs_signals_and_leaves_a_plain_adapter(tmp_path):
    command = [sys.executable, str(EXAMPLE), "--steps", "20", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "imod/injected_over_task" in done.stdout
    scope: dict = {"__name__": "example"}
    exec(compile(EXAMPLE.read_text(), str(EXAMPLE), "exec"), scope)
    rows = scope["samples"](8)
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    with torch.no_grad():
        untrained = scope["small_model"]().eval()(**batch).loss
        trained = PeftModel.from_pretrained(scope["small_model"](), tmp_path).eval()(**batch).loss
    assert trained < untrained - 0.05


def test_imod_is_three_lines_of_it():
    lines = EXAMPLE.read_text().splitlines()
    marked = [line for line in lines if line.rstrip().endswith(("# 1", "# 2", "# 3"))]
    assert len(marked) == 3
    assert not any(re.search(r"\bimod", line.lower()) for line in lines[10:] if line not in marked)
