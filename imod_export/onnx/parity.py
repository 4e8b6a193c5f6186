"""Parity of the graphs: transformers in float32 against the runtime, graph by graph and from question to answer.

The reference reads media through the model's own processor, the runtime through its own, so that an error of either
shows. Logits are made token by token with the cache, as answers are; the decoder alone runs in one pass.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imod_core.console import track
from imod_core.errors import InputError
from imod_core.families.load import load_processor
from imod_core.modality import media_token_ids
from imod_export.compare import common_prefix, distance, faults_of, same_greedy
from imod_export.onnx.layout import AUDIO, DECODER, EMBED, FULL, VISION
from imod_export.onnx.prompt import Prompt
from imod_export.onnx.runtime import OnnxModel
from imod_export.onnx.variants import BITS, weight_errors
from imod_export.probes import Probe, default_probes, read_probes
from imod_export.results import Control, ProbeResult
from imod_export.subject import (
    NEW_TOKENS,
    POSITIONS,
    Subject,
    load_model,
    modalities,
    placeholder_ids,
    release_memory,
    sampling,
)
from imod_export.tolerances import ONNX, ONNX_PART, ONNX_WEIGHT

LINK = "transformers ↔ onnx"
PARTS = {"image": VISION, "video": VISION, "audio": AUDIO}
"""The graph that encodes each kind of medium."""


@dataclass(frozen=True)
class PartError:
    """One graph alone, on one probe: RMS difference of its output over the RMS of what it should be."""

    part: str
    probe: str
    variant: str
    relative: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.relative <= self.limit


@dataclass(frozen=True)
class WeightCheck:
    """The worst weight of a graph in blocks of few bits."""

    part: str
    variant: str
    worst: str
    relative: float
    limit: float
    weights: int

    @property
    def passed(self) -> bool:
        return self.relative <= self.limit


@dataclass(frozen=True)
class OnnxReport:
    """Everything that the comparison found."""

    probes: tuple[ProbeResult, ...]
    """transformers against the graphs of each form, which stands as what they compute in."""
    parts: tuple[PartError, ...]
    weights: tuple[WeightCheck, ...]
    controls: tuple[Control, ...]
    """The graphs on other media: the logits must change."""
    tolerances: dict[str, Any] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        """One short sentence for each gate that failed."""
        found = [f"ONNX {p.arithmetic}, {p.name}: {fault}" for p in self.probes for fault in p.faults]
        found += [
            f"ONNX {p.variant}, {p.probe}: {p.part} is off by {p.relative:.1e}, allowed {p.limit:.0e}"
            for p in self.parts
            if not p.passed
        ]
        found += [
            f"ONNX {w.variant}, {w.part}: the weight of {w.worst} is off by {w.relative:.1e}, allowed {w.limit:.0e}"
            for w in self.weights
            if not w.passed
        ]
        return found + [f"ONNX, {c.probe}: {c.name} was not told apart" for c in self.controls if not c.told_apart]

    @property
    def passed(self) -> bool:
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """As JSON: the verdict first."""
        return {"passed": self.passed, "faults": self.faults, **asdict(self)}


@dataclass
class _Reference:
    """What transformers made of a probe."""

    ids: list[int]
    answer: list[int]
    text: str
    logits: torch.Tensor
    features: dict[str, NDArray[np.float32]]
    """Embeddings `(tokens, D)` of the media, by kind."""
    embeds: NDArray[np.float32]
    """`(L, D)` of prompt and answer, media in their places."""


def check_onnx(model: Path, onnx: Path, variants: Sequence[str], probe_file: Path | None = None) -> OnnxReport:
    """Compare the graphs in `onnx` with the model folder that they were made from.

    Raises:
        InputError, MissingFileError: something does not load, or the probes cannot be used. A comparison that fails is
            no error here: the report says so.
    """
    probes = _probes(model, probe_file)
    references, suppress = _ask_transformers(model, probes)
    release_memory()
    results: list[ProbeResult] = []
    parts: list[PartError] = []
    weights: list[WeightCheck] = []
    controls: list[Control] = []
    for variant in (FULL, *variants):
        graphs = OnnxModel(onnx, variant)
        for probe in track(probes, f"ONNX on probes, {variant}"):
            prompt, reference = graphs.prompt(probe.messages, probe.media), references[probe.name]
            result, logits = _ask_graphs(graphs, prompt, probe, reference, suppress)
            results.append(result)
            parts += _parts(graphs, prompt, probe, reference)
            if variant == FULL:
                controls += _controls(graphs, probe, reference, logits)
        if variant in BITS:
            weights += [check for part in (VISION, AUDIO, DECODER) for check in _weights(onnx, part, variant)]
    limits = {variant: asdict(ONNX[variant]) for variant in (FULL, *variants)}
    return OnnxReport(tuple(results), tuple(parts), tuple(weights), tuple(controls), limits)


def _probes(folder: Path, probe_file: Path | None) -> list[Probe]:
    takes = modalities(folder)
    frames, rate = sampling(load_processor(folder))
    probes = read_probes(probe_file, takes, frames, rate) if probe_file else default_probes(takes, rate)
    if not probes:
        raise InputError(f"{probe_file} has no sample whose media {folder} takes: give other --probes.")
    return probes


@torch.inference_mode()
def _ask_transformers(model: Path, probes: list[Probe]) -> tuple[dict[str, _Reference], list[int]]:
    subject, found = Subject(load_model(model, "float32", "float32"), load_processor(model)), {}
    for probe in track(probes, "transformers on probes, float32"):
        prompt = subject.prompt(probe)
        answer = subject.greedy(prompt)
        features = {kind: _features(subject.model, kind, prompt.inputs) for kind in probe.media}
        embeds = _embeds(subject.model, [*prompt.ids, *answer], features)
        logits = subject.logits(prompt, answer)
        found[probe.name] = _Reference(prompt.ids, answer, subject.text(answer), logits, features, embeds)
    return found, placeholder_ids(subject.model.config.to_dict()) or []


def _features(model: Any, kind: str, inputs: dict[str, torch.Tensor]) -> NDArray[np.float32]:
    """What the model itself makes of media: `get_<kind>_features` with those of the inputs that it names."""
    owner = model if hasattr(model, f"get_{kind}_features") else model.model
    method = getattr(owner, f"get_{kind}_features")
    wanted = inspect.signature(method).parameters
    output = method(**{name: value for name, value in inputs.items() if name in wanted})
    found = output.last_hidden_state if output.pooler_output is None else output.pooler_output
    rows = found if isinstance(found, (list, tuple)) else [found]
    return torch.cat([row.flatten(0, -2) for row in rows]).float().cpu().numpy()


def _embeds(model: Any, ids: list[int], features: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    tokens = torch.tensor(ids, device=model.device)
    embeds = model.get_input_embeddings()(tokens).float().cpu().numpy()
    placeholders = media_token_ids(model.config)
    for kind, rows in features.items():
        embeds[np.isin(ids, placeholders[kind])] = rows
    return embeds


def _ask_graphs(
    graphs: OnnxModel, prompt: Prompt, probe: Probe, reference: _Reference, suppress: Sequence[int]
) -> tuple[ProbeResult, torch.Tensor]:
    variant = graphs.graphs.variant
    tolerance = ONNX[variant]
    same_prompt = prompt.ids == reference.ids
    answer = graphs.greedy(prompt, NEW_TOKENS, suppress)
    logits = torch.from_numpy(graphs.logits(prompt, reference.answer, POSITIONS))
    found = distance(reference.logits, logits, tolerance)
    faults = [] if same_prompt else ["the runtime made other token ids than the processor"]
    faults += faults_of(found, tolerance)
    if not same_greedy(reference.answer, answer, reference.logits, tolerance):
        faults.append("another greedy answer")
    texts, prefix = (reference.text, graphs.text(answer)), common_prefix(reference.answer, answer)
    greedy = len(reference.answer), prefix
    result = ProbeResult(probe.name, LINK, variant, found, None, same_prompt, *greedy, texts, tuple(faults))
    return result, logits


def _parts(graphs: OnnxModel, prompt: Prompt, probe: Probe, reference: _Reference) -> Iterator[PartError]:
    """Each graph alone: encoders on the runtime's own preprocessing, decoder on transformers' embeddings."""
    variant, ids = graphs.graphs.variant, np.array(reference.ids, np.int64)
    limits = ONNX_PART[variant]
    text = ~np.isin(ids, [encoding.token_id for encoding in prompt.encodings])
    found = graphs.graphs.run(EMBED, {"input_ids": ids[None]})[0]
    yield PartError(EMBED, probe.name, variant, _relative(found[text], reference.embeds[: len(ids)][text]), limits)
    for encoding in prompt.encodings:
        error = _relative(graphs.encode(encoding), reference.features[encoding.kind])
        yield PartError(PARTS[encoding.kind], f"{probe.name} ({encoding.kind})", variant, error, limits)
    answer = np.arange(len(reference.answer)) + prompt.next_position
    positions = np.concatenate(
        [prompt.positions, np.broadcast_to(answer, (*prompt.positions.shape[:-1], len(answer)))], -1
    )
    logits = graphs.graphs.cache().step(reference.embeds, positions, len(reference.logits))
    wanted = reference.logits.numpy()
    centred = logits - logits.mean(-1, keepdims=True), wanted - wanted.mean(-1, keepdims=True)
    yield PartError(DECODER, probe.name, variant, _relative(*centred), ONNX[variant].relative)


def _relative(found: NDArray, wanted: NDArray) -> float:
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.sqrt(np.mean((found.astype(np.float64) - wanted) ** 2) / max(float(np.mean(wanted**2)), 1e-30)))


def _weights(onnx: Path, part: str, variant: str) -> Iterator[WeightCheck]:
    """The worst weight; nothing where a tower has no products, only convolutions."""
    errors = weight_errors(onnx, part, variant)
    if errors:
        worst = max(errors, key=lambda e: e.relative)
        yield WeightCheck(part, variant, worst.name, worst.relative, ONNX_WEIGHT[variant], len(errors))


def _controls(graphs: OnnxModel, probe: Probe, reference: _Reference, logits: torch.Tensor) -> Iterator[Control]:
    limit = ONNX[FULL]
    for kind in probe.media:
        swapped = graphs.prompt(probe.messages, probe.swapped(kind).media)
        other = distance(logits, torch.from_numpy(graphs.logits(swapped, reference.answer, POSITIONS)), limit)
        yield Control(f"other {kind}", LINK, probe.name, other, other.relative > limit.relative, "logits")
