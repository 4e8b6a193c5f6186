"""vLLM's command line and environment for one artifact: what people forget, and what the user overrides."""

import json
import os
import re
from collections.abc import Sequence

from imod_core.errors import InputError
from imod_serve.artifact import Artifact
from imod_serve.limits import LIMITS, LOOPBACK_ONLY, NOWHERE, Limits
from imod_serve.lora import ServedAdapter
from imod_serve.vllm_plugin import CONNECTOR, VIDEO_BACKEND

MAX_LEN_CPU = 4096
"""Tokens; on a CPU the KV cache of longer prompts does not fit into the space that we give it by default."""
BATCH, LONGEST_BATCH = 8_192, 32_768
"""Tokens that a GPU computes at once: vLLM's own default at least, more for the sake of long videos."""
SEQUENCES_CPU = 8
"""Requests answered at once on a CPU."""
GUARD = "imod_serve.guard.Guard"
SEQUENCES_A_REQUEST, PROMPTS_A_REQUEST = 16, 64
"""Answers (`n`) and text prompts; vLLM by itself allows thousands."""
BASE_SUFFIX = "-base"
"""Added to the model's name for the base under a served adapter."""
HEADLESS = "--headless"
"""vLLM's flag for a further host, whose engines answer no HTTP."""
ONE_PROCESS = {"--distributed-executor-backend": "uni"}
"""The model in the engine's own process: on a CPU a third less start-up time and memory than with a worker."""
PARALLEL = {
    *("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size", "distributed-executor-backend"),
    *("tp", "pp", "dp"),
}
"""Flags that ask for more than one worker, or for a way to run them."""
OURS = {
    "host": "--host",
    "port": "--port",
    "served-model-name": "--name",
    "model": "DIR",
    "allowed-media-domains": "--allow-media-domain",
    "limit-mm-per-prompt": "--limit images=N",
}
"""vLLM flags that the launcher must know itself, and what to use instead."""
UNSAFE = {
    "api-key": "would show the key in the process list: set IMOD_API_KEY or give --api-key-file",
    "hf-token": "would show the token in the process list: set HF_TOKEN",
    "config": "takes flags from a file, past these checks: write them after --",
    "allowed-local-media-path": "lets clients read files of this machine: send their content instead",
    "trust-request-mm-kwargs": "lets clients choose how many frames are decoded: set --media-io-kwargs for all",
    "trust-request-chat-template": "lets clients run templates of their own: give --chat-template",
    "enable-mm-embeds": "takes tensors from clients, past all limits on media: send the media",
    "enable-prompt-embeds": "takes tensors from clients, past all limits on media: send the prompt",
    "grpc": "takes requests past our layer: use HTTP",
    "grpc-port": "takes requests past our layer: use HTTP",
    "enable-scale-out": "takes tensors from clients, past all limits on media: start vLLM's workers apart",
    "tokens-only": "takes tensors from clients, past all limits on media: send the media",
    "enable-fault-tolerance": "opens routes that steer the engine: give --restart",
    "uds": "hides the server from the probe: put a proxy on the socket in front of it",
    "ssl-keyfile": "hides the server from the probe: end TLS in a proxy in front of it",
    "ssl-certfile": "hides the server from the probe: end TLS in a proxy in front of it",
}
"""vLLM flags that undo what this launcher promises, each with its reason and the way out."""
UNSAFE_VARIABLES = {
    "VLLM_SERVER_DEV_MODE": "opens routes that steer the engine",
    "VLLM_USE_RUST_FRONTEND": "takes requests past our layer",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "lets clients load adapters from any path",
}


def server_flags(
    artifact: Artifact,
    *,
    name: str,
    host: str,
    port: int,
    cpu: bool,
    limits: Limits | None = None,
    domains: Sequence[str] = (),
    adapter: ServedAdapter | None = None,
    dtype: str | None = None,
    max_model_len: int | None = None,
    json_logs: bool = False,
    extra: Sequence[str] = (),
) -> list[str]:
    """Arguments of `vllm serve`, the model folder first, our layer (`guard`) last, so that it is the outermost.

    `extra` are the user's own flags: each replaces ours of the same name. Raises InputError for those that would
    bypass the launcher, and for those that undo what it promises.
    """
    _check_extra(extra)
    ours = {"--served-model-name": name, "--host": host, "--port": str(port)}
    ours["--disable-access-log-for-endpoints"] = "/health,/ready,/metrics,/ping"
    ours["--dtype"] = dtype or artifact.dtype or "auto"
    ours |= _length(artifact, max_model_len, cpu) | _media(artifact, limits or Limits())
    if artifact.chat_template:
        ours["--chat-template"] = str(artifact.chat_template)
    if adapter:
        ours |= _lora(adapter, name)
    if json_logs:
        ours["--logging-config"] = json.dumps({"formatter": "json"})
    given = {_name(flag) for flag in extra if flag.startswith("-")}
    if cpu:
        ours |= {"--enforce-eager": "", "--max-num-seqs": str(SEQUENCES_CPU)}
        if not given & PARALLEL:
            ours |= ONE_PROCESS
    kept = [part for flag, value in ours.items() if _name(flag) not in given for part in (flag, value) if part]
    folder = adapter.base if adapter else artifact.folder
    return [str(folder), *kept, "--allowed-media-domains", *(domains or [NOWHERE]), *extra, "--middleware", GUARD]


def server_environment(
    flags: Sequence[str], *, cpu: bool, api_key: str | None, limits: Limits | None = None, loopback: bool = False
) -> dict[str, str]:
    """The child's environment: this one's, our key under vLLM's name, what vLLM needs; set values are kept.

    `loopback` says that the server listens on this machine alone.
    """
    limits = limits or Limits()
    environment = dict(os.environ)
    environment.pop("IMOD_API_KEY", None)
    for variable, what in UNSAFE_VARIABLES.items():
        if environment.get(variable, "0") not in ("", "0"):
            raise InputError(f"{variable} is set, which {what}: unset it, or start vLLM without `imod serve`.")
    defaults = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "PYTHONUNBUFFERED": "1",
        **_vllm_limits(limits),
    }
    if cpu:
        # Compiling costs the first request half a minute on a CPU, even with --enforce-eager.
        defaults |= {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCH_COMPILE_DISABLE": "1"}
        if {*ONE_PROCESS, *ONE_PROCESS.values()} <= set(flags):
            # vLLM replaces "uni" on a CPU unless this says that no worker process is wanted.
            defaults["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    environment = defaults | environment | {LIMITS: limits.to_json(), "VLLM_MEDIA_CONNECTOR": CONNECTOR}
    if api_key:
        environment["VLLM_API_KEY"] = api_key
    elif loopback:
        environment[LOOPBACK_ONLY] = "1"
    return environment


def _vllm_limits(limits: Limits) -> dict[str, str]:
    """What vLLM itself can be told to refuse."""
    megabytes = str(max(1, limits.request_bytes >> 20))
    return {
        "VLLM_MAX_IMAGE_PIXELS": str(max(limits.image_pixels, limits.video_pixels)),
        "VLLM_MAX_AUDIO_DECODE_DURATION_S": str(limits.audio_seconds),
        "VLLM_MAX_AUDIO_DECODE_BYTES": str(limits.audio_bytes),
        "VLLM_MAX_AUDIO_CLIP_FILESIZE_MB": megabytes,
        "VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB": megabytes,
        "VLLM_MAX_N_SEQUENCES": str(SEQUENCES_A_REQUEST),
        "VLLM_MAX_COMPLETION_PROMPTS": str(PROMPTS_A_REQUEST),
    }


def _length(artifact: Artifact, asked: int | None, cpu: bool) -> dict[str, str]:
    if asked and artifact.max_positions and asked > artifact.max_positions:
        raise InputError(
            f"--max-model-len is {asked}: {artifact.folder} takes {artifact.max_positions} tokens at most."
        )
    length = asked or artifact.max_positions
    if not length:
        return {}
    length = min(length, MAX_LEN_CPU) if cpu and not asked else length
    flags = {"--max-model-len": str(length)}
    if artifact.frames and artifact.frames.rule:
        # A video longer than vLLM's batch is refused, unless as many tokens as 14 pictures hold it: limits on pictures
        # would be limits on the length of videos.
        flags["--max-num-batched-tokens"] = str(min(max(length, BATCH), LONGEST_BATCH) if not cpu else length)
    return flags


def _media(artifact: Artifact, limits: Limits) -> dict[str, str]:
    """Media in a request, and frame sampling as in training."""
    if not artifact.modalities:
        return {}
    flags = {"--limit-mm-per-prompt": json.dumps(limits.by_modality(artifact.modalities))}
    if artifact.frames:
        backend = {"video_backend": VIDEO_BACKEND} if artifact.frames.rule else {}
        flags["--media-io-kwargs"] = json.dumps({"video": {**backend, **artifact.frames.to_json()}})
    if artifact.frame_tokens:
        # vLLM reserves memory for a video by these, and would by the folder's own reserve it for two frames.
        cap = {"cap_pixels_per_frame": True, "max_video_tokens": artifact.frame_tokens}
        flags["--mm-processor-kwargs"] = json.dumps({"videos_kwargs": cap})
    return flags


def _lora(adapter: ServedAdapter, name: str) -> dict[str, str]:
    """The adapter under the model's name, and its base under one of its own."""
    return {
        "--served-model-name": f"{name}{BASE_SUFFIX}",
        "--enable-lora": "",
        "--max-lora-rank": str(adapter.max_rank),
        "--lora-modules": f"{name}={adapter.folder}",
    }


def _check_extra(extra: Sequence[str]) -> None:
    for flag in extra:
        if not flag.startswith("--"):
            continue
        name = _name(flag)
        # vLLM's parser takes beginnings of its flags for the whole.
        for ours in (full for full in OURS if full == name or (full.startswith(name) and len(name) > 1)):
            raise InputError(f"--{ours} after -- is not passed on: give {OURS[ours]} to `imod serve` itself.")
        for unsafe in (full for full in UNSAFE if full == name or (full.startswith(name) and len(name) > 1)):
            raise InputError(f"--{unsafe} {UNSAFE[unsafe]}, or start vLLM without `imod serve`.")


def _name(flag: str) -> str:
    """`--no-enforce_eager=x`, `--enforce-eager.key` and `--enforce-eager` are about the same thing."""
    return re.split(r"[=.+]", flag, maxsplit=1)[0].replace("_", "-").lstrip("-").removeprefix("no-")
