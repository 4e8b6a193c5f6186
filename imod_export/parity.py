"""Parity over the chain: base with adapters attached ↔ merged folder ↔ other ways to run it, on real probes.

Everything is loaded one after the other. The first two are compared in float32 and in the dtype on disk, logits, greedy
answers and layers; later links are compared with the merged model in float32. Controls show that the comparison can
fail (see `controls`).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from imod_core.console import console, track
from imod_core.errors import InputError
from imod_core.families.load import load_processor
from imod_export.attached import attach_adapters, scaled
from imod_export.compare import Distance, common_prefix, distance, faults_of, same_greedy, turned_alike
from imod_export.controls import Variants, scale_controls, told_by_layers, without_sound
from imod_export.layers import LayerError, Trace, compare_layers, trace
from imod_export.links import Link, Question, Reply, Unmerged, make_link
from imod_export.probes import FRAMES, Probe, default_probes, read_probes
from imod_export.results import Control, ProbeResult, Report
from imod_export.subject import Subject, load_model, modalities, release_memory, sampling, weaves
from imod_export.tolerances import ARITHMETIC, EFFECT_SHARE, ROUNDING, STOCHASTIC, TURNED_ALIKE, Tolerance

MERGED = "attached ↔ merged"


@dataclass(frozen=True)
class Chain:
    """What is compared."""

    merged: Path
    stored: str
    """dtype of its weights on disk."""
    base: Path | None = None
    """With `adapters` attached it is the reference; None makes the merged model itself the reference."""
    adapters: tuple[tuple[Path, float], ...] = ()
    """Folder and weight."""
    against: tuple[str, ...] = ()
    """Further links, see `links`."""
    probes: Path | None = None
    """A sample file; None takes the built-in probes."""
    rounding: str = "nearest"
    """How the merged weights were cast to the dtype on disk."""
    limited: bool = False
    """Whether the merged folder's processor, and not the base's, reads media as training did."""

    @property
    def tolerance(self) -> Tolerance:
        """Attached against merged, in float32."""
        return STOCHASTIC[self.stored] if self.rounding == "stochastic" else ROUNDING[self.stored]


@dataclass
class _Reference:
    """What the reference said about a probe."""

    ids: list[int]
    text: str
    answer: list[int]
    answer_text: str
    logits: torch.Tensor
    variants: Variants | None = None


def prepare(chain: Chain) -> tuple[list[Probe], list[Link]]:
    """Probes and links, so that what is missing is known before anything large is loaded.

    Raises:
        InputError, MissingFileError: no processor, no usable probes, or a link that cannot run here.
    """
    takes = modalities(chain.merged)
    processor = load_processor(chain.merged)
    frames, rate = sampling(processor)
    unmerged = Unmerged(chain.base, chain.adapters, chain.limited)
    links = [make_link(spec, chain.merged, chain.stored, unmerged) for spec in chain.against]
    if chain.probes is None:
        return default_probes(takes, rate, frames.num_frames or FRAMES, weaves(processor)), links
    probes = read_probes(chain.probes, takes, frames, rate)
    if not probes:
        media = ", ".join(sorted(takes)) or "none"
        raise InputError(f"{chain.probes} has no sample whose media {chain.merged} takes ({media}).")
    return probes, links


def check_parity(chain: Chain) -> Report:
    """Compare all links of `chain`.

    Raises:
        InputError, MissingFileError: something does not load, or the probes cannot be used. A comparison that fails is
            no error here: the report says so.
    """
    probes, links = prepare(chain)
    results: list[ProbeResult] = []
    controls: list[Control] = []
    layers: list[LayerError] = []
    skipped: tuple[str, ...] = ()
    references: dict[str, _Reference] = {}
    for arithmetic in _arithmetics(chain):
        attached = _ask_attached(chain, probes, arithmetic) if chain.base else None
        release_memory()
        subject = Subject(load_model(chain.merged, chain.stored, arithmetic), load_processor(chain.merged))
        found, merged_controls, said = ask_merged(chain, subject, probes, attached[0] if attached else None, arithmetic)
        results += found
        if arithmetic == "float32":
            references, controls = said, merged_controls
            if attached:
                layers, skipped = compare_layers(attached[1], subject.model, chain.stored), attached[1].skipped
                told = told_by_layers(attached[1], subject.model, chain.stored)
                controls += scale_controls(
                    found, {n: r.variants for n, r in attached[0].items()}, said_logits(said), told
                )
        del subject
        release_memory()
    for link in links:
        found, told_apart = ask_link(link, probes, references)
        results += found
        controls += told_apart
    names = (*(["attached"] if chain.base else []), "merged", *(link.name for link in links))
    limits = _tolerances(chain, links)
    return Report(chain.stored, names, tuple(results), tuple(controls), tuple(layers), skipped, limits)


def said_logits(references: dict[str, _Reference]) -> dict[str, torch.Tensor]:
    """The merged model's logits by probe."""
    return {name: reference.logits for name, reference in references.items()}


def _arithmetics(chain: Chain) -> list[str]:
    return list(dict.fromkeys(["float32", chain.stored])) if chain.base else ["float32"]


def _ask_attached(chain: Chain, probes: list[Probe], arithmetic: str) -> tuple[dict[str, _Reference], Trace]:
    """The attached model's answers and logits, and what it says with parts of the adapter off."""
    assert chain.base is not None
    attached = attach_adapters(load_model(chain.base, chain.stored, arithmetic), chain.adapters)
    processor = load_processor(chain.merged if chain.limited else chain.base)
    subject, found, traced = Subject(attached, processor), {}, trace(attached)
    for probe in track(probes, f"Adapter attached on probes, {arithmetic}"):
        prompt = subject.prompt(probe)
        answer = subject.greedy(prompt)
        logits = subject.logits(prompt, answer)
        with attached.disable_adapter():
            base = subject.logits(prompt, answer)
        left_out = halved = None
        if arithmetic == "float32" and traced.faintest:
            with scaled(attached, 0.0, traced.faintest):
                left_out = subject.logits(prompt, answer)
            with scaled(attached, 0.5):
                halved = subject.logits(prompt, answer)
        variants = Variants(base, left_out, halved)
        text = subject.text(answer)
        found[probe.name] = _Reference(prompt.ids, prompt.text, answer, text, logits, variants)
    return found, traced


def ask_merged(
    chain: Chain, subject: Subject, probes: list[Probe], references: dict[str, _Reference] | None, arithmetic: str
) -> tuple[list[ProbeResult], list[Control], dict[str, _Reference]]:
    """The merged model on all probes: against the references, and as a reference itself."""
    tolerance = chain.tolerance if arithmetic == "float32" else ARITHMETIC[arithmetic]
    results: list[ProbeResult] = []
    controls: list[Control] = []
    said = {}
    for probe in track(probes, f"Merged model on probes, {arithmetic}"):
        prompt = subject.prompt(probe)
        answer = subject.greedy(prompt)
        reference = references[probe.name] if references else None
        forced = reference.answer if reference else answer
        logits = subject.logits(prompt, forced)
        said[probe.name] = _Reference(prompt.ids, prompt.text, forced, subject.text(forced), logits)
        if reference:
            reply = Reply(prompt.ids, answer, subject.text(answer), len(forced) + 1 - len(logits), logits)
            results.append(_against_attached(probe, reference, reply, tolerance, arithmetic))
        if arithmetic == "float32":
            effect = results[-1] if reference else None
            controls += _media_controls(subject, probe, said)
            if reference and reference.variants and effect:
                controls.append(_base_control(probe, reference.variants.base, logits, effect))
    return results, controls, said


def _against_attached(
    probe: Probe, reference: _Reference, reply: Reply, tolerance: Tolerance, arithmetic: str
) -> ProbeResult:
    assert reference.variants is not None
    result = _compare(probe, MERGED, reference, reply, tolerance, arithmetic)
    effect = distance(reference.logits, reference.variants.base, tolerance)
    faults = list(result.faults)
    if arithmetic == "float32" and result.distance.relative > EFFECT_SHARE * effect.relative:
        faults.append(f"missed by {result.distance.relative:.1e} what the adapter changes by {effect.relative:.1e}")
    return replace(result, base_distance=effect, faults=tuple(faults))


def _compare(
    probe: Probe, link: str, reference: _Reference, reply: Reply, tolerance: Tolerance, arithmetic: str
) -> ProbeResult:
    """One reply against the reference: prompt, logits where the contexts are the same, greedy answer."""
    found = distance(aligned(reference, reply), reply.logits, tolerance, reply.support)
    same_prompt = reply.ids is None or reply.ids == reference.ids
    faults = [] if same_prompt else ["the two made different token ids of the prompt"]
    faults += faults_of(found, tolerance)
    if not same_greedy(reference.answer, reply.greedy, reference.logits, tolerance):
        faults.append("another greedy answer")
    prefix = common_prefix(reference.answer, reply.greedy)
    texts = (reference.answer_text, reply.text)
    return ProbeResult(
        probe.name, link, arithmetic, found, None, same_prompt, len(reference.answer), prefix, texts, tuple(faults)
    )


def aligned(reference: _Reference, reply: Reply) -> torch.Tensor:
    """The reference's logits `(K, V)` at the positions of the reply's rows; empty where they do not reach."""
    chose_first = len(reference.logits) - len(reference.answer) - 1
    begin = chose_first + reply.first
    rows = reference.logits[max(begin, 0) : begin + len(reply.logits)]
    return rows if len(rows) == len(reply.logits) else rows[:0]


def ask_link(
    link: Link, probes: list[Probe], references: dict[str, _Reference]
) -> tuple[list[ProbeResult], list[Control]]:
    """A further link on all probes against the merged model, and on other media, which it must notice."""
    name = f"merged ↔ {link.name}"
    if not link.weaves and any(probe.woven for probe in probes):
        console.print(f"{link.name} is not asked about a video with its sound woven in, which it cannot read.")
        probes = [probe for probe in probes if not probe.woven]
    swapped = [(probe, kind, probe.swapped(kind)) for probe in probes for kind in probe.media]
    questions = [_question(probe, references[probe.name]) for probe in probes]
    questions += [_question(other, references[probe.name]) for probe, _, other in swapped]
    replies = link.ask(questions)
    results = [
        _compare(probe, name, references[probe.name], replies[probe.name], link.tolerance, link.arithmetic)
        for probe in probes
    ]
    controls = []
    for probe, kind, other in swapped:
        reference, reply = references[probe.name], replies[other.name]
        found = distance(aligned(reference, reply), reply.logits, link.tolerance, reply.support)
        told = _notices(reference, references[other.name], replies[probe.name], reply, found, link.tolerance)
        controls.append(Control(f"other {kind}", name, probe.name, found, told, "logits"))
    return results, controls


def _notices(
    own: _Reference, other: _Reference, reply: Reply, reply_other: Reply, found: Distance, tolerance: Tolerance
) -> bool:
    """Whether other media change a link's logits as they change the reference's; where it tells only its best tokens,
    whether they change more than rounding does."""
    if reply.support is not None:
        return found.relative > tolerance.relative
    z, z_other = aligned(own, reply), aligned(other, reply_other)
    same_rows = len(z) == len(z_other) == len(reply.logits) == len(reply_other.logits) > 0
    return same_rows and turned_alike(z, z_other, reply.logits, reply_other.logits) > TURNED_ALIKE


def _question(probe: Probe, reference: _Reference) -> Question:
    return Question(probe, reference.text, reference.ids, reference.answer)


def _base_control(probe: Probe, base: torch.Tensor, logits: torch.Tensor, result: ProbeResult) -> Control:
    """Both compute in float32, so a difference above float32's own tolerance is one of content."""
    limit = ARITHMETIC["float32"]
    found = distance(logits, base, limit)
    told = found.relative > max(limit.relative, result.distance.relative / EFFECT_SHARE)
    return Control("base against merged", MERGED, probe.name, found, told, "logits")


def _media_controls(subject: Subject, probe: Probe, said: dict[str, _Reference]) -> Iterator[Control]:
    """The merged model against itself on other media, and without the sound; what it says then joins `said`."""
    limit, own = ARITHMETIC["float32"], said[probe.name]
    others = {f"other {kind}": probe.swapped(kind) for kind in probe.media}
    if "audio" in probe.media:
        others["sound dropped"] = without_sound(probe)
    for name, other in others.items():
        prompt = subject.prompt(other)
        logits = subject.logits(prompt, own.answer)
        said[other.name] = replace(own, ids=prompt.ids, text=prompt.text, logits=logits)
        found = distance(*_common_end(own.logits, logits), limit)
        yield Control(name, "merged", probe.name, found, found.relative > limit.relative, "logits")


def _common_end(z: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    count = min(len(z), len(y))
    return z[-count:], y[-count:]


def _tolerances(chain: Chain, links: list[Link]) -> dict[str, Any]:
    limits = {f"{MERGED}, float32": chain.tolerance}
    if chain.stored != "float32" and chain.base:
        limits[f"{MERGED}, {chain.stored}"] = ARITHMETIC[chain.stored]
    limits |= {f"merged ↔ {link.name}, {link.arithmetic}": link.tolerance for link in links}
    return {"effect_share": EFFECT_SHARE, **{name: asdict(limit) for name, limit in limits.items()}}
