"""Tokens a second of greedy decoding: ONNX graphs beside transformers eager, interleaved, medians; sizes included.

    python benchmarks/onnx_decode.py [MODEL] [--onnx DIR] [--tokens 32] [--prompt 64] [--rounds 5] [--json]

MODEL is a model folder, its graphs lie in DIR, by default MODEL/onnx, with whatever forms are there; without MODEL a
small random AVT is built and exported. Everything generates the same number of tokens after the same prompt of text.
`weights alone` multiplies a vector with as many float32 numbers as the decoder has, once a token: what memory allows
any float32 decoder. Where onnxruntime-genai is installed, its own decoder is built from the same LLM, in float32 and 4
bits, and runs too. The ratios say more than the seconds, which belong to the machine.
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
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imod_export.onnx.export import export_onnx
from imod_export.onnx.layout import COMPONENTS, DECODER, FULL, file_name, variants_in
from imod_export.onnx.prompt import Prompt
from imod_export.onnx.runtime import OnnxModel
from imod_export.subject import load_model

EAGER, BOUND = "transformers", "weights alone"
GENAI = {"genai fp32": "fp32", "genai q4": "int4"}
"""onnxruntime-genai's precisions."""
Run = Callable[[], None]


def transformers_run(folder: Path, ids: list[int], tokens: int) -> Run:
    """Greedy decoding by `generate`, eager attention, float32."""
    model: Any = load_model(folder, "float32", "float32")
    model.set_attn_implementation("eager")
    prompt = torch.tensor([ids], device=model.device)

    @torch.inference_mode()
    def run() -> None:
        model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )

    return run


def onnx_run(folder: Path, variant: str, ids: list[int], tokens: int, threads: int) -> Run:
    """Greedy decoding by this project's runtime."""
    model = OnnxModel(folder, variant, threads)
    prompt, stops = Prompt(ids, np.arange(len(ids)), len(ids)), sorted(model.stops)
    return lambda: _check(len(model.greedy(prompt, tokens, stops)), tokens)


def bound_run(nbytes: float, tokens: int) -> Run:
    """One product of a vector with a float32 matrix of `nbytes` for each token."""
    columns = 1024
    matrix, vector = torch.ones(max(1, int(nbytes) // (4 * columns)), columns), torch.ones(columns)

    def run() -> None:
        for _ in range(tokens):
            matrix.mv(vector)

    return run


def genai_run(folder: Path, ids: list[int], tokens: int) -> Run:
    """Greedy decoding by onnxruntime-genai."""
    import onnxruntime_genai as genai

    model = genai.Model(str(folder))

    def run() -> None:
        settings = genai.GeneratorParams(model)
        length = len(ids) + tokens
        settings.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = genai.Generator(model, settings)
        generator.append_tokens(np.array([ids], np.int32))
        made = 0
        while not generator.is_done() and made < tokens:
            generator.generate_next_token()
            made += 1
        _check(made, tokens)

    return run


def build_genai(model: Path, precision: str, out: Path) -> None:
    """The LLM of `model` alone as onnxruntime-genai's builder makes it."""
    llm = out.parent / "llm"
    if not llm.exists():
        write_llm(model, llm)
    module = "onnxruntime_genai.models.builder"
    command = [sys.executable, "-m", module, "-i", llm, "-o", out, "-p", precision, "-e", "cpu", "-c", out.parent / "c"]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


def write_llm(model: Path, out: Path) -> None:
    """The LLM inside an AVT folder as a causal LLM of its own."""
    from transformers import AutoModelForCausalLM

    whole: Any = load_model(model, "float32", "float32").cpu()
    alone: Any = AutoModelForCausalLM.from_config(whole.config.text_config, dtype=torch.float32)
    alone.model.load_state_dict(whole.model.language_model.state_dict())
    alone.lm_head.load_state_dict(whole.lm_head.state_dict())
    alone.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(model / name, out / name)


def interleaved(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median seconds of each, taken in turn after one unmeasured round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for measured in [False, *[True] * rounds]:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if measured:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(model: Path, onnx: Path, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Speeds and sizes of everything that can run here."""
    if options.threads:
        torch.set_num_threads(options.threads)
    ids = np.random.default_rng(0).integers(20, 300, options.prompt).tolist()
    runs: dict[str, Run] = {EAGER: transformers_run(model, ids, options.tokens)}
    megabytes = {EAGER: sum(path.stat().st_size for path in model.glob("*.safetensors")) / 1e6}
    megabytes[BOUND] = _size(onnx / file_name(DECODER, FULL))
    runs[BOUND] = bound_run(megabytes[BOUND] * 1e6, options.tokens)
    for variant in variants_in(onnx):
        runs[f"onnx {variant}"] = onnx_run(onnx, variant, ids, options.tokens, options.threads)
        megabytes[f"onnx {variant}"] = sum(_size(onnx / file_name(name, variant)) for name in COMPONENTS)
    for name, precision in GENAI.items() if find_spec("onnxruntime_genai") and not options.no_genai else ():
        folder = scratch / precision
        build_genai(model, precision, folder)
        _set_threads(folder, options.threads)
        runs[name] = genai_run(folder, ids, options.tokens)
        megabytes[name] = sum(path.stat().st_size for path in folder.glob("model.onnx*")) / 1e6
    seconds = interleaved(runs, options.rounds)
    speeds = {name: options.tokens / value for name, value in seconds.items()}
    return {
        "tokens": options.tokens,
        "prompt": options.prompt,
        "tokens_per_second": speeds,
        "times_transformers": {name: speed / speeds[EAGER] for name, speed in speeds.items()},
        "megabytes": megabytes,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--onnx", type=Path)
    for name, value in (("tokens", 32), ("prompt", 64), ("rounds", 5), ("threads", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--no-genai", action="store_true", help="leave onnxruntime-genai out")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or _tiny(Path(scratch) / "base")
        onnx = options.onnx or model / "onnx"
        if not variants_in(onnx):
            onnx = Path(scratch) / "onnx"
            export_onnx(model, onnx, ("int8", "q4"))
        result = measure(model, onnx, options, Path(scratch))
    if options.json:
        print(json.dumps(result))
        return
    print(f"{'':14}{'tokens/s':>10}{'times':>8}{'MB':>8}")
    for name, speed in result["tokens_per_second"].items():
        print(f"{name:14}{speed:10.1f}{result['times_transformers'][name]:8.2f}{result['megabytes'][name]:8.0f}")


def _tiny(folder: Path) -> Path:
    from imod_core.avt.build import build_base

    build_base(folder, preset="tiny", llm=None, vision=None, audio=None, seed=0, dtype="float32")
    return folder


def _set_threads(folder: Path, threads: int) -> None:
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads or os.cpu_count()
    path.write_text(json.dumps(config))


def _size(path: Path) -> float:
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) / 1e6


def _check(made: int, wanted: int) -> None:
    assert made == wanted, f"{made} tokens instead of {wanted}"


if __name__ == "__main__":
    main()
