"""The partition of a LoRA matrix into a text, a non-text and a shared block.

The blocks are interleaved at random, not cut out: each element of `A (r, d)` belongs to exactly one (the
paper's `M_t + M_o + M_s = 1`), in exact numbers. A partition is one uint8 code an element and is never
saved: seed and module name give it again, and a hash proves it.
"""

import hashlib
import re
from collections.abc import Mapping

import torch

from imod_core.errors import InputError
from imod_train.config import ImodConfig

TEXT_BLOCK, NON_TEXT_BLOCK, SHARED_BLOCK = 0, 1, 2
"""Codes of a partition: M_t, M_o and M_s of the paper."""

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)(?=\.|$)")


def layer_index(name: str) -> int | None:
    """Layer number in a module's name, `model.layers.7.mlp.up_proj` → 7; None when the module is in no layer."""
    numbers = _LAYER.findall(name)
    return int(numbers[-1]) if numbers else None


def shared_share(config: ImodConfig, layer: int | None, layers: int) -> float:
    """r_s(l) = r_s0 + alpha·l/L with layers counted from 0; a module outside the layers has r_s0."""
    share = config.shared_ratio + config.alpha * (layer or 0) / max(layers, 1)
    if share > 1:
        raise InputError(
            f"The IMoD settings shared_ratio {config.shared_ratio} and alpha {config.alpha} give layer {layer} of "
            f"{layers} a shared block of {share:.2f} of the matrix; lower one so that it is at most 1."
        )
    return share


def block_counts(elements: int, shared: float, text_ratio: float) -> tuple[int, int, int]:
    """Elements of the text, non-text and shared block; they sum to `elements`."""
    n_shared = round(shared * elements)
    n_text = round((elements - n_shared) * text_ratio / (1 + text_ratio))
    return n_text, elements - n_shared - n_text, n_shared


def make_partition(shape: tuple[int, int], name: str, seed: int, shared: float, text_ratio: float) -> torch.Tensor:
    """Partition codes, (r, d) uint8 on the CPU: exact counts, shuffled by a generator of this module's own."""
    rank, features = shape
    counts = torch.tensor(block_counts(rank * features, shared, text_ratio))
    codes = torch.arange(3, dtype=torch.uint8).repeat_interleave(counts)
    generator = torch.Generator().manual_seed(module_seed(seed, name))
    return codes[torch.randperm(rank * features, generator=generator)].view(rank, features)


def module_seed(seed: int, name: str) -> int:
    """63 bits from the seed and the module's name, the same in every process and on every machine."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def partitions_hash(partitions: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and codes in the order of names; two runs with one hash share all their masks."""
    digest = hashlib.sha256()
    for name in sorted(partitions):
        codes = partitions[name].cpu().contiguous()
        digest.update(f"{name}:{tuple(codes.shape)}:".encode())
        digest.update(codes.numpy().tobytes())
    return digest.hexdigest()
