"""ONNX graphs beside a model folder, or alone: written, compared, and rejected where they are not the model."""

from pathlib import Path
from typing import Any

from imod_core.artifacts import new_folder, write_manifest
from imod_core.console import console
from imod_core.errors import MissingFileError
from imod_export.export import ExportSettings, check_inputs, on_failure


def export_onnx_only(model: Path, out: Path, settings: ExportSettings) -> Path:
    """The model folder `model` as ONNX in `out`/onnx, compared; returns `out`.

    Raises:
        InputError, MissingFileError: unusable input; nothing is written.
        CheckFailed: the graphs are not the model; they lie in `out`.rejected with their report.
    """
    check_inputs(out, settings)
    if not (model / "config.json").is_file():
        raise MissingFileError(f"{model} is no model folder: expected config.json in it, as `imod export` writes it.")
    check_model(model)
    with new_folder(out) as folder:
        verdict = add_graphs(model, folder, settings, None)
        write_manifest(folder, "onnx-export", model={"path": str(model)}, parity=verdict)
        if verdict is not None and not verdict["passed"]:
            on_failure(folder, out, verdict["faults"], settings.strict)
    console.print(f"ONNX written to {out}/onnx", soft_wrap=True)
    return out


def check_model(model: Path) -> None:
    """Refuse a model that there are no graphs for, by its configuration and processor alone.

    Raises:
        InputError: a kind of model, or of attention, that cannot be written as ONNX.
        MissingFileError: it has no processor that loads.
    """
    from imod_core.families.load import load_processor, trained_class
    from imod_export.onnx.components import check_kind

    check_kind(trained_class(model)[1])
    load_processor(model)


def add_graphs(model: Path, folder: Path, settings: ExportSettings, verdict: dict | None) -> dict[str, Any] | None:
    """Write `model` as `folder`/onnx and compare; returns the verdict so far with that of the graphs."""
    from imod_export.onnx.export import export_onnx

    variants = settings.onnx or ()
    export_onnx(model, folder / "onnx", variants)
    if not settings.parity:
        return verdict
    from imod_export.onnx.parity import check_onnx
    from imod_export.onnx.report import add_to_report

    report = check_onnx(model, folder / "onnx", variants, settings.probes)
    add_to_report(report, folder)
    faults = [*(verdict or {"faults": []})["faults"], *report.faults]
    return {**(verdict or {}), "passed": not faults, "faults": faults}
