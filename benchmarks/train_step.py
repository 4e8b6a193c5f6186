"""One training step of IMoD beside LoRA of the same shape: time and peak memory, measured in turn, medians.

    python benchmarks/train_step.py [--width 896] [--layers 4] [--tokens 512] [--ranks 4 16 64] [--json]

Every model is the same random Qwen2 stack with adapters on all linears and the same batch, half of it media
tokens; a step is forward and backward. `lora` is PEFT's own, `fused` the same LoRA through `imod_train.fused`
without constraints, `dora` PEFT's DoRA, `naive` the constraints as a loss for autograd. A ratio is the median over
rounds of two times taken in the same round: it says more than the seconds, which belong to the machine.
"""

import argparse
import json
import statistics
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2Config, Qwen2ForCausalLM

from imod_train import ImodConfig, attach
from imod_train.constraints import cosine
from imod_train.projection import ImodLinear

VOCABULARY, IMAGE = 1000, 999
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS = ("imod", "general", "sampled", "lora", "fused", "dora", "naive")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Step = Callable[[], None]


def make_model(options: argparse.Namespace, rank: int, dtype: torch.dtype, **changes: Any) -> PeftModel:
    """A random Qwen2 in `dtype` with a float32 LoRA adapter, ready to train."""
    torch.manual_seed(0)
    width = options.width
    config = Qwen2Config(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=options.layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 448),
        vocab_size=VOCABULARY,
        image_token_id=IMAGE,
        use_cache=False,
    )
    settings = {"r": rank, "lora_alpha": 16, "target_modules": LINEARS, "task_type": "CAUSAL_LM"}
    lora = LoraConfig(**{**settings, "init_lora_weights": False, **changes})
    base = Qwen2ForCausalLM(config).to(options.device, dtype)
    return get_peft_model(base, lora).train()


def make_step(name: str, options: argparse.Namespace, rank: int, dtype: torch.dtype) -> Step:
    """Forward and backward of one variant on a batch of one row."""
    model = make_model(options, rank, dtype, use_dora=name == "dora")
    ids = torch.randint(0, IMAGE, (1, options.tokens), generator=torch.Generator().manual_seed(0)).to(options.device)
    ids[:, : options.tokens // 2] = IMAGE
    extra = naive_constraint(model, ids == IMAGE) if name == "naive" else None
    handle = (
        attach(model, ImodConfig(), fused=name != "general")
        if name in ("imod", "general", "sampled", "fused")
        else None
    )
    if name == "fused":
        for module in handle.modules.values():
            module.gradient = task_gradient

    def step() -> None:
        model.zero_grad(set_to_none=True)
        if name == "sampled":
            handle.sample_next()
        with torch.autocast(options.device, dtype, enabled=dtype != torch.float32):
            loss = model(input_ids=ids, labels=ids).loss
        (loss if extra is None else loss + extra()).backward()
        if options.device == "cuda":
            torch.cuda.synchronize()

    return step


def task_gradient(
    A: torch.Tensor, x: torch.Tensor, hidden: torch.Tensor, task: torch.Tensor, batch: Any
) -> torch.Tensor:
    """LoRA's gradient of A alone."""
    return (task.T @ x.reshape(-1, x.shape[-1])).to(A.dtype)


def naive_constraint(model: PeftModel, media: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The constraints as a loss over what every A saw, which autograd differentiates."""
    handle = attach(model, ImodConfig())
    layers = [(module, [module.partition == block for block in range(3)]) for module in handle.modules.values()]
    handle.detach()
    terms: list[torch.Tensor] = []

    def add(masks: list[torch.Tensor]) -> Callable:
        def hook(module: ImodLinear, args: tuple) -> None:
            X = args[0].detach()
            text, other, shared = (X @ (module.weight * mask).T.to(X.dtype) for mask in masks)
            silent = other[~media].square().sum(-1).mean() + text[media].square().sum(-1).mean()
            s_t, s_o = shared[~media], shared[media]
            w = sum(cosine(s, s.mean(0)).mean() for s in (s_t.detach(), s_o.detach()))
            terms.append(0.01 * silent + 1e-4 * (1 - w * cosine(s_t.mean(0), s_o.mean(0))))

        return hook

    for module, masks in layers:
        module.register_forward_pre_hook(add(masks))

    def total() -> torch.Tensor:
        found = sum(terms)
        terms.clear()
        return found

    return total


def interleaved(steps: dict[str, Step], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each step in each round, taken in turn after one unmeasured round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for measured in [False, *[True] * rounds]:
        for name, step in steps.items():
            start = clock()
            step()
            if measured:
                seconds[name].append(clock() - start)
    return seconds


class LiveStorages(TorchDispatchMode):
    """Bytes of the storages that operations made and that still live, and the most at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {storage.data_ptr() for storage in _storages((args, kwargs))}
        for storage in _storages(found):
            address = storage.data_ptr()
            if address and address not in given and address not in self.live:
                self.live[address] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, address, None)
                self.most = max(self.most, sum(self.live.values()))
        return found


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def peak_bytes(step: Step, device: str) -> int:
    """The most memory that a step holds at once beyond what was there before it."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with LiveStorages() as storages:
        step()
    return storages.most


def measure(options: argparse.Namespace, rank: int, dtype: str) -> dict[str, Any]:
    """Medians of one rank and dtype."""
    steps = {name: make_step(name, options, rank, DTYPES[dtype]) for name in options.variants}
    seconds = interleaved(steps, options.rounds, CLOCKS[options.clock])
    memory = {name: peak_bytes(step, options.device) for name, step in steps.items()}
    return {
        "rank": rank,
        "dtype": dtype,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "peak_bytes": memory,
        **{f"{name}/{base}": ratio(seconds[name], seconds[base]) for name, base in compared(seconds)},
        **{f"memory {name}/{base}": memory[name] / memory[base] for name, base in compared(memory)},
    }


def compared(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Which variants are set against which."""
    pairs = [(name, "lora") for name in VARIANTS if name != "lora"] + [("imod", "fused"), ("sampled", "imod")]
    return [(name, base) for name, base in pairs if name in found and base in found]


def ratio(left: list[float], right: list[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(left, right, strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("width", 896), ("layers", 4), ("tokens", 512), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=[v for v in VARIANTS if v != "general"])
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu where others use the machine too")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    for dtype in options.dtypes:
        for rank in options.ranks:
            found = measure(options, rank, dtype)
            if options.json:
                print(json.dumps({**vars(options), **found}), flush=True)
                continue
            seconds = ", ".join(f"{name} {s:.3f} s" for name, s in found["seconds"].items())
            print(f"{dtype}, rank {rank} on {options.device}: {seconds}")
            pairs = ((key, value) for key, value in found.items() if "/" in key)
            print("    " + ", ".join(f"{key} {value:.3f}" for key, value in pairs), flush=True)


if __name__ == "__main__":
    main()
