"""Casting merged weights to fewer bits, and what that costs of the update.

Letters: `W` the base's values, `Δ` the update, `W'` what is stored of `W + Δ`. Rounding to nearest swallows whatever
of Δ is below half a unit in the last place of W; stochastic rounding keeps it on average, at the price of more noise.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt

import numpy as np
import torch

MODES = ("nearest", "stochastic")
WARN_LOST = 0.1
"""Share of an update lost to rounding above which a merge warns."""
COST_ROWS, COST_VALUES = 16, 1 << 15
"""What rounding costs is seen from so many rows at least, and about so many values."""


@dataclass(frozen=True)
class Rounding:
    """How weights with a low-rank update are cast to fewer bits; all others go to the nearest number."""

    mode: str = "nearest"
    seed: int = 0
    """Of stochastic rounding; each block has a stream of its own, so that order, shards and threads do not matter."""

    def generator(self, name: str, first: int = 0) -> np.random.Generator | None:
        """The random numbers for the rows of the tensor `name` from `first`; None where none are needed."""
        if self.mode == "nearest":
            return None
        digest = hashlib.sha256(f"{self.seed}:{name}:{first}".encode()).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def cast_into(target: torch.Tensor, values: torch.Tensor, generator: np.random.Generator | None) -> None:
    """Write float32 `values` to `target`: to the nearest number, or with a generator to one of the two around, by
    chance.

    The chance of each is its share of the gap, so that the expectation is the value itself.
    """
    near = target.copy_(values)
    if generator is None or target.dtype == torch.float32:
        return
    error = values - near.float()
    far = _neighbour(near, up=error > 0)
    share = error.abs() / (far.float() - near.float()).abs()
    chance = torch.from_numpy(generator.random(values.numel(), dtype=np.float32)).view_as(values)
    torch.where((chance < share) & far.isfinite(), far, near, out=target)


def _neighbour(values: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The next number of a 16-bit dtype above, or below."""
    bits = values.view(torch.int16)
    away = up == (values > 0)
    step = torch.where(away, 1, -1).to(torch.int16)
    smallest = torch.where(up, 1, -(2**15) + 1).to(torch.int16)
    return torch.where(values == 0, smallest, bits + step).view(values.dtype)


@dataclass
class RoundingCost:
    """Sums over the blocks of one tensor."""

    name: str
    weight: float = 0.0
    """Σ W²."""
    update: float = 0.0
    """Σ Δ²."""
    arrived: float = 0.0
    """Σ (W' - W) Δ."""
    error: float = 0.0
    """Σ (W' - W - Δ)²."""
    swallowed: int = 0
    """Values that Δ should move and that are W's still."""
    moved: int = field(default=0)
    """Values that Δ should move."""

    def add(self, base: torch.Tensor, update: torch.Tensor, stored: torch.Tensor) -> None:
        """Take in a block of W, Δ and W'."""
        change = stored.float() - base
        touched = update != 0
        self.weight += _dot(base, base)
        self.update += _dot(update, update)
        self.arrived += _dot(change, update)
        self.error += _dot(change - update, change - update)
        self.moved += int(touched.sum())
        self.swallowed += int((touched & (change == 0)).sum())

    def result(self) -> dict[str, float | str]:
        """By name: `strength` |Δ|/|W|, `lost` the share of Δ that did not arrive, `noise` |W' - W - Δ|/|Δ|, and the
        share of values that rounding left `unmoved`."""
        scale = max(self.update, 1e-300)
        return {
            "name": self.name,
            "strength": sqrt(self.update / max(self.weight, 1e-300)),
            "lost": 1 - self.arrived / scale if self.update else 0.0,
            "noise": sqrt(self.error / scale) if self.update else 0.0,
            "unmoved": self.swallowed / max(self.moved, 1),
        }


def sampled_rows(covered: Sequence[range], columns: int) -> list[int]:
    """Rows from which the cost is seen, evenly over the rows `covered` by updates, which have `columns` values each."""
    count = sum(map(len, covered))
    seen = min(count, max(COST_ROWS, COST_VALUES // max(columns, 1)))
    places = [number * count // seen for number in range(seen)]
    found, before = [], 0
    for rows in covered:
        found += [rows[place - before] for place in places if before <= place < before + len(rows)]
        before += len(rows)
    return found


def _dot(x: torch.Tensor, y: torch.Tensor) -> float:
    return torch.dot(x.flatten(), y.flatten()).double().item()
