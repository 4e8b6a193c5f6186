"""What a merge holds in memory does not grow with a tensor or its rows."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from mmap import PAGESIZE, mmap

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from imod_export.merge import AHEAD_BYTES, Made, Part, _in_order
from imod_export.writer import Room

from .bare import write_bare

EXPERTS = (2, 4096, 8192)
MEGABYTES = {"merge": 200, "unmerge": 100}
"""Above what loading torch takes: parts in the making, and those that wait to be written. A row of the large tensor has
67 in bfloat16 and 134 in float32, all of it twice as many."""
MEASURE = """
import sys
from pathlib import Path
from imod_export.export import ExportSettings, export
from imod_export import card, merge, unmerge

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1000

adapter, base, out = map(Path, sys.argv[2:])
before = peak()
if sys.argv[1] == "merge":
    export(adapter, out, base, ExportSettings(parity=False, dtype="float32"))
else:
    unmerge.unmerge([adapter], out, base, ExportSettings())
print(peak() - before)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small adapter, and a base with one tensor whose rows are large."""
    root = tmp_path_factory.mktemp("large")
    draw = torch.Generator().manual_seed(0)
    tensors = {
        "experts.weight": torch.randn(EXPERTS, generator=draw).bfloat16(),
        "q_proj.weight": torch.randn(8, 8, generator=draw).bfloat16(),
    }
    return *write_bare(root, tensors), root / "out"


def test_large_rows_take_no_more_memory_than_small_ones(folders):
    for what, most in MEGABYTES.items():
        command = [sys.executable, "-c", MEASURE, what, *map(str, folders)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert float(done.stdout.splitlines()[-1]) < most, what
    _, base, out = folders
    found, before = load_file(out / "model.safetensors"), load_file(base / "model.safetensors")
    assert torch.equal(found["experts.weight"], before["experts.weight"].float())
    assert torch.equal(found["q_proj.weight"], before["q_proj.weight"].float() + torch.eye(8))


@pytest.mark.parametrize(("size", "together"), [(AHEAD_BYTES + 1, 1), (AHEAD_BYTES // 2, 2), (AHEAD_BYTES // 4, 4)])
def test_large_parts_wait_for_those_before_them(size, together):
    begun: list[int] = []
    room = Room(np.broadcast_to(np.uint8(0), size), mmap(-1, PAGESIZE), 0)

    def make(number):
        begun.append(number)
        return Made(str(number), room)

    def parts():
        for number in range(10):
            yield Part(room, lambda number=number: make(number))

    with ThreadPoolExecutor(10) as pool:
        for number, made in enumerate(_in_order(pool, parts())):
            assert made.name == str(number)
            assert max(begun) < number + together
    assert sorted(begun) == list(range(10))
