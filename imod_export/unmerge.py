"""The merge backwards: take the adapters out of a merged folder again, and see whether the base comes out.

Works on anybody's merge, tensor by tensor, without loading a model. What cannot come back is rounding: a merged value
may be off by one unit in the last place of the dtype it is stored in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from imod_core.console import console, track
from imod_core.errors import CheckFailed, InputError
from imod_export.export import ExportSettings, plan_of
from imod_export.layout import Output
from imod_export.names import canonical
from imod_export.plan import Change, MergePlan
from imod_export.source import find_sources
from imod_export.tensors import DTYPES, Checkpoint, TensorInfo, read_checkpoint
from imod_export.weight import TORCH_DTYPES, OpenFiles, Weight, read_values

UNITS = 1.0
"""Allowed distance in units in the last place of the stored value: half by rounding to nearest, up to one by chance."""
BLOCK_BYTES = 1 << 20
"""Of what is compared at once; several tensors of that size are in memory."""
SLACK = 2e-6
"""Of the update's and the base's size: sums in another order in float32."""


@dataclass(frozen=True)
class Residual:
    """What is left of one tensor when base and update are taken away."""

    name: str
    units: float
    """Largest value over what rounding explains; above 1 it does not."""


def unmerge(paths: Sequence[Path], merged: Path, base: Path | None, settings: ExportSettings) -> list[Residual]:
    """Compare `merged` less its adapters with the base; returns the residuals of the changed tensors.

    Raises:
        InputError, MissingFileError: unusable input, or a folder that is no merge of this base.
        CheckFailed: base and adapters do not explain the merged weights.
    """
    sources = find_sources(paths, base, settings.weights)
    plan, found = plan_of(sources, settings), read_checkpoint(merged)
    by_spelling = {canonical(name): info for name, info in found.tensors.items()}
    _check_names(plan, found, by_spelling)
    residuals = [
        _residual(output, plan.changes.get(output.name), by_spelling[canonical(output.name)])
        for output in track(plan.outputs, "Taking the adapter out again")
    ]
    wrong = [residual for residual in residuals if residual.units > 1]
    if wrong:
        worst = max(wrong, key=lambda residual: residual.units)
        raise CheckFailed(
            f"{len(wrong)} of {len(residuals)} tensors of {merged} are not base and adapter, first '{wrong[0].name}', "
            f"worst '{worst.name}' ({worst.units:.1e} times what rounding explains): merge it again with imod export."
        )
    changed = [residual for residual in residuals if residual.name in plan.changes]
    console.print(
        f"{merged} less the adapter is {sources.base}: {len(changed)} changed tensors come back within rounding "
        f"(at most {max(r.units for r in changed):.2f} of it), {len(residuals) - len(changed)} are untouched."
    )
    return changed


def _check_names(plan: MergePlan, found: Checkpoint, by_spelling: dict[str, TensorInfo]) -> None:
    for output in plan.outputs:
        info = by_spelling.get(canonical(output.name))
        if info is None or info.shape != output.shape or not _comparable(info.dtype, output.source.dtype):
            has = "is missing" if info is None else f"is {info.dtype} {list(info.shape)}"
            raise InputError(
                f"'{output.name}' {has} in {found.folder}, expected {output.source.dtype} {list(output.shape)}: "
                "it is no merge of this base."
            )


def _comparable(found: str, base: str) -> bool:
    """Whether a merge may hold in the dtype `found` what the base holds in `base`."""
    return found == base or {found, base} <= {*DTYPES.values()}


def _residual(output: Output, change: Change | None, info: TensorInfo) -> Residual:
    """Largest distance of a merged tensor from base and update, over what rounding explains."""
    if change is None and info.dtype == output.source.dtype:
        return Residual(output.name, 0.0 if _same_bytes(output.source, info) else float("inf"))
    worst, limits = 0.0, torch.finfo(TORCH_DTYPES[info.dtype])
    with OpenFiles() as files:
        weight = Weight(output.source, change, files, BLOCK_BYTES)
        for first, base in (block for part in weight.parts() for block in weight.blocks(*part)):
            update = weight.update(torch.zeros_like(base), first)
            found = read_values(files[info.path], info, first * weight.columns, base.numel()).float().view_as(base)
            size = torch.maximum(base.abs(), update.abs()).mul_(SLACK)
            allowed = found.abs().clamp_(min=limits.smallest_normal).mul_(UNITS * limits.eps).add_(size)
            left = found.sub_(update).sub_(base)
            worst = max(worst, _largest(left, allowed))
    return Residual(output.name, worst)


def _largest(left: torch.Tensor, allowed: torch.Tensor) -> float:
    """Largest `left / allowed`, infinite where a value is not finite; takes the place of `left`."""
    if not left.numel():
        return 0.0
    return left.abs_().div_(allowed).nan_to_num_(nan=float("inf"), posinf=float("inf")).max().item()


def _same_bytes(first: TensorInfo, second: TensorInfo) -> bool:
    if first.dtype != second.dtype or first.nbytes != second.nbytes:
        return False
    with first.path.open("rb") as a, second.path.open("rb") as b:
        a.seek(first.start)
        b.seek(second.start)
        left = first.nbytes
        while left:
            count = min(left, BLOCK_BYTES)
            if a.read(count) != b.read(count):
                return False
            left -= count
    return True
