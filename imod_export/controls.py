"""Negative controls: merges that are wrong in one way each, which the comparison must notice.

A layer left out and a halved scale are made on the attached side, by PEFT's own scales: if the merged model passes
against those too, the comparison is blind. The layer is the one that does least, so the hardest to miss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from imod_core.samples import Message
from imod_export.compare import distance
from imod_export.layers import Trace, compare_layers
from imod_export.probes import Probe
from imod_export.results import Control, ProbeResult
from imod_export.tolerances import ARITHMETIC, EFFECT_SHARE

LEFT_OUT, HALVED = "one layer left out", "scale halved"


@dataclass(frozen=True)
class Variants:
    """Logits `(K, V)` of the attached model with parts of its adapters off; None where there are no updates."""

    base: torch.Tensor
    left_out: torch.Tensor | None
    halved: torch.Tensor | None


def told_by_layers(reference: Trace, merged: Any, stored: str) -> dict[str, bool]:
    """Which of the two wrong adapters the layers' gate tells from the merged model."""
    wrong = {LEFT_OUT: reference.with_scale(0.0, reference.faintest), HALVED: reference.with_scale(0.5)}
    if not reference.faintest:
        return {}
    return {name: not all(e.passed for e in compare_layers(trace, merged, stored)) for name, trace in wrong.items()}


def scale_controls(
    results: Sequence[ProbeResult],
    variants: Mapping[str, Variants | None],
    merged: Mapping[str, torch.Tensor],
    by_layers: Mapping[str, bool],
) -> list[Control]:
    """A control for each wrong adapter, on the probe that shows it most: told apart by logits, by layers or by both.

    Args:
        results: attached against merged, in float32.
        variants: logits with parts of the adapters off, by probe.
        merged: the merged model's logits, by probe.
        by_layers: what the layers' gate says.
    """
    limit, controls = ARITHMETIC["float32"], []
    for name, told in by_layers.items():
        seen = []
        for result in results:
            wrong = _wrong(variants[result.name], name)
            if wrong is not None:
                found = distance(wrong, merged[result.name], limit)
                threshold = max(limit.relative, result.distance.relative / EFFECT_SHARE)
                seen.append((found, result.name, found.relative > threshold))
        found, probe, by_logits = max(seen, key=lambda entry: entry[0].relative)
        gates = [gate for gate, hit in (("logits", by_logits), ("layers", told)) if hit]
        controls.append(Control(name, "attached ↔ merged", probe, found, bool(gates), " and ".join(gates) or "none"))
    return controls


def without_sound(probe: Probe) -> Probe:
    """The probe as a pipeline asks it that loses sounds on the way."""
    messages = tuple(Message(m.role, m.content.replace("<audio>", "")) for m in probe.messages)
    media = {kind: items for kind, items in probe.media.items() if kind != "audio"}
    return replace(probe, name=f"{probe.name}, sound dropped", messages=messages, media=media, woven=False)


def _wrong(variants: Variants | None, name: str) -> torch.Tensor | None:
    if variants is None:
        return None
    return variants.left_out if name == LEFT_OUT else variants.halved
