"""The streamed merge beside a plain copy of the same files and beside PEFT's load, merge and save: time and memory.

    python benchmarks/merge.py [--gb 4] [--rounds 3] [--folder DIR] [--no-peft] [--json]

Generates a random Llama of `--gb` GB in bfloat16, in shards of 1 GB, and an adapter of rank 16 on all linears. Each way
runs in a process of its own, in turn, and every file is synced to disk; seconds are whole processes, imports included,
medians over the rounds. Memory is the largest resident size. Below some GB imports are most of the time. PEFT's model
pushes files out of the page cache where memory is short, which the copy after it pays for: `--no-peft` leaves it out.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from imod_core.console import console, track
from imod_export.tensors import INDEX, header_bytes

WIDTH, INNER, VOCABULARY, RANK = 2048, 5632, 32_000, 16
SHARD_BYTES = 10**9
LINEARS = {
    "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (WIDTH, WIDTH), "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}  # fmt: skip

COPY = """
import os, shutil, sys
from pathlib import Path
source, target = map(Path, sys.argv[1:])
target.mkdir()
for path in sorted(source.iterdir()):
    shutil.copyfile(path, target / path.name)
    with (target / path.name).open("rb") as file:
        os.fsync(file.fileno())
"""
PEFT = """
import os, sys
from pathlib import Path
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, target = map(Path, sys.argv[1:])
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(target, max_shard_size="1GB")
for path in sorted(target.iterdir()):
    with path.open("rb") as file:
        os.fsync(file.fileno())
"""


def make_base(folder: Path, gb: float) -> None:
    """A model folder of at least `gb` GB, written block by block."""
    layer = sum(rows * columns for rows, columns in LINEARS.values()) + 2 * WIDTH
    fixed = 2 * VOCABULARY * WIDTH + WIDTH
    layers = max(1, -int((fixed - gb * 1e9 / 2) // layer))
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for n in range(layers):
        shapes |= {f"model.layers.{n}.{name}.weight": shape for name, shape in LINEARS.items()}
        shapes |= {f"model.layers.{n}.{norm}_layernorm.weight": (WIDTH,) for norm in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)}
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER,
        "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": VOCABULARY,
        "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    _write_shards(folder, shapes)


def _write_shards(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    random, groups, size = np.random.default_rng(0), [[]], 0
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        if size + nbytes > SHARD_BYTES and groups[-1]:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += nbytes
    places = {}
    for number, names in enumerate(track(groups, "Generating shards"), start=1):
        file_name = f"model-{number:05}-of-{len(groups):05}.safetensors"
        with (folder / file_name).open("wb") as file:
            file.write(header_bytes([(name, "BF16", shapes[name]) for name in names], {"format": "pt"}))
            for name in names:
                file.write(_bfloat16(random, shapes[name]))
                places[name] = file_name
    total = sum(2 * int(np.prod(shape)) for shape in shapes.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))


def make_adapter(folder: Path, base: Path) -> None:
    """A PEFT adapter on all linears of `base`, as random as the weights."""
    layers = json.loads((base / "config.json").read_text())["num_hidden_layers"]
    random, entries, data = np.random.default_rng(1), [], []
    for n in range(layers):
        for name, (rows, columns) in LINEARS.items():
            for side, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
                entries.append((f"base_model.model.model.layers.{n}.{name}.lora_{side}.weight", "BF16", shape))
                data.append(_bfloat16(random, shape))
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(header_bytes(entries, {"format": "pt"}) + b"".join(data))
    targets = sorted({name.rpartition(".")[2] for name in LINEARS})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "bias": "none", "target_modules": targets}
    config |= {"task_type": "CAUSAL_LM", "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _bfloat16(random: np.random.Generator, shape: tuple[int, ...]) -> bytes:
    """Normal values of deviation 0.02, cut to bfloat16; large shapes repeat a block."""
    count = int(np.prod(shape))
    block = (0.02 * random.standard_normal(min(count, 1 << 20), dtype=np.float32)).view(np.uint32) >> 16
    return np.resize(block.astype("<u2"), count).tobytes()


def measure(command: list[str], target: Path, log: Path) -> tuple[float, float, int]:
    """Seconds by the clock and of CPU, largest resident bytes of a process; what it wrote is removed."""
    with log.open("w") as file:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{command[:4]} failed:\n{log.read_text()[-2000:]}")
    shutil.rmtree(target)
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def compare(place: Path, gb: float, rounds: int, peft: bool) -> dict:
    """Medians of all ways, taken in turn."""
    base, adapter, target = place / "base", place / "adapter", place / "out"
    make_base(base, gb)
    make_adapter(adapter, base)
    merge = ["-m", "imod_core.cli", "export", "--merge", str(adapter), "--no-parity", "--out", str(target)]
    commands = {
        "copy": ["-c", COPY, str(base), str(target)],
        "imod": merge,
    }
    if peft:
        commands["peft"] = ["-c", PEFT, str(base), str(adapter), str(target)]
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in commands}
    for number in range(rounds):
        for name, arguments in commands.items():
            found[name].append(measure([sys.executable, *arguments], target, place / f"{name}.log"))
            console.print(f"round {number + 1}: {name} {found[name][-1][0]:.1f} s")
    memory = {name: max(run[2] for run in runs) for name, runs in found.items()}
    result = {
        "bytes": sum(path.stat().st_size for path in base.glob("*.safetensors")),
        "rounds": rounds,
        "seconds": {name: statistics.median(run[0] for run in runs) for name, runs in found.items()},
        "cpu_seconds": {name: statistics.median(run[1] for run in runs) for name, runs in found.items()},
        "peak_bytes": memory,
        "imod/copy": _ratio(found["imod"], found["copy"]),
    }
    if peft:
        result["peft/imod"] = _ratio(found["peft"], found["imod"])
        result["peft/imod memory"] = memory["peft"] / memory["imod"]
    return result


def _ratio(runs: list[tuple[float, float, int]], others: list[tuple[float, float, int]]) -> float:
    """Median over the rounds of the ratio of seconds within each."""
    return statistics.median(a[0] / b[0] for a, b in zip(runs, others, strict=True))


def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files lie while it runs; default temporary files")
    parser.add_argument("--no-peft", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="imod-merge-") as place:
        result = compare(Path(place), options.gb, options.rounds, not options.no_peft)
    if options.json:
        print(json.dumps(result))
    else:
        for name in result["seconds"]:
            seconds, cpu, peak = (result[key][name] for key in ("seconds", "cpu_seconds", "peak_bytes"))
            print(f"{name:5} {seconds:7.1f} s {cpu:7.1f} s of CPU {peak / 1e6:8.0f} MB")
        print(f"merge / copy {result['imod/copy']:.2f} ({result['bytes'] / 1e9:.1f} GB of weights)")
        if not options.no_peft:
            print(f"PEFT / merge {result['peft/imod']:.2f} in time, {result['peft/imod memory']:.1f} in memory")


if __name__ == "__main__":
    main()
