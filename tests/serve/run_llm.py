"""vLLM's `LLM` in this process: `python run_llm.py FOLDER REQUESTS OUT [plain]`, started by test_vllm.py.

REQUESTS is a pickle: name -> (prompt text, vLLM's multi_modal_data). OUT gets name -> [(token id, logprob), ...] of
a greedy answer as JSON. `plain` does without this project's plugin and trusts the folder's own model code.
"""

import json
import os
import pickle
import sys
from pathlib import Path

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

TOKENS = 6


def main(folder: str, requests: str, out: str, how: str = "plugin") -> None:
    os.environ |= ENVIRONMENT | ({"VLLM_PLUGINS": "none"} if how == "plain" else {})
    from vllm import LLM, SamplingParams

    llm = LLM(
        folder,
        dtype="float32",
        max_model_len=1024,
        enforce_eager=True,
        max_num_seqs=4,
        limit_mm_per_prompt={"image": 2, "audio": 2, "video": 2},
        distributed_executor_backend="uni",
        trust_remote_code=how == "plain",
    )
    config = llm.llm_engine.model_config.hf_config
    assert type(config).__module__.startswith("imod_core") == (how == "plugin")
    placeholders = [config.image_token_id, config.audio_token_id, config.video_token_id]
    # A random model may answer with a placeholder, for which there would be no medium.
    sampling = SamplingParams(
        temperature=0, max_tokens=TOKENS, logprobs=0, ignore_eos=True, logit_bias=dict.fromkeys(placeholders, -100.0)
    )
    answers = {}
    for name, (prompt, media) in pickle.loads(Path(requests).read_bytes()).items():
        output = llm.generate({"prompt": prompt, "multi_modal_data": media}, sampling, use_tqdm=False)[0].outputs[0]
        answers[name] = [(t, entry[t].logprob) for t, entry in zip(output.token_ids, output.logprobs, strict=True)]
    Path(out).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
