"""A PEFT LoRA adapter as a merge needs it: pairs of A and B with their scale, and saved modules. Headers only."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imod_core.errors import InputError, MissingFileError
from imod_export.names import without_peft
from imod_export.tensors import DTYPES, TensorInfo, read_json, read_shard

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base as it is; the others (pissa, olora, loftq …) take something out of it."""
UNSUPPORTED = {
    "use_dora": "DoRA's magnitudes",
    "lora_bias": "LoRA biases",
    "layer_replication": "replicated layers",
    "target_parameters": "LoRA on bare parameters",
    "trainable_token_indices": "trained token rows",
    "alora_invocation_tokens": "activated LoRA, which depends on the prompt",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QA-LoRA",
    "monteclora_config": "MonteCLoRA",
}
"""Settings of PEFT's LoraConfig, when set, under which `W + s·BA` is not the whole of the adapter."""
_LORA = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?$")


@dataclass(frozen=True)
class LoraPair:
    """The low-rank update `scale · B·A` of one module's weight."""

    module: str
    """The module's name in the base model at training time."""
    a: TensorInfo
    """(r, in…)."""
    b: TensorInfo
    """(out, r…)."""
    scale: float
    """alpha / r, or alpha / sqrt(r) under rsLoRA."""
    transposed: bool
    """The weight is (in, out): embeddings and GPT-2's Conv1D."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that this updates."""
        out, inner = self.b.shape[0], self.a.shape[1:]
        return (*inner, out) if self.transposed else (out, *inner)


@dataclass(frozen=True)
class Adapter:
    """What an adapter folder changes in its base."""

    folder: Path
    config: dict[str, Any]
    pairs: tuple[LoraPair, ...]
    saved: dict[str, TensorInfo]
    """Tensors that replace the base's, by the base's name at training time."""


def read_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`.

    Raises:
        MissingFileError: a file of it is missing.
        InputError: it is no LoRA adapter, holds something that cannot be merged, or contradicts its configuration.
    """
    if not (folder / CONFIG).is_file():
        raise MissingFileError(f"{folder} is no adapter folder: it has no {CONFIG}; give a run or a PEFT adapter.")
    config = read_json(folder / CONFIG)
    _check_config(config, folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        found = "only a pickle" if (folder / "adapter_model.bin").is_file() else "no weights"
        raise MissingFileError(f"{folder} holds {found}: expected {WEIGHTS}; save it anew with PEFT's save_pretrained.")
    tensors: dict[str, TensorInfo] = {}
    for info in read_shard(folder / WEIGHTS).tensors:
        name = without_peft(info.name)
        if name in tensors:
            raise InputError(f"{folder / WEIGHTS} holds '{name}' twice: expected one adapter in the file.")
        if info.dtype not in DTYPES.values():
            raise InputError(f"{folder / WEIGHTS} holds '{name}' as {info.dtype}: expected {', '.join(DTYPES)}.")
        tensors[name] = info
    if not tensors:
        raise InputError(f"{folder / WEIGHTS} holds no tensors: there is nothing to merge.")
    return _sort_out(folder, config, tensors)


def scale_of(config: dict[str, Any], module: str) -> tuple[int, float]:
    """Rank and scale of a module, its patterns looked up as PEFT does: the first key that ends the module's name."""
    rank = _by_pattern(config.get("rank_pattern"), module, config.get("r"))
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _check_config(config: dict[str, Any], path: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise InputError(f"{path} describes a {config.get('peft_type')} adapter: only LORA can be merged here.")
    for key, what in UNSUPPORTED.items():
        if config.get(key):
            raise InputError(f"{path} sets {key}: {what} cannot be merged as W + s·BA; merge it with PEFT instead.")
    if config.get("bias", "none") != "none":
        raise InputError(f"{path} has bias '{config['bias']}': only adapters with bias 'none' can be merged here.")
    if not any(config.get("init_lora_weights") is v or config.get("init_lora_weights") == v for v in PLAIN_INITS):
        raise InputError(
            f"{path} has init_lora_weights '{config['init_lora_weights']}', which changes the base: "
            "convert the adapter to plain LoRA with PEFT's path_initial_model_for_weight_conversion."
        )
    numbers = [config.get("r"), config.get("lora_alpha")]
    for pattern in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(pattern) or {}, dict):
            raise InputError(f"{path} has a {pattern} that is no object: expected module names and numbers.")
        numbers += (config.get(pattern) or {}).values()
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and n > 0 for n in numbers):
        raise InputError(f"{path} has ranks and alphas {numbers}: expected numbers above 0.")


def _sort_out(folder: Path, config: dict[str, Any], tensors: dict[str, TensorInfo]) -> Adapter:
    sides: dict[str, dict[str, TensorInfo]] = {}
    embeddings, saved = set(), {}
    for name, info in tensors.items():
        if match := _LORA.match(name):
            sides.setdefault(match["module"], {})[match["side"]] = info
            embeddings.update([match["module"]] if match["embedding"] else [])
        elif ".lora_" in name or ".original_module." in name:
            raise InputError(f"{folder / WEIGHTS} holds '{name}', which plain LoRA does not have: it cannot be merged.")
        else:
            saved[name] = info
    pairs = [_pair(folder, config, module, found, module in embeddings) for module, found in sides.items()]
    return Adapter(folder, config, tuple(pairs), saved)


def _pair(folder: Path, config: dict[str, Any], module: str, found: dict[str, TensorInfo], embedding: bool) -> LoraPair:
    if len(found) != 2:
        raise InputError(f"{folder / WEIGHTS} holds only lora_{next(iter(found))} of '{module}': expected A and B.")
    a, b = found["A"], found["B"]
    rank, scale = scale_of(config, module)
    if len(a.shape) < 2 or len(b.shape) < 2 or a.shape[0] != b.shape[1] or math.prod(b.shape[2:]) != 1:
        raise InputError(f"'{module}' has A {list(a.shape)} and B {list(b.shape)}: expected (r, in) and (out, r).")
    if a.shape[0] != rank:
        raise InputError(f"'{module}' has rank {a.shape[0]}, but {folder / CONFIG} says {rank}: they must agree.")
    return LoraPair(module, a, b, scale, embedding or bool(config.get("fan_in_fan_out")))


def _by_pattern(pattern: dict[str, Any] | None, module: str, default: Any) -> Any:
    return next((value for key, value in (pattern or {}).items() if _ends(module, key)), default)


def _ends(module: str, key: str) -> bool:
    return re.match(rf"(.*\.)?({key})$", module) is not None
