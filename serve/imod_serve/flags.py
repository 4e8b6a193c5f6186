"""vLLM's command line and environment for one artifact: what people forget, and what the user overrides."""

import json
import os
from collections.abc import Sequence

from imod_core.errors import InputError
from imod_serve.artifact import Artifact
from imod_serve.vllm_plugin import VIDEO_BACKEND

MAX_LEN_CPU = 4096
"""Tokens; on a CPU the KV cache of longer prompts does not fit into the space that we give it by default."""
SEQUENCES_CPU = 8
"""Requests answered at once on a CPU."""
MEDIA_LIMITS = {"image": 4, "audio": 4, "video": 2}
"""Media of a kind in one request."""
NOWHERE = "media.invalid"
"""A name that can never exist (RFC 2606): the one domain media may come from, so that no URL is fetched."""
ONE_PROCESS = {"--distributed-executor-backend": "uni"}
"""The model in the engine's own process: on a CPU a third less start-up time and memory than with a worker."""
PARALLEL = {
    *("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size", "distributed-executor-backend"),
    *("tp", "pp", "dp"),
}
"""Flags that ask for more than one worker, or for a way to run them."""
OURS = {"--host": "--host", "--port": "--port", "--served-model-name": "--name", "--model": "DIR"}
"""vLLM flags that the launcher must know itself, and what to use instead."""


def server_flags(
    artifact: Artifact,
    *,
    name: str,
    host: str,
    port: int,
    cpu: bool,
    dtype: str | None = None,
    max_model_len: int | None = None,
    extra: Sequence[str] = (),
) -> list[str]:
    """Arguments of `vllm serve`, the model folder first.

    `extra` are the user's own flags: each replaces ours of the same name. Raises InputError for those that
    would bypass the launcher, the API key among them, which does not belong on a command line that `ps`
    shows.
    """
    _check_extra(extra)
    ours = {"--served-model-name": name, "--host": host, "--port": str(port)}
    ours["--dtype"] = dtype or artifact.dtype or "auto"
    ours |= _length(artifact, max_model_len, cpu) | _media(artifact)
    if artifact.chat_template:
        ours["--chat-template"] = str(artifact.chat_template)
    given = {_name(flag) for flag in extra if flag.startswith("-")}
    if cpu:
        ours |= {"--enforce-eager": "", "--max-num-seqs": str(SEQUENCES_CPU)}
        if not given & PARALLEL:
            ours |= ONE_PROCESS
    kept = [(flag, value) for flag, value in ours.items() if _name(flag) not in given]
    return [str(artifact.folder), *(part for pair in kept for part in pair if part), *extra]


def server_environment(flags: Sequence[str], *, cpu: bool, api_key: str | None) -> dict[str, str]:
    """The child's environment: this one's, our key under vLLM's name, what vLLM needs; set values are kept."""
    environment = dict(os.environ)
    environment.pop("IMOD_API_KEY", None)
    defaults = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "PYTHONUNBUFFERED": "1",
    }
    if cpu:
        # Compiling costs the first request half a minute on a CPU, even with --enforce-eager.
        defaults |= {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCH_COMPILE_DISABLE": "1"}
        if {*ONE_PROCESS, *ONE_PROCESS.values()} <= set(flags):
            # vLLM replaces "uni" on a CPU unless this says that no worker process is wanted.
            defaults["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    environment = defaults | environment
    if api_key:
        environment["VLLM_API_KEY"] = api_key
    return environment


def _length(artifact: Artifact, asked: int | None, cpu: bool) -> dict[str, str]:
    if asked and artifact.max_positions and asked > artifact.max_positions:
        raise InputError(
            f"--max-model-len is {asked}: {artifact.folder} takes {artifact.max_positions} tokens at most."
        )
    length = asked or artifact.max_positions
    if not length:
        return {}
    return {"--max-model-len": str(min(length, MAX_LEN_CPU) if cpu and not asked else length)}


def _media(artifact: Artifact) -> dict[str, str]:
    """Limits, frame sampling as in training, and no fetching of URLs that clients name."""
    if not artifact.modalities:
        return {}
    limits = {kind: MEDIA_LIMITS[kind] for kind in artifact.modalities}
    flags = {"--limit-mm-per-prompt": json.dumps(limits), "--allowed-media-domains": NOWHERE}
    if artifact.frames:
        backend = {"video_backend": VIDEO_BACKEND} if artifact.frames.rule else {}
        flags["--media-io-kwargs"] = json.dumps({"video": {**backend, **artifact.frames.to_json()}})
    return flags


def _check_extra(extra: Sequence[str]) -> None:
    for flag in extra:
        name = flag.split("=", 1)[0].replace("_", "-")
        if name == "--api-key":
            raise InputError(
                "--api-key would show the key in the process list: set IMOD_API_KEY or give --api-key-file."
            )
        if name in OURS:
            raise InputError(f"{name} after -- is not passed on: give {OURS[name]} to `imod serve` itself.")


def _name(flag: str) -> str:
    """`--no-enforce_eager=x` and `--enforce-eager` are about the same thing."""
    return flag.split("=", 1)[0].replace("_", "-").lstrip("-").removeprefix("no-")
