"""vLLM's `LLM` in this process as `imod serve` would start it: `python run_family.py FOLDER REQUESTS OUT`.

REQUESTS is a pickle: name -> keyword arguments of `generate`, or of `chat` where they hold `messages`. OUT gets
name -> [prompt ids, [(token id, logprob), ...]] of a greedy answer as JSON.
"""

import json
import os
import pickle
import sys
from pathlib import Path

TOKENS = 6
OPTIONS = ("--media-io-kwargs", "--mm-processor-kwargs")


def main(folder: str, requests: str, out: str) -> None:
    from imod_export.vllm_worker import ENVIRONMENT
    from imod_serve.artifact import read_artifact
    from imod_serve.flags import server_flags
    from imod_serve.vllm_main import name_cpu_build

    os.environ |= ENVIRONMENT
    name_cpu_build()
    from vllm import LLM, SamplingParams

    flags = server_flags(read_artifact(folder), name="m", host="127.0.0.1", port=1, cpu=True)
    options = {
        flag.lstrip("-").replace("-", "_"): json.loads(flags[flags.index(flag) + 1])
        for flag in OPTIONS
        if flag in flags
    }
    asked, suppressed = pickle.loads(Path(requests).read_bytes())
    llm = LLM(
        folder,
        dtype="float32",
        max_model_len=3072,
        enforce_eager=True,
        max_num_seqs=2,
        limit_mm_per_prompt=dict.fromkeys(read_artifact(folder).modalities, 2),
        distributed_executor_backend="uni",
        **options,
    )
    bias = dict.fromkeys(suppressed, -100.0)
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS, logprobs=0, ignore_eos=True, logit_bias=bias)
    answers = {}
    for name, request in asked.items():
        ask = llm.chat if "messages" in request else llm.generate
        found = ask(**{"sampling_params": sampling, "use_tqdm": False, **request})[0]
        output = found.outputs[0]
        chosen = [(t, row[t].logprob) for t, row in zip(output.token_ids, output.logprobs, strict=True)]
        answers[name] = [list(found.prompt_token_ids), chosen]
    Path(out).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
