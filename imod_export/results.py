"""What a comparison found: by probe and link of the chain, by control, by layer."""

from dataclasses import asdict, dataclass, field
from typing import Any

from imod_export.compare import Distance
from imod_export.layers import LayerError


@dataclass(frozen=True)
class ProbeResult:
    """One probe, one link of the chain against the one before."""

    name: str
    link: str
    """`attached ↔ merged`, `merged ↔ vllm` and so on."""
    arithmetic: str
    """dtype that the second of the two computed in."""
    distance: Distance
    base_distance: Distance | None
    """The base without adapter from the attached model: what the adapter does."""
    same_prompt: bool
    """Both made the same token ids of the probe."""
    greedy: int
    """Tokens of the reference's greedy answer."""
    greedy_prefix: int
    """How many of them the other repeats."""
    answers: tuple[str, str]
    """Both answers as text."""
    faults: tuple[str, ...]
    """Why it did not pass; empty if it did."""


@dataclass(frozen=True)
class Control:
    """Two things that must differ."""

    name: str
    link: str
    probe: str
    distance: Distance
    told_apart: bool
    seen_by: str
    """`logits`, `layers` or both: which gate told them apart."""


@dataclass(frozen=True)
class Report:
    """Everything that a comparison found."""

    stored: str
    """dtype of the merged weights on disk."""
    chain: tuple[str, ...]
    """What was compared, in order."""
    probes: tuple[ProbeResult, ...]
    controls: tuple[Control, ...]
    layers: tuple[LayerError, ...]
    skipped_layers: tuple[str, ...]
    tolerances: dict[str, Any] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        """One short sentence for each gate that failed."""
        found = [f"{p.name} ({p.link}, {p.arithmetic}): {fault}" for p in self.probes for fault in p.faults]
        found += [f"{c.probe}: {c.name} was not told apart ({c.link})" for c in self.controls if not c.told_apart]
        return found + [_layer_fault(layer) for layer in self.layers if not layer.passed]

    @property
    def passed(self) -> bool:
        return not self.faults

    @property
    def verdict(self) -> dict[str, Any]:
        """For a manifest."""
        return {"passed": self.passed, "chain": list(self.chain), "faults": self.faults}

    def to_dict(self) -> dict[str, Any]:
        """As JSON: the verdict first."""
        return {"passed": self.passed, "faults": self.faults, **asdict(self)}


def _layer_fault(layer: LayerError) -> str:
    if layer.kind == "saved":
        return f"{layer.name}: saved values differ by {layer.error:.1e}"
    if layer.transfer is None:
        return f"{layer.name}: the merged weight shows an update that the adapter does not make"
    return f"{layer.name}: the merged weight shows {layer.transfer:.1%} of its update"
