"""The parity report: `parity.json` for programs, `parity.html` for people, one file without outside resources."""

from collections.abc import Iterable
from html import escape
from math import log10
from pathlib import Path
from typing import Any

from imod_core.artifacts import write_json, write_text
from imod_export.layers import LayerError
from imod_export.parity import Control, ProbeResult, Report

FOLDER = "parity"
JSON, PAGE = "parity.json", "parity.html"
DECADES = 8
"""A bar's full width: errors from 1e-8 to 1, logarithmic."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .25rem .6rem; vertical-align: top }
th { border-bottom: 2px solid #8795a3 } td { border-bottom: 1px solid #dde3e8 }
.number { font-variant-numeric: tabular-nums; white-space: nowrap } .muted { color: #5b6b7a }
.yes { color: #0a6b3b; font-weight: 600 } .no { color: #a11616; font-weight: 600 }
.bar { display: inline-block; height: .7rem; background: #4a7fb5; min-width: 1px } .bar.bad { background: #c0392b }
.track { display: inline-block; width: 12rem; background: #eef2f5 }
"""


def write_report(report: Report, folder: Path, facts: dict[str, Any]) -> None:
    """Write both forms into `folder/parity`; `facts` names base, adapter and software."""
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    write_json(target / JSON, {**report.to_dict(), "about": facts})
    write_text(target / PAGE, render_page(report, facts))


def render_page(report: Report, facts: dict[str, Any]) -> str:
    """The page as HTML."""
    verdict = _mark(report.passed, "Passed", "Failed")
    what = "the merged model is the adapter-attached model." if report.passed else "the merged model must not be used."
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Parity report</title>"
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head><body>",
        f"<h1>Parity: {verdict}</h1><p>{escape(what.capitalize())} Weights on disk: {report.stored}.</p>",
        _list(report.faults) if report.faults else "",
        "<h2>Adapter attached against merged, on probes</h2>",
        _table(
            [
                "probe",
                "computed in",
                "relative error",
                "",
                "largest",
                "KL (nats)",
                "best token",
                "greedy",
                "answer",
                "",
            ],
            map(_probe_row, report.probes),
        ),
        "<p class='muted'>Relative error: RMS difference of the logits over their RMS spread; the bar is logarithmic "
        "from 1e-8 to 1. Best token: agreement outside near-ties. Greedy: tokens repeated of those generated.</p>",
        "<h2>Controls: what must be told apart</h2>",
        _table(["probe", "control", "relative difference", "", "KL (nats)", ""], map(_control_row, report.controls)),
        "<h2>Layers</h2>",
        _table(["weight", "kind", "share of the update shown", "error", "", ""], map(_layer_row, report.layers)),
        _skipped(report.skipped_layers),
        "<h2>About</h2>",
        _table(["", ""], ([escape(str(k)), escape(str(v))] for k, v in facts.items())),
        _table(["computed in", "relative", "KL", "near-tie", "why"], _tolerance_rows(report.tolerances)),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _probe_row(probe: ProbeResult) -> list[str]:
    found = probe.distance
    attached, merged = (escape(text) for text in probe.answers)
    return [
        escape(probe.name),
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
        _number(found.relative),
        _bar(found.relative, not control.told_apart),
        _number(found.kl),
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
