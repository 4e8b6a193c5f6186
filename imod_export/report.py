"""The parity report: `parity.json` for programs, `parity.html` for people, one file without outside resources."""

from collections.abc import Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from imod_core.artifacts import write_json, write_text
from imod_export.layers import LayerError
from imod_export.page import STYLE, bar, bullets, image, mark, number, table
from imod_export.plots import layers_figure, probes_figure, rounding_figure
from imod_export.results import Control, ProbeResult, Report
from imod_export.rounding import WARN_LOST

FOLDER, JSON, PAGE = "parity", "parity.json", "parity.html"
PROBE_HEAD = [
    "probe", "compared", "computed in", "relative error", "", "largest", "KL (nats)", "best token", "greedy", "answer",
    "",
]  # fmt: skip
CONTROL_HEAD = ["probe", "control", "link", "relative difference", "", "KL (nats)", "seen by", ""]
TOLERANCE_HEAD = ["computed in", "relative", "KL", "near-tie", "why"]
LAYER_HEAD = ["weight", "kind", "share of the update shown", "error", "", ""]


def write_report(report: Report, target: Path, facts: dict[str, Any], costs: Sequence[dict[str, Any]] = ()) -> None:
    """Write both forms into the folder `target`.

    Args:
        report: what was found.
        target: made if it is not there.
        facts: names of base, adapter and the like; versions of the software are added.
        costs: of rounding, by low-rank update, as in merge.json.
    """
    facts = {**facts, **{name: version(name) for name in ("torch", "transformers", "peft")}}
    target.mkdir(exist_ok=True, parents=True)
    write_json(target / JSON, {**report.to_dict(), "rounding": list(costs), "about": facts})
    write_text(target / PAGE, render_page(report, facts, costs))


def render_page(report: Report, facts: dict[str, Any], costs: Sequence[dict[str, Any]] = ()) -> str:
    """The page as HTML."""
    limits = {name: limit for name, limit in report.tolerances.items() if isinstance(limit, dict)}
    verdict = mark(report.passed, "Passed", "Failed")
    what = "All links of the chain are the same model." if report.passed else "This merge must not be used."
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Parity report</title>"
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head><body>",
        f"<h1>Parity: {verdict}</h1><p>{what} Compared: {escape(' ↔ '.join(report.chain))}. "
        f"Weights on disk: {report.stored}.</p>",
        bullets(report.faults) if report.faults else "",
        "<h2>Each link against the one before, on probes</h2>",
        image(probes_figure(report.probes, report.controls, report.tolerances)) if report.probes else "",
        table(PROBE_HEAD, map(probe_row, report.probes)),
        "<p class='muted'>Relative error: RMS difference of the logits over their RMS spread; the bar is logarithmic "
        "from 1e-8 to 1. Best token: agreement outside near-ties. Greedy: tokens repeated of those generated.</p>",
        "<h2>Controls: what must be told apart</h2>",
        table(CONTROL_HEAD, map(control_row, report.controls)),
        "<h2>Layers</h2>" if report.layers else "",
        image(layers_figure(report.layers)) if any(layer.transfer is not None for layer in report.layers) else "",
        table(LAYER_HEAD, map(_layer_row, report.layers)) if report.layers else "",
        _skipped(report.skipped_layers),
        *_rounding(costs),
        "<h2>About</h2>",
        table(["", ""], ([escape(str(k)), escape(str(v))] for k, v in facts.items())),
        table(TOLERANCE_HEAD, map(tolerance_row, limits.items())),
        "</body></html>\n",
    ]  # fmt: skip
    return "\n".join(parts)


def _rounding(costs: Sequence[dict[str, Any]]) -> list[str]:
    if not costs:
        return []
    rows = (
        [escape(c["name"]), number(c["strength"]), f"{c['lost']:.2%}", bar(abs(c["lost"]), c["lost"] > WARN_LOST),
         number(c["noise"]), f"{c['unmoved']:.1%}"]
        for c in costs
    )  # fmt: skip
    head = ["weight", "|ΔW| / |W|", "lost", "", "noise / |ΔW|", "values not moved"]
    return ["<h2>What rounding the merged weights cost</h2>", image(rounding_figure(costs)), table(head, rows)]


def probe_row(probe: ProbeResult) -> list[str]:
    """Cells under PROBE_HEAD."""
    found = probe.distance
    attached, merged = (escape(text) for text in probe.answers)
    return [
        escape(probe.name),
        escape(probe.link),
        probe.arithmetic,
        number(found.relative),
        bar(found.relative, bool(probe.faults)),
        number(found.max_abs),
        number(found.kl),
        f"{found.argmax_agreement:.0%} of {found.positions - found.near_ties}",
        f"{probe.greedy_prefix}/{probe.greedy}",
        attached if attached == merged else f"{attached} <span class='no'>≠</span> {merged}",
        mark(not probe.faults),
    ]


def control_row(control: Control) -> list[str]:
    """Cells under CONTROL_HEAD."""
    found = control.distance
    return [
        escape(control.probe),
        escape(control.name),
        escape(control.link),
        number(found.relative),
        bar(found.relative, not control.told_apart),
        number(found.kl),
        control.seen_by,
        mark(control.told_apart, "told apart", "not told apart"),
    ]


def _layer_row(layer: LayerError) -> list[str]:
    shown = "" if layer.transfer is None else f"{layer.transfer:.3%}"
    return [
        escape(layer.name),
        layer.kind,
        shown,
        number(layer.error),
        bar(layer.error, not layer.passed),
        mark(layer.passed),
    ]


def tolerance_row(named: tuple[str, dict[str, Any]]) -> list[str]:
    """Cells under TOLERANCE_HEAD."""
    name, limit = named
    return [name, *(f"{limit[key]:g}" for key in ("relative", "kl", "near_tie")), escape(limit["reason"])]


def _skipped(names: tuple[str, ...]) -> str:
    return f"<p class='muted'>Covered by the logits alone: {escape(', '.join(names))}.</p>" if names else ""
