"""vLLM's engine in a process of its own: `python -m imod_export.vllm_worker FOLDER PLACE`, started by vllm_link.

Reads PLACE/requests.json and the arrays beside it, writes PLACE/replies.json: prompt ids, greedy tokens and, for each
of them, the best tokens with their log probabilities.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""That vLLM takes as the largest of its adapters."""


def main(folder: str, place: str) -> None:
    """Answer all requests."""
    os.environ |= {key: value for key, value in ENVIRONMENT.items() if key not in os.environ}
    from imod_serve.vllm_main import name_cpu_build

    name_cpu_build()
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    asked = json.loads((Path(place) / "requests.json").read_text())
    counts = [{kind: len(items) for kind, items in r["media"].items()} for r in asked["requests"]]
    limits = {kind: max(c.get(kind, 0) for c in counts) for c in counts for kind in c}
    options: dict[str, Any] = {"limit_mm_per_prompt": limits} if limits else {}
    lora = LoRARequest("adapter", 1, asked["adapter"]) if "adapter" in asked else None
    if lora:
        options |= {"enable_lora": True, "max_lora_rank": next(rank for rank in RANKS if rank >= asked["rank"])}
    llm = LLM(
        folder,
        dtype="float32",
        max_model_len=asked["length"],
        enforce_eager=True,
        max_num_seqs=4,
        max_logprobs=asked["support"],
        distributed_executor_backend="uni",
        # Both caches mistake a video for the same one where only the sound woven into it is another.
        mm_processor_cache_gb=0,
        enable_prefix_caching=False,
        **options,
    )
    # A placeholder that the model itself chooses would ask for a medium that is not there.
    bias = dict.fromkeys(asked["suppressed"], -100.0) or None
    sampling = SamplingParams(temperature=0, max_tokens=asked["max_tokens"], logprobs=asked["support"], logit_bias=bias)
    replies = {}
    for request in asked["requests"]:
        media_data = _media(Path(place), request["media"], request["clips"])
        prompt: Any = {"prompt": request["prompt"], "multi_modal_data": media_data}
        if request["options"]:
            prompt["mm_processor_kwargs"] = request["options"]
        replies[request["name"]] = _reply(llm.generate(prompt, sampling, use_tqdm=False, lora_request=lora)[0])
    (Path(place) / "replies.json").write_text(json.dumps(replies))


def _media(place: Path, names: dict[str, list[str]], clips: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Media as `LLM.generate` takes them: pictures, sounds at the processor's rate, frames with their places."""
    import numpy as np
    from PIL import Image

    found: dict[str, list[Any]] = {}
    for kind, files in names.items():
        arrays = [np.load(place / name, allow_pickle=False) for name in files]
        found[kind] = arrays
        if kind == "image":
            found[kind] = [Image.fromarray(array) for array in arrays]
        if kind == "video":
            told = [{**clip, "do_sample_frames": False} for clip in clips]
            found[kind] = list(zip(arrays, told, strict=True))
    return found


def _reply(output: Any) -> dict[str, Any]:
    answer = output.outputs[0]
    rows = [
        sorted(([token, entry.logprob] for token, entry in row.items()), key=lambda pair: -pair[1])
        for row in answer.logprobs
    ]
    return {"prompt": list(output.prompt_token_ids), "tokens": list(answer.token_ids), "rows": rows}


if __name__ == "__main__":
    main(*sys.argv[1:])
