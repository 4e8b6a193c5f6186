"""What IMoD shows while it trains: how hard the constraints pull, what they silence, and who owns A's gradient.

Measured in single backward passes, on request, and never read before someone asks, so that no device waits.
Letters: `B` batch, `L` tokens, `d` in-features, `r` rank.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from imod_train.constraints import Projected, energies
from imod_train.masks import layer_index
from imod_train.tokens import TokenBatch

MEMORY = 0.9
"""Weight of what was measured before in the running Fisher information."""
GROUPS = 3
"""Layers are reported in so many groups of equal depth."""


class Parts(NamedTuple):
    """A gradient of A in its two parts, (r, d) each."""

    task: torch.Tensor
    injected: torch.Tensor


class Signals(NamedTuple):
    """Squared norms and one share, measured in one backward of one module; as a tensor, (7,)."""

    task: torch.Tensor
    """Task gradient of A."""
    injected: torch.Tensor
    """What the constraints added to it."""
    text_foreign: torch.Tensor
    """|(A∘M_o) X_t|², the part of text that passes through the non-text block."""
    text_total: torch.Tensor
    """|A X_t|²."""
    other_foreign: torch.Tensor
    """|(A∘M_t) X_o|²."""
    other_total: torch.Tensor
    """|A X_o|²."""
    dominated: torch.Tensor
    """Share of A's elements whose running Fisher information is larger at non-text tokens than at text tokens."""


class Meter:
    """The measurements of one A matrix."""

    def __init__(self) -> None:
        self.latest: torch.Tensor | None = None
        """`Signals` as one tensor, (7,), on its device."""
        self.lead: torch.Tensor | None = None
        """(r, d) running mean of the Fisher information at non-text tokens less that at text tokens."""

    def measure(
        self, parts: Parts, projected: Projected, task: torch.Tensor, X: torch.Tensor, batch: TokenBatch
    ) -> None:
        """Measure one backward: `parts` of the gradient, `task` (B·L, r), `X` (B·L, d)."""
        member, _, _ = batch.counted(X.device, projected.shared.dtype)
        whole = projected.exclusive.sum(2) + projected.shared
        foreign, total = energies(projected, whole, member)
        self.latest = torch.stack(
            Signals(
                task=parts.task.square().sum(),
                injected=parts.injected.square().sum(),
                text_foreign=foreign[0],
                text_total=total[0],
                other_foreign=foreign[1],
                other_total=total[1],
                dominated=self._dominated(task, X, member, batch),
            )
        )

    def _dominated(self, task: torch.Tensor, X: torch.Tensor, member: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
        """Fisher information of an element: the mean over rows of its squared task gradient, Σ over the positions
        of one modality; rows of a batch are told apart, packed samples within a row are not."""
        tokens = member.shape[1:]
        rows = (member.unsqueeze(-1) * task.view(*tokens, -1)).to(X.dtype)  # (2, B, L, r)
        by_row = (rows.mT @ X.view(*tokens, -1)).to(member.dtype)  # (2, B, r, d)
        text, other = (by_row / batch.multiplier(X.device, member.dtype)).square().mean(1)
        lead = torch.nan_to_num(other - text, 0.0, 0.0, 0.0)  # a step whose loss scale overflowed says nothing
        self.lead = lead if self.lead is None else torch.lerp(lead, self.lead, MEMORY)
        return (self.lead > 0).to(member.dtype).mean()


def summarise(meters: Mapping[str, Meter], elements: Mapping[str, int]) -> dict[str, float]:
    """The latest measurements of the modules, over all and by group of layers (`…/layers_0-9`); waits for the device.

    `injected_over_task`: norm of what the constraints add to the gradients of all A over the task's norm; left out
    while the task gradient is zero, as in LoRA's first step where B = 0. `text_foreign_energy`: |(A∘M_o) X_t|²/|A
    X_t|², mean over modules; `non_text_foreign_energy` its mirror. `non_text_dominance`: share of all elements of A
    whose running Fisher information is larger at non-text than at text tokens.
    """
    names = [name for name, meter in meters.items() if meter.latest is not None]
    if not names:
        return {}
    table = torch.stack([meters[name].latest.double().cpu() for name in names])  # type: ignore[union-attr]
    sizes = torch.tensor([elements[name] for name in names], dtype=torch.float64)
    found = _ratios(table, sizes)
    for group, rows in layer_groups(names).items():
        found |= {f"{name}/{group}": ratio for name, ratio in _ratios(table[rows], sizes[rows]).items()}
    return {f"imod/{name}": ratio for name, ratio in found.items()}


def _ratios(table: torch.Tensor, sizes: torch.Tensor) -> dict[str, float]:
    columns = Signals(*table.unbind(1))
    ratios = {
        "injected_over_task": (columns.injected.sum() / columns.task.sum()).sqrt(),
        "text_foreign_energy": (columns.text_foreign / columns.text_total).nanmean(),
        "non_text_foreign_energy": (columns.other_foreign / columns.other_total).nanmean(),
        "non_text_dominance": (columns.dominated * sizes).sum() / sizes.sum(),
    }
    return {name: float(ratio) for name, ratio in ratios.items() if torch.isfinite(ratio)}


def layer_groups(names: list[str]) -> dict[str, list[int]]:
    """Places in `names` by group of layers; a module outside the layers is in none."""
    layers = [layer_index(name) for name in names]
    depth = max((layer + 1 for layer in layers if layer is not None), default=0)
    groups: dict[str, list[int]] = {}
    count = min(GROUPS, depth)
    for number in range(count):
        first, last = number * depth // count, (number + 1) * depth // count - 1
        inside = [place for place, layer in enumerate(layers) if layer is not None and first <= layer <= last]
        if inside:
            groups[f"layers_{first}-{last}"] = inside
    return groups
