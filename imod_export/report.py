"""The parity report: `parity.json` for programs, `parity.html` for people, one file without outside resources."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib.metadata import version
from math import log10
from pathlib import Path
from typing import Any

from imod_core.artifacts import write_json, write_text
from imod_export.layers import LayerError
from imod_export.plots import layers_figure, probes_figure, rounding_figure
from imod_export.results import Control, ProbeResult, Report
from imod_export.rounding import WARN_LOST

FOLDER, JSON, PAGE = "parity", "parity.json", "parity.html"
DECADES = 8
"""A bar's full width: errors from 1e-8 to 1, logarithmic."""
PROBE_HEAD = [
    "probe", "compared", "computed in", "relative error", "", "largest", "KL (nats)", "best token", "greedy", "answer",
    "",
]  # fmt: skip
LAYER_HEAD = ["weight", "kind", "share of the update shown", "error", "", ""]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .25rem .6rem; vertical-align: top }
th { border-bottom: 2px solid #8795a3 } td { border-bottom: 1px solid #dde3e8 }
.number { font-variant-numeric: tabular-nums; white-space: nowrap } .muted { color: #5b6b7a }
.yes { color: #0a6b3b; font-weight: 600 } .no { color: #a11616; font-weight: 600 }
.bar { display: inline-block; height: .7rem; background: #4a7fb5; min-width: 1px } .bar.bad { background: #c0392b }
img { width: 100%; max-width: 62rem } .track { display: inline-block; width: 12rem; background: #eef2f5 }
"""


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
    verdict = _mark(report.passed, "Passed", "Failed")
    what = "All links of the chain are the same model." if report.passed else "This merge must not be used."
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Parity report</title>"
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head><body>",
        f"<h1>Parity: {verdict}</h1><p>{what} Compared: {escape(' ↔ '.join(report.chain))}. "
        f"Weights on disk: {report.stored}.</p>",
        _list(report.faults) if report.faults else "",
        "<h2>Each link against the one before, on probes</h2>",
        _image(probes_figure(report.probes, report.controls, report.tolerances)) if report.probes else "",
        _table(PROBE_HEAD, map(_probe_row, report.probes)),
        "<p class='muted'>Relative error: RMS difference of the logits over their RMS spread; the bar is logarithmic "
        "from 1e-8 to 1. Best token: agreement outside near-ties. Greedy: tokens repeated of those generated.</p>",
        "<h2>Controls: what must be told apart</h2>",
        _table(["probe", "control", "link", "relative difference", "", "KL (nats)", "seen by", ""],
               map(_control_row, report.controls)),
        "<h2>Layers</h2>" if report.layers else "",
        _image(layers_figure(report.layers)) if any(layer.transfer is not None for layer in report.layers) else "",
        _table(LAYER_HEAD, map(_layer_row, report.layers)) if report.layers else "",
        _skipped(report.skipped_layers),
        *_rounding(costs),
        "<h2>About</h2>",
        _table(["", ""], ([escape(str(k)), escape(str(v))] for k, v in facts.items())),
        _table(["compared, computed in", "relative", "KL", "near-tie", "why"], _tolerance_rows(report.tolerances)),
        "</body></html>\n",
    ]  # fmt: skip
    return "\n".join(parts)


def _rounding(costs: Sequence[dict[str, Any]]) -> list[str]:
    if not costs:
        return []
    rows = (
        [escape(c["name"]), _number(c["strength"]), f"{c['lost']:.2%}", _bar(abs(c["lost"]), c["lost"] > WARN_LOST),
         _number(c["noise"]), f"{c['unmoved']:.1%}"]
        for c in costs
    )  # fmt: skip
    head = ["weight", "|ΔW| / |W|", "lost", "", "noise / |ΔW|", "values not moved"]
    return ["<h2>What rounding the merged weights cost</h2>", _image(rounding_figure(costs)), _table(head, rows)]


def _image(url: str) -> str:
    return f"<img alt='' src='{url}'>"


def _probe_row(probe: ProbeResult) -> list[str]:
    found = probe.distance
    attached, merged = (escape(text) for text in probe.answers)
    return [
        escape(probe.name),
        escape(probe.link),
        probe.arithmetic,
        _number(found.relative),
        _bar(found.relative, bool(probe.faults)),
        _number(found.max_abs),
        _number(found.kl),
        f"{found.argmax_agreement:.0%} of {found.positions - found.near_ties}",
        f"{probe.greedy_prefix}/{probe.greedy}",
        attached if attached == merged else f"{attached} <span class='no'>≠</span> {merged}",
        _mark(not probe.faults),
    ]


def _control_row(control: Control) -> list[str]:
    found = control.distance
    return [
        escape(control.probe),
        escape(control.name),
        escape(control.link),
        _number(found.relative),
        _bar(found.relative, not control.told_apart),
        _number(found.kl),
        control.seen_by,
        _mark(control.told_apart, "told apart", "not told apart"),
    ]


def _layer_row(layer: LayerError) -> list[str]:
    shown = "" if layer.transfer is None else f"{layer.transfer:.3%}"
    return [
        escape(layer.name),
        layer.kind,
        shown,
        _number(layer.error),
        _bar(layer.error, not layer.passed),
        _mark(layer.passed),
    ]


def _tolerance_rows(tolerances: dict[str, Any]) -> Iterable[list[str]]:
    for dtype, limit in tolerances.items():
        if isinstance(limit, dict):
            numbers = [f"{limit[key]:g}" for key in ("relative", "kl", "near_tie")]
            yield [dtype, *numbers, escape(limit["reason"])]


def _skipped(names: tuple[str, ...]) -> str:
    return f"<p class='muted'>Covered by the logits alone: {escape(', '.join(names))}.</p>" if names else ""


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _list(lines: list[str]) -> str:
    return "<ul>" + "".join(f"<li class='no'>{escape(line)}</li>" for line in lines) + "</ul>"


def _number(value: float) -> str:
    return f"<span class='number'>{value:.1e}</span>"


def _bar(value: float, bad: bool) -> str:
    share = min(1.0, max(0.0, 1 + log10(max(value, 10**-DECADES)) / DECADES)) if value < float("inf") else 1.0
    return f"<span class='track'><span class='bar{' bad' if bad else ''}' style='width:{share:.0%}'></span></span>"


def _mark(good: bool, yes: str = "✓", no: str = "✗") -> str:
    return f"<span class='yes'>{yes}</span>" if good else f"<span class='no'>{no}</span>"
