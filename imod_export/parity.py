"""Parity: the base with the adapter attached by PEFT against the merged folder, on real probes.

Both sides are loaded one after the other, each with its own processor. Controls show that the comparison can fail: the
base without adapter, and the merged model on other media, must be told apart from what they are compared with.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from imod_core.console import track
from imod_core.errors import InputError
from imod_export.compare import Distance, common_prefix, distance, same_greedy
from imod_export.layers import LayerError, Trace, compare_layers, trace
from imod_export.probes import Probe, default_probes, read_probes
from imod_export.subject import (
    Subject,
    attach_adapter,
    load_model,
    load_processor,
    modalities,
    release_memory,
    sampling,
)
from imod_export.tolerances import ARITHMETIC, EFFECT_SHARE, ROUNDING, Tolerance


@dataclass(frozen=True)
class ProbeResult:
    """One probe, attached against merged."""

    name: str
    arithmetic: str
    """dtype that both computed in."""
    distance: Distance
    base_distance: Distance
    """The base without adapter from the attached model: what the adapter does."""
    same_prompt: bool
    """Both folders' processors made the same token ids."""
    greedy: int
    """Tokens of the attached model's greedy answer."""
    greedy_prefix: int
    """How many of them the merged model repeats."""
    answers: tuple[str, str]
    """Both answers as text."""
    faults: tuple[str, ...]
    """Why it did not pass; empty if it did."""


@dataclass(frozen=True)
class Control:
    """Two things that must differ."""

    name: str
    probe: str
    distance: Distance
    told_apart: bool


@dataclass(frozen=True)
class Report:
    """Everything that a comparison found."""

    stored: str
    """dtype of the merged weights on disk."""
    probes: tuple[ProbeResult, ...]
    controls: tuple[Control, ...]
    layers: tuple[LayerError, ...]
    skipped_layers: tuple[str, ...]
    tolerances: dict[str, Any] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        """One short sentence for each gate that failed."""
        found = [f"{p.name} ({p.arithmetic}): {fault}" for p in self.probes for fault in p.faults]
        found += [f"{c.probe}: {c.name} was not told apart" for c in self.controls if not c.told_apart]
        return found + [_layer_fault(layer) for layer in self.layers if not layer.passed]

    @property
    def passed(self) -> bool:
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """As JSON: the verdict first."""
        return {"passed": self.passed, "faults": self.faults, **asdict(self)}


@dataclass
class _Reference:
    """What the attached model said about a probe."""

    ids: list[int]
    answer: list[int]
    text: str
    logits: torch.Tensor
    base_logits: torch.Tensor


def check_parity(base: Path, adapter: Path, merged: Path, stored: str, probe_file: Path | None = None) -> Report:
    """Compare `base` with `adapter` attached to `merged`, whose weights are `stored` in that dtype.

    Raises:
        InputError, MissingFileError: something does not load, or the probes cannot be used. A comparison that fails is
            no error here: the report says so.
    """
    probes = _probes(merged, probe_file)
    results: list[ProbeResult] = []
    controls: list[Control] = []
    layers: list[LayerError] = []
    skipped: tuple[str, ...] = ()
    for arithmetic in dict.fromkeys(["float32", stored]):
        reference, layer_trace = _ask_attached(base, adapter, probes, stored, arithmetic)
        release_memory()
        subject = Subject(load_model(merged, stored, arithmetic), load_processor(merged))
        tolerance = ROUNDING[stored] if arithmetic == "float32" else ARITHMETIC[arithmetic]
        for probe in track(probes, f"Merged model on probes, {arithmetic}"):
            result, logits = _ask_merged(subject, probe, reference[probe.name], tolerance, arithmetic)
            results.append(result)
            if arithmetic == "float32":
                controls += _controls(subject, probe, reference[probe.name], logits, result)
        if arithmetic == "float32":
            layers, skipped = compare_layers(layer_trace, subject.model, stored), layer_trace.skipped
        del subject
        release_memory()
    return Report(stored, tuple(results), tuple(controls), tuple(layers), skipped, _tolerances(stored))


def _probes(folder: Path, probe_file: Path | None) -> list[Probe]:
    takes = modalities(folder)
    frames, rate = sampling(load_processor(folder))
    if probe_file is None:
        return default_probes(takes, rate)
    probes = read_probes(probe_file, takes, frames, rate)
    if not probes:
        raise InputError(
            f"{probe_file} has no sample whose media {folder} takes ({', '.join(sorted(takes)) or 'none'})."
        )
    return probes


def _ask_attached(
    base: Path, adapter: Path, probes: list[Probe], stored: str, arithmetic: str
) -> tuple[dict[str, _Reference], Trace]:
    """The attached model's answers and logits, and the base's by switching the adapter off."""
    attached = attach_adapter(load_model(base, stored, arithmetic), adapter)
    subject, found = Subject(attached, load_processor(base)), {}
    for probe in track(probes, f"Adapter attached on probes, {arithmetic}"):
        prompt = subject.prompt(probe)
        answer = subject.greedy(prompt)
        logits = subject.logits(prompt, answer)
        with attached.disable_adapter():
            base_logits = subject.logits(prompt, answer)
        found[probe.name] = _Reference(prompt.ids, answer, subject.text(answer), logits, base_logits)
    return found, trace(attached)


def _ask_merged(
    subject: Subject, probe: Probe, reference: _Reference, tolerance: Tolerance, arithmetic: str
) -> tuple[ProbeResult, torch.Tensor]:
    prompt = subject.prompt(probe)
    answer, logits = subject.greedy(prompt), subject.logits(prompt, reference.answer)
    found = distance(reference.logits, logits, tolerance)
    effect = distance(reference.logits, reference.base_logits, tolerance)
    same_prompt = prompt.ids == reference.ids
    faults = []
    if not same_prompt:
        faults.append("the two processors made different token ids")
    faults += _distance_faults(found, tolerance)
    if arithmetic == "float32" and found.relative > EFFECT_SHARE * effect.relative:
        faults.append(f"missed by {found.relative:.1e} what the adapter changes by {effect.relative:.1e}")
    if not same_greedy(reference.answer, answer, reference.logits, tolerance):
        faults.append("another greedy answer")
    texts = (reference.text, subject.text(answer))
    prefix = common_prefix(reference.answer, answer)
    result = ProbeResult(
        probe.name, arithmetic, found, effect, same_prompt, len(reference.answer), prefix, texts, tuple(faults)
    )
    return result, logits


def _distance_faults(found: Distance, tolerance: Tolerance) -> Iterator[str]:
    if found.relative > tolerance.relative:
        yield f"relative logit error {found.relative:.1e}, allowed {tolerance.relative:.0e}"
    if found.kl > tolerance.kl:
        yield f"KL {found.kl:.1e}, allowed {tolerance.kl:.0e}"
    if found.argmax_agreement < 1:
        yield f"best token differs at {1 - found.argmax_agreement:.0%} of the decided positions"


def _controls(
    subject: Subject, probe: Probe, reference: _Reference, logits: torch.Tensor, result: ProbeResult
) -> Iterator[Control]:
    """The base against the merged model, and the merged model against itself on other media.

    Both sides of a control compute in float32, so a difference above float32's own tolerance is one of content.
    """
    limit = ARITHMETIC["float32"]
    from_base = distance(logits, reference.base_logits, limit)
    told = from_base.relative > max(limit.relative, result.distance.relative / EFFECT_SHARE)
    yield Control("base against merged", probe.name, from_base, told)
    for kind in probe.media:
        swapped = subject.logits(subject.prompt(probe.swapped(kind)), reference.answer)
        other = distance(logits, swapped, limit)
        yield Control(f"other {kind}", probe.name, other, other.relative > limit.relative)


def _layer_fault(layer: LayerError) -> str:
    if layer.kind == "saved":
        return f"{layer.name}: saved values differ by {layer.error:.1e}"
    shown = (
        "an update that the adapter does not make" if layer.transfer is None else f"{layer.transfer:.1%} of its update"
    )
    return f"{layer.name}: the merged weight shows {shown}"


def _tolerances(stored: str) -> dict[str, Any]:
    limits = {"float32": ROUNDING[stored]} | ({stored: ARITHMETIC[stored]} if stored != "float32" else {})
    return {"effect_share": EFFECT_SHARE, **{dtype: asdict(limit) for dtype, limit in limits.items()}}
