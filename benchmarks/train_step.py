"""One training step of IMoD beside plain LoRA of the same shape: time ratio, measured interleaved, medians.

    python benchmarks/train_step.py [--width 896] [--layers 4] [--tokens 512] [--rank 4] [--rounds 7] [--json]

Both models are random Qwen2 stacks with adapters on all linears and the same batch, half of it media tokens; a step
is forward and backward. The ratio says more than the seconds, which belong to the machine.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from imod_train import ImodConfig, attach

VOCABULARY, IMAGE = 1000, 999
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_model(width: int, layers: int, rank: int, device: str) -> PeftModel:
    """A random Qwen2 with a LoRA adapter, ready to train."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 448),
        vocab_size=VOCABULARY,
        image_token_id=IMAGE,
        use_cache=False,
    )
    lora = LoraConfig(r=rank, lora_alpha=16, target_modules=LINEARS, task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(Qwen2ForCausalLM(config), lora).to(device).train()


def make_step(model: PeftModel, tokens: int, device: str) -> Callable[[], None]:
    """Forward and backward on a batch of one row."""
    ids = torch.randint(0, IMAGE, (1, tokens), device=device, generator=torch.Generator(device).manual_seed(0))
    ids[:, : tokens // 2] = IMAGE

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids).loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def interleaved(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each step, taken in turn after one unmeasured round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for measured in [False, *[True] * rounds]:
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if measured:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("width", 896), ("layers", 4), ("tokens", 512), ("rank", 4), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {name: make_model(options.width, options.layers, options.rank, device) for name in ("lora", "imod")}
    attach(models["imod"], ImodConfig())
    steps = {name: make_step(model, options.tokens, device) for name, model in models.items()}
    seconds = interleaved(steps, options.rounds)
    result = {**vars(options), "device": device, "seconds": seconds, "imod/lora": seconds["imod"] / seconds["lora"]}
    if options.json:
        print(json.dumps(result))
    else:
        print(f"LoRA {seconds['lora']:.3f} s, IMoD {seconds['imod']:.3f} s, ratio {result['imod/lora']:.3f} ({device})")


if __name__ == "__main__":
    main()
