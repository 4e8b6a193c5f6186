"""The graphs' section of the parity report: one more key in `parity.json`, one more part of `parity.html`."""

from html import escape
from pathlib import Path
from typing import Any

from imod_core.artifacts import write_json, write_text
from imod_export.onnx.parity import OnnxProbe, OnnxReport, PartError, SwappedMedia, WeightCheck
from imod_export.report import FOLDER, JSON, PAGE, STYLE, _bar, _list, _mark, _number, _table
from imod_export.tensors import read_json

END = "</body></html>"


def add_to_report(report: OnnxReport, folder: Path) -> None:
    """Add the section to the report in `folder/parity`, or begin one there; a fault of it fails the whole."""
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    whole: dict[str, Any] = read_json(target / JSON) if (target / JSON).is_file() else {"passed": True, "faults": []}
    faults = [*whole["faults"], *report.faults]
    write_json(target / JSON, {**whole, "passed": not faults, "faults": faults, "onnx": report.to_dict()})
    page = (target / PAGE).read_text() if (target / PAGE).is_file() else _empty_page()
    write_text(target / PAGE, page.replace(END, render_section(report) + END))


def render_section(report: OnnxReport) -> str:
    """The section as HTML."""
    parts = [
        f"<h2>ONNX against transformers in float32: {_mark(report.passed, 'passed', 'failed')}</h2>",
        _list(report.faults) if report.faults else "",
        _table(
            ["probe", "form", "relative error", "", "KL (nats)", "best token", "greedy", "answer", ""],
            map(_probe_row, report.probes),
        ),
        "<h2>ONNX graphs one by one</h2>",
        _table(["graph", "probe", "form", "relative error", "", ""], map(_part_row, _worst(report.parts))),
        _table(["graph", "form", "worst weight", "relative error", "", ""], map(_weight_row, report.weights)),
        "<h2>ONNX on other media: what must be told apart</h2>",
        _table(["probe", "other", "relative difference", "", ""], map(_control_row, report.controls)),
        _table(
            ["form", "relative", "KL", "near-tie", "why"],
            (
                [form, *(f"{limit[key]:g}" for key in ("relative", "kl", "near_tie")), escape(limit["reason"])]
                for form, limit in report.tolerances.items()
            ),
        ),
    ]
    return "\n".join(parts) + "\n"


def _worst(parts: tuple[PartError, ...]) -> list[PartError]:
    """Of each graph in each form, the probe on which it is furthest off."""
    found: dict[tuple[str, str], PartError] = {}
    for part in parts:
        key = (part.variant, part.part)
        if key not in found or part.relative > found[key].relative:
            found[key] = part
    return list(found.values())


def _probe_row(probe: OnnxProbe) -> list[str]:
    found = probe.distance
    wanted, made = (escape(text) for text in probe.answers)
    return [
        escape(probe.name),
        probe.variant,
        _number(found.relative),
        _bar(found.relative, bool(probe.faults)),
        _number(found.kl),
        f"{found.argmax_agreement:.0%} of {found.positions - found.near_ties}",
        f"{probe.greedy_prefix}/{probe.greedy}",
        wanted if wanted == made else f"{wanted} <span class='no'>≠</span> {made}",
        _mark(not probe.faults),
    ]


def _part_row(part: PartError) -> list[str]:
    error = [_number(part.relative), _bar(part.relative, not part.passed), _mark(part.passed)]
    return [part.part, escape(part.probe), part.variant, *error]


def _weight_row(check: WeightCheck) -> list[str]:
    error = [_number(check.relative), _bar(check.relative, not check.passed), _mark(check.passed)]
    return [check.part, check.variant, f"{escape(check.worst)}, of {check.weights}", *error]


def _control_row(control: SwappedMedia) -> list[str]:
    found, told = control.distance.relative, control.told_apart
    return [escape(control.probe), control.kind, _number(found), _bar(found, not told), _mark(told)]


def _empty_page() -> str:
    head = f"<meta charset='utf-8'><title>Parity report</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{END}\n"
