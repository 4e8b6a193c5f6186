"""A merged model beside its base and beside the same adapter served unmerged, by vLLM's own bench client, in one run.

    python benchmarks/serve.py [--merged DIR --base DIR --lora DIR] [--kinds text picture sound mixed]
        [--concurrency 1 8 32] [--requests 4] [--tokens 32] [--rounds 5] [--json]

One server a side, all up at once and asked in turn with the same requests, in an order that is turned round every time;
new requests every round, so that nothing comes from a cache. Ratios are taken within a round, and their medians count.
`server cpu` is the processor time of the server's processes: on a machine that others use it says more than the clock.
Without folders a tiny random AVT with a random adapter is built and merged. vLLM takes an adapter's low-rank pairs
alone, so modules saved whole, as projectors, are left out on the unmerged side; that costs and saves no time.
"""

import argparse
import asyncio
import io
import itertools
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from imod_core.console import console, track
from imod_serve.launcher import Server
from imod_serve.messages import content_parts
from imod_serve.vllm_main import name_cpu_build

SIDES = ("base", "merged", "lora")
PAIRS = (("merged", "base"), ("merged", "lora"))
KINDS = {"text": "", "picture": "<image>", "sound": "<audio>", "mixed": "<image><audio>"}
"""What stands before the words of a request."""
UNITS = {
    "tokens a second": lambda run: run["output_throughput"],
    "first token ms": lambda run: 1000 * statistics.median(run["ttfts"]),
    "token ms": lambda run: statistics.median(run["tpots"]),
    "server cpu ms": lambda run: run["server_cpu_ms"],
}
"""Of one run of vLLM's bench client; `token` is after the first, `server cpu` for one request."""
WORDS = [
    "left",
    "right",
    "louder",
    "softer",
    "first",
    "last",
    "drum",
    "piano",
    "who",
    "what",
    "where",
    "plays",
    "is",
    "a",
]
ADAPTER = "adapter"
TARGETS = r".*\.language_model\..*_proj"
Run = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """A server and the model in it that is asked."""

    server: Server
    model: str
    body: dict[str, Any]
    """What every request holds besides its messages."""

    def ask(self, requests: list[Any], concurrency: int) -> Run:
        """What vLLM's bench client measures over all requests; one that fails ends the benchmark."""
        before = self._cpu()
        with redirect_stdout(io.StringIO()):
            run = asyncio.run(self._bench(requests, concurrency))
        if run["failed"]:
            sys.exit(f"{run['failed']} requests to {self.model} failed: {next(filter(None, run['errors']))[-500:]}")
        run["server_cpu_ms"] = 1000 * (self._cpu() - before) / len(requests)
        waits = zip(run["latencies"], run["ttfts"], run["output_lens"], strict=True)
        run["tpots"] = [1000 * (whole - first) / max(tokens - 1, 1) for whole, first, tokens in waits]
        return run

    def _bench(self, requests: list[Any], concurrency: int) -> Any:
        from vllm.benchmarks.serve import TaskType, benchmark

        return benchmark(
            task_type=TaskType.GENERATION,
            endpoint_type="openai-chat",
            api_url=f"{self.server.url}/v1/chat/completions",
            base_url=self.server.url,
            model_id=self.model,
            model_name=self.model,
            tokenizer=None,
            input_requests=requests,
            logprobs=None,
            request_rate=float("inf"),
            burstiness=1.0,
            disable_tqdm=True,
            num_warmups=0,
            profile=False,
            selected_percentile_metrics=[],
            selected_percentiles=[],
            ignore_eos=True,
            goodput_config_dict={},
            max_concurrency=concurrency,
            lora_modules=None,
            extra_headers=None,
            extra_body=self.body,
            ready_check_timeout_sec=0,
        )

    def _cpu(self) -> float:
        """Processor seconds so far of all processes of the server."""
        assert self.server.process is not None
        root = psutil.Process(self.server.process.pid)
        return sum(sum(process.cpu_times()[:2]) for process in (root, *root.children(recursive=True)))


def requests_of(kind: str, count: int, tokens: int, words: int, seed: str) -> list[Any]:
    """`count` chat requests with random words, pictures and sounds, for answers of exactly `tokens`."""
    from vllm.benchmarks.datasets import SampleRequest

    chance = random.Random(seed)
    requests = []
    for _ in range(count):
        media = {tag: [make(chance)] if tag in KINDS[kind] else [] for tag, make in MEDIA.items()}
        content = KINDS[kind] + " ".join(chance.choices(WORDS, k=words))
        messages = [{"role": "user", "content": content_parts(content, media)}]
        requests.append(SampleRequest(prompt="", prompt_len=0, expected_output_len=tokens, chat_messages=messages))
    return requests


def picture(chance: random.Random) -> bytes:
    """224 × 224 pixels of coloured squares, as PNG."""
    from PIL import Image

    squares = np.frombuffer(chance.randbytes(8 * 8 * 3), np.uint8).reshape(8, 8, 3)
    file = io.BytesIO()
    Image.fromarray(squares).resize((224, 224), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def sound(chance: random.Random) -> bytes:
    """Two seconds of a tone at 16 kHz, as WAV."""
    import soundfile

    time = np.arange(32_000) / 16_000
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * chance.uniform(200, 2000) * time), 16_000, format="WAV")
    return file.getvalue()


MEDIA: dict[str, Callable[[random.Random], bytes]] = {"<image>": picture, "<audio>": sound}


@contextmanager
def started(folders: dict[str, Path], most: int) -> Iterator[dict[str, Side]]:
    """All sides up at once, each ready for `most` requests together."""
    body = {"temperature": 0, "allowed_token_ids": letters(folders["base"])}
    rank = json.loads((folders["lora"] / "adapter_config.json").read_text())["r"]
    unmerged = ("--enable-lora", "--max-lora-rank", str(max(8, rank)), "--lora-modules", f"{ADAPTER}={folders['lora']}")
    with ExitStack() as stack:
        sides = {}
        for side in SIDES:
            folder = folders["merged" if side == "merged" else "base"]
            extra = ("--max-num-seqs", str(most), *(unmerged if side == "lora" else ()))
            server = stack.enter_context(Server(folder, name=side, extra=extra))
            sides[side] = Side(server, ADAPTER if side == "lora" else side, body)
        yield sides


def letters(folder: Path, most: int = 64) -> list[int]:
    """Token ids of plain letters, for answers whose every token is text of its own and can be sent at once.

    A random model would answer with pieces of characters, which are held back until they are whole, and with
    placeholders, for which there are no media.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = ((number, tokenizer.decode([number])) for number in range(tokenizer.get_vocab_size()))
    return list(itertools.islice((number for number, text in texts if text.isascii() and text.isalpha()), most))


def measure(sides: dict[str, Side], kind: str, concurrency: int, options: argparse.Namespace) -> dict[str, Any]:
    """Medians and ratios of one kind of request at one concurrency."""
    found: dict[str, dict[str, list[float]]] = {side: {unit: [] for unit in UNITS} for side in sides}
    for number in range(-1, options.rounds):  # the first warms up
        count, seed = concurrency * options.requests, f"{kind}, {concurrency} at once, round {number}"
        requests = requests_of(kind, count, options.tokens, options.words, seed)
        for side in list(sides) if number % 2 else reversed(sides):
            run = sides[side].ask(requests, concurrency)
            for unit, value in UNITS.items() if number >= 0 else ():
                found[side][unit].append(value(run))
    medians = {
        side: {unit: statistics.median(values) for unit, values in units.items()} for side, units in found.items()
    }
    ratios = {f"{a}/{b}": {unit: ratio(found[a][unit], found[b][unit]) for unit in UNITS} for a, b in PAIRS}
    prompt = statistics.median(run["input_lens"])
    return {"kind": kind, "concurrency": concurrency, "prompt tokens": prompt, "medians": medians, "ratios": ratios}


def ratio(left: list[float], right: list[float]) -> dict[str, float]:
    """Median, lowest and highest over the rounds of the ratio within a round."""
    values = [a / b for a, b in zip(left, right, strict=True)]
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def build(place: Path) -> dict[str, Path]:
    """A tiny AVT, a random adapter on the linears of its LLM, and the two merged."""
    from imod_core.avt.build import build_base
    from imod_export.export import ExportSettings, export

    folders = {"base": place / "base", "lora": place / "random", "merged": place / "merged"}
    build_base(folders["base"], preset="tiny", llm=None, vision=None, audio=None, seed=0, dtype="float32")
    make_adapter(folders["base"], folders["lora"])
    export(folders["lora"], folders["merged"], folders["base"], ExportSettings(parity=False))
    return folders


def make_adapter(base: Path, folder: Path) -> None:
    """A PEFT adapter of rank 8 with random A and B."""
    import peft
    import torch

    from imod_export.subject import load_model

    torch.manual_seed(0)
    settings = peft.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, init_lora_weights=False)
    peft.get_peft_model(load_model(base, "float32", "float32"), settings).save_pretrained(folder)


def pairs_alone(adapter: Path, folder: Path) -> Path:
    """`adapter` without modules saved whole, which vLLM refuses beside a base."""
    from safetensors.numpy import load_file, save_file

    config = json.loads((adapter / "adapter_config.json").read_text())
    folder.mkdir()
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({k: v for k, v in tensors.items() if ".lora_" in k}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": None}))
    return folder


def show(found: dict[str, Any]) -> None:
    """A block of lines for one measurement."""
    print(f"{found['kind']}, concurrency {found['concurrency']}, prompts of {found['prompt tokens']:.0f} tokens")
    print(f"    {'':16}" + "".join(f"{side:>10}" for side in SIDES) + "".join(f"{a + '/' + b:>26}" for a, b in PAIRS))
    for unit in UNITS:
        line = "".join(f"{found['medians'][side][unit]:10.1f}" for side in SIDES)
        for a, b in PAIRS:
            value = found["ratios"][f"{a}/{b}"][unit]
            line += f"{value['median']:12.3f} ({value['lowest']:.2f}–{value['highest']:.2f})"
        print(f"    {unit:16}{line}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("merged", "base", "lora"):
        parser.add_argument(f"--{name}", type=Path, help="a folder; all three or none")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=4, help="in a round, for each that runs at once")
    for name, value in (("tokens", 32), ("words", 48), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args()
    given = [options.merged, options.base, options.lora]
    if any(given) and not all(given):
        parser.error("give --merged, --base and --lora, or none of them")
    name_cpu_build()
    with tempfile.TemporaryDirectory(prefix="imod-serve-") as scratch:
        place = Path(scratch)
        if all(given):
            folders = {
                "base": options.base,
                "merged": options.merged,
                "lora": pairs_alone(options.lora, place / "lora"),
            }
        else:
            console.print("Building a tiny base, an adapter and the two merged")
            folders = build(place)
        with started(folders, max(options.concurrency)) as sides:
            steps = list(itertools.product(options.kinds, options.concurrency))
            for kind, concurrency in track(steps, "Measuring"):
                found = measure(sides, kind, concurrency, options)
                print(json.dumps(found), flush=True) if options.json else show(found)


if __name__ == "__main__":
    main()
