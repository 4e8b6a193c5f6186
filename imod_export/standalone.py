"""`imod parity`: the comparison of a folder that was merged before, by whomever."""

import json
from pathlib import Path
from typing import Any

from imod_core.artifacts import MANIFEST, blake3_of, read_json, write_json
from imod_core.console import console
from imod_core.errors import CheckFailed, InputError, MissingFileError
from imod_export.adapter import CONFIG
from imod_export.export import MERGE_FILE
from imod_export.folder_link import stored_dtype
from imod_export.links import default_links
from imod_export.parity import Chain, check_parity
from imod_export.report import PAGE, write_report
from imod_export.results import Report
from imod_export.source import find_sources


def compare(
    folder: Path,
    *,
    sources: tuple[Path, ...] = (),
    weights: tuple[float, ...] = (),
    base: Path | None = None,
    against: tuple[str, ...] = (),
    probes: Path | None = None,
    out: Path | None = None,
    strict: bool = True,
) -> Report:
    """Compare a merged folder over the chain, write the report and print where it is.

    Raises:
        InputError, MissingFileError: the folder, the adapters or the probes cannot be used.
        CheckFailed: a gate failed, and `strict`.
    """
    if not (folder / "config.json").is_file():
        raise MissingFileError(f"{folder} is not a model folder: it has no config.json.")
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    attached, base = _attached(folder, manifest, sources, weights, base)
    against = against or default_links(folder)
    if not attached and not against:
        raise InputError(f"There is nothing to compare {folder} with: give --merge ADAPTER, or --against LINK.")
    merged = manifest.get("merged") or {}
    chain = Chain(
        folder, stored_dtype(folder), base, attached, against, probes, merged.get("rounding", "nearest"),
        limited=bool(manifest.get("media")),
    )  # fmt: skip
    report = check_parity(chain)
    target = out or folder / "parity"
    facts = {"folder": folder.name, **({"base": base.name} if base else {})}
    write_report(report, target, facts, _costs(folder))
    if out is None and manifest.get("kind") == "export":
        _refresh(folder, manifest, report)
    _conclude(report, target / PAGE, folder, strict)
    return report


def _attached(
    folder: Path, manifest: dict[str, Any], paths: tuple[Path, ...], weights: tuple[float, ...], base: Path | None
) -> tuple[tuple[tuple[Path, float], ...], Path | None]:
    """The adapters that were given, or those that the manifest names and that are still there unchanged."""
    if paths:
        sources = find_sources(paths, base, weights)
        return tuple((source.adapter, source.weight) for source in sources.adapters), sources.base
    named = manifest.get("adapters") or [manifest[key] for key in ("adapter",) if key in manifest]
    folder_of_base = base or Path((manifest.get("base") or {}).get("path", ""))
    found = [(Path(a["path"]), float(a.get("weight", 1.0)), a.get("weights_blake3")) for a in named]
    there = all((path / CONFIG).is_file() for path, _, _ in found) and (folder_of_base / "config.json").is_file()
    if not found or not there:
        if found:
            console.print(f"{folder} names an adapter or a base that is not there: it is not compared with them.")
        return (), None
    for path, _, digest in found:
        if blake3_of(path / "adapter_model.safetensors") != digest:
            raise InputError(f"{path} is not the adapter that is in {folder}: say with --merge which one is.")
    return tuple((path, weight) for path, weight, _ in found), folder_of_base


def _costs(folder: Path) -> list[dict[str, Any]]:
    path = folder / MERGE_FILE
    return read_json(path).get("updates", []) if path.is_file() else []


def _refresh(folder: Path, manifest: dict[str, Any], report: Report) -> None:
    """The folder's manifest with the new verdict."""
    files = dict(manifest.get("files") or {})
    files |= {
        f"parity/{path.name}": blake3_of(path) for path in sorted((folder / "parity").iterdir()) if path.is_file()
    }
    write_json(folder / MANIFEST, json.loads(json.dumps({**manifest, "parity": report.verdict, "files": files})))


def _conclude(report: Report, page: Path, folder: Path, strict: bool) -> None:
    told = sum(control.told_apart for control in report.controls)
    console.print(
        f"{' ↔ '.join(report.chain)}: {len(report.probes)} comparisons, {told} of {len(report.controls)} negative "
        f"controls told apart; report in {page}",
        soft_wrap=True,
    )
    if report.passed:
        return
    more = f" and {len(report.faults) - 1} more" if len(report.faults) > 1 else ""
    told_fault = f"{folder} fails the comparison ({report.faults[0]}{more}), see {page}"
    if strict:
        raise CheckFailed(f"{told_fault}.")
    console.print(f"Warning: {told_fault}.", soft_wrap=True)
