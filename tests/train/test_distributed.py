"""Two processes give the gradient of their batches' mean: λ does not know how many there are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from imod_train import ImodConfig, attach

FLOAT32 = 2e-5
"""Relative; float32 rounding over a sum of a few hundred terms."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The gradients of two processes with a batch each, under DDP, and under FSDP2 put on after IMoD and before it."""
    folder = tmp_path_factory.mktemp("distributed")
    script = Path(__file__).parent / "run_distributed.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=500)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return load_file(folder / "gradients.safetensors")


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "fsdp_first"])
def test_two_processes_average_their_gradients_constraints_included(tiny, found, kind):
    here = {name.removeprefix(f"{kind}/"): g for name, g in found.items() if name.startswith(f"{kind}/")}
    model = tiny.make_lora()
    lora = [dict.__or__(*tiny.step_gradients(model, tiny.make_inputs(seed=rank))) for rank in range(2)]
    attach(model, ImodConfig(lambda1=1.0, lambda2=1.0))
    apart = [dict.__or__(*tiny.step_gradients(model, tiny.make_inputs(seed=rank))) for rank in range(2)]
    mean = {name: (apart[0][name] + apart[1][name]) / 2 for name in apart[0]}
    without = {name: (lora[0][name] + lora[1][name]) / 2 for name in lora[0]}
    assert tiny.largest_difference(here, mean) < FLOAT32
    assert tiny.largest_difference(here, without) > 1e-2
