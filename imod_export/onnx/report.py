"""The graphs' section of the parity report: one more key in `parity.json`, one more part of `parity.html`."""

from html import escape
from pathlib import Path
from typing import Any

from imod_core.artifacts import read_json, write_json, write_text
from imod_export.onnx.parity import OnnxReport, PartError, WeightCheck
from imod_export.page import STYLE, bar, bullets, mark, number, table
from imod_export.report import (
    CONTROL_HEAD,
    FOLDER,
    JSON,
    PAGE,
    PROBE_HEAD,
    TOLERANCE_HEAD,
    control_row,
    probe_row,
    tolerance_row,
)  # fmt: skip

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
        f"<h2>ONNX against transformers in float32: {mark(report.passed, 'passed', 'failed')}</h2>",
        bullets(report.faults) if report.faults else "",
        table(PROBE_HEAD, map(probe_row, report.probes)),
        "<h2>ONNX graphs one by one</h2>",
        table(["graph", "probe", "form", "relative error", "", ""], map(_part_row, _worst(report.parts))),
        table(["graph", "form", "worst weight", "relative error", "", ""], map(_weight_row, report.weights)),
        "<h2>ONNX on other media: what must be told apart</h2>",
        table(CONTROL_HEAD, map(control_row, report.controls)),
        table(TOLERANCE_HEAD, map(tolerance_row, report.tolerances.items())),
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


def _part_row(part: PartError) -> list[str]:
    error = [number(part.relative), bar(part.relative, not part.passed), mark(part.passed)]
    return [part.part, escape(part.probe), part.variant, *error]


def _weight_row(check: WeightCheck) -> list[str]:
    error = [number(check.relative), bar(check.relative, not check.passed), mark(check.passed)]
    return [check.part, check.variant, f"{escape(check.worst)}, of {check.weights}", *error]


def _empty_page() -> str:
    head = f"<meta charset='utf-8'><title>Parity report</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{END}\n"
