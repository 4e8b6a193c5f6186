"""A PEFT LoRA adapter as a merge needs it, from headers: pairs of A and B with their scale, whole tensors, rows."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imod_core.artifacts import read_json
from imod_core.errors import InputError, MissingFileError
from imod_export.names import without_peft
from imod_export.tensors import DTYPES, TensorInfo, read_shard

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base as it is; the others (pissa, olora, loftq …) take something out of it."""
UNSUPPORTED = {
    "use_dora": "DoRA's magnitudes",
    "lora_bias": "LoRA biases",
    "layer_replication": "replicated layers",
    "target_parameters": "LoRA on bare parameters",
    "alora_invocation_tokens": "activated LoRA, which depends on the prompt",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QA-LoRA",
    "monteclora_config": "MonteCLoRA",
}
"""Settings of PEFT's LoraConfig, when set, under which `W + s·BA` is not the whole of the adapter."""
_LORA = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?$")
_ROWS = re.compile(r"^(?P<module>.+)\.token_adapter\.trainable_tokens_delta$")
_UNDERNEATH = ".base_layer."
"""PEFT saves an embedding that LoRA sits on under this level."""


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
class TokenRows:
    """Rows of an embedding or head that take the place of the base's."""

    module: str
    values: TensorInfo
    """(tokens, d)."""
    indices: tuple[int, ...]
    """Token ids, each once."""


@dataclass(frozen=True)
class Adapter:
    """What an adapter folder changes in its base."""

    folder: Path
    config: dict[str, Any]
    pairs: tuple[LoraPair, ...]
    saved: dict[str, TensorInfo]
    """Tensors that replace the base's, by the base's name at training time."""
    rows: tuple[TokenRows, ...] = ()
    weight: float = 1.0
    """Share of the low-rank updates that is added; saved tensors and token rows know no other than 1."""

    @property
    def touched(self) -> list[str]:
        """Names of all base weights that change, as the adapter spells them."""
        modules = [pair.module for pair in self.pairs] + [rows.module for rows in self.rows]
        return [*(f"{module}.weight" for module in modules), *self.saved]


def read_adapter(folder: Path, weight: float = 1.0) -> Adapter:
    """The adapter in `folder`, to be added with `weight`.

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
    adapter = _sort_out(folder, config, tensors, weight)
    if weight != 1 and (adapter.saved or adapter.rows):
        raise InputError(
            f"{folder} holds whole tensors ({next(iter([*adapter.saved, *(r.module for r in adapter.rows)]))}) and is "
            f"given the weight {weight:g}: only low-rank updates can be weighted, give it the weight 1."
        )
    return adapter


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


def _sort_out(folder: Path, config: dict[str, Any], tensors: dict[str, TensorInfo], weight: float) -> Adapter:
    sides: dict[str, dict[str, TensorInfo]] = {}
    embeddings, saved, rows = set(), {}, {}
    for name, info in tensors.items():
        if match := _LORA.match(name):
            sides.setdefault(match["module"], {})[match["side"]] = info
            embeddings.update([match["module"]] if match["embedding"] else [])
        elif match := _ROWS.match(name):
            rows[match["module"]] = info
        elif ".lora_" in name or ".original_module." in name or ".token_adapter." in name:
            raise InputError(f"{folder / WEIGHTS} holds '{name}', which plain LoRA does not have: it cannot be merged.")
        else:
            plain = name.replace(_UNDERNEATH, ".")
            if plain in saved:
                raise InputError(f"{folder / WEIGHTS} holds '{plain}' twice: expected one adapter in the file.")
            saved[plain] = info
    pairs = [_pair(folder, config, module, found, module in embeddings) for module, found in sides.items()]
    return Adapter(folder, config, tuple(pairs), saved, _token_rows(folder, config, rows), weight)


def _token_rows(folder: Path, config: dict[str, Any], found: dict[str, TensorInfo]) -> tuple[TokenRows, ...]:
    """Which token ids the trained rows belong to: the configuration's list, or its list for the module's name."""
    wanted = config.get("trainable_token_indices")
    if bool(wanted) != bool(found):
        has = "names none" if not wanted else f"names some, but {WEIGHTS} holds none"
        raise InputError(f"{folder / CONFIG} {has}: trained token rows need trainable_token_indices and the rows.")
    rows = []
    for module, info in found.items():
        by_name = wanted if isinstance(wanted, dict) else {module: wanted}
        indices = next((found for name, found in by_name.items() if f".{module}".endswith(f".{name}")), None)
        ids = tuple(indices) if isinstance(indices, list) else ()
        whole = all(type(i) is int and i >= 0 for i in ids) and len(set(ids)) == len(ids)
        if not ids or not whole or len(info.shape) != 2 or info.shape[0] != len(ids):
            raise InputError(
                f"'{module}' of {folder} has token rows {list(info.shape)}, but trainable_token_indices in {CONFIG} "
                "does not name one token id for each of them: they must agree."
            )
        rows.append(TokenRows(module, info, ids))
    return tuple(rows)


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
