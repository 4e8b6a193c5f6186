"""An adapter and its base to a merged model folder, complete and compared, or to nothing.

OUT/*.safetensors        the base's shards with the adapter in them, and their index
OUT/config.json …        every other file of the base: processor, template, tokenizer, generation config, model code
OUT/onnx/                if asked for: the model as ONNX graphs, complete on its own
OUT/parity/              parity.json and parity.html
OUT/manifest.json        base and adapter identities, method, digests; written last

OUT appears when all of it is there and the comparison passed. A merge that fails it is kept as OUT.rejected.
"""

import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from imod_core.artifacts import new_folder, sha256, write_manifest
from imod_core.console import console
from imod_core.errors import CheckFailed, InputError, MissingFileError
from imod_export.adapter import CONFIG, WEIGHTS, Adapter, LoraPair, read_adapter
from imod_export.folder import copy_companions, set_dtype
from imod_export.plan import MergePlan, make_plan
from imod_export.source import Source, find_source
from imod_export.tensors import ITEM_BYTES, read_checkpoint

SPARE_BYTES = 64 << 20
"""Room beside the weights, for everything else in the folder."""


@dataclass(frozen=True)
class ExportSettings:
    """What `imod export` was asked for."""

    dtype: str | None = None
    """`float32`, `bfloat16` or `float16` for all weights; None keeps the base's."""
    probes: Path | None = None
    """A sample file to compare on; None takes the built-in probes."""
    parity: bool = True
    """Whether to compare at all."""
    onnx: tuple[str, ...] | None = None
    """Smaller forms of the ONNX graphs beside float32, e.g. `("int8",)`; None writes no ONNX."""


def export(path: Path, out: Path, base: Path | None = None, settings: ExportSettings | None = None) -> Path:
    """Merge the run or adapter at `path` into its base as `out`, and compare; returns `out`.

    Raises:
        InputError, MissingFileError: unusable input; nothing is written.
        CheckFailed: the merged model is not the attached one; it lies in `out`.rejected with its report.
    """
    settings = settings or ExportSettings()
    _check_inputs(out, settings)
    source = find_source(path, base)
    _check_apart(out, source)
    adapter = read_adapter(source.adapter)
    plan = make_plan(read_checkpoint(source.base), adapter, settings.dtype)
    _check_room(plan, out)
    console.print(_summary(adapter, source, plan), soft_wrap=True)
    with new_folder(out) as folder:
        _write_model(plan, source, folder, settings)
        report = _compare(plan, source, folder, settings) if settings.parity else None
        verdict = None if report is None else {"passed": report.passed, "faults": report.faults}
        if settings.onnx is not None:
            verdict = _add_onnx(folder, folder, settings, verdict)
        write_manifest(folder, "export", **_facts(source, adapter, plan), parity=verdict)
        if verdict is not None and not verdict["passed"]:
            raise CheckFailed(_reject(folder, out, verdict["faults"]))
    note = "" if report else "; it was not compared (--no-parity)"
    console.print(f"Merged model written to {out}{note}", soft_wrap=True)
    return out


def export_onnx_only(model: Path, out: Path, settings: ExportSettings) -> Path:
    """The model folder `model` as ONNX in `out`/onnx, compared; returns `out`.

    Raises:
        InputError, MissingFileError: unusable input; nothing is written.
        CheckFailed: the graphs are not the model; they lie in `out`.rejected with their report.
    """
    _check_inputs(out, settings)
    if not (model / "config.json").is_file():
        raise MissingFileError(f"{model} is no model folder: expected config.json in it, as `imod export` writes it.")
    with new_folder(out) as folder:
        verdict = _add_onnx(model, folder, settings, None)
        write_manifest(folder, "onnx-export", model={"path": str(model)}, parity=verdict)
        if verdict is not None and not verdict["passed"]:
            raise CheckFailed(_reject(folder, out, verdict["faults"]))
    console.print(f"ONNX written to {out}/onnx", soft_wrap=True)
    return out


def _add_onnx(model: Path, folder: Path, settings: ExportSettings, verdict: dict | None) -> dict[str, Any] | None:
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
    return {"passed": not faults, "faults": faults}


def _write_model(plan: MergePlan, source: Source, folder: Path, settings: ExportSettings) -> None:
    from imod_export.merge import write_weights

    left_out = copy_companions(source.base, folder)
    if left_out:
        console.print(f"Left out, since pickles can run code: {', '.join(left_out)}")
    if settings.dtype:
        set_dtype(folder, settings.dtype)
    write_weights(plan, folder)


def _compare(plan: MergePlan, source: Source, folder: Path, settings: ExportSettings) -> Any:
    from imod_export.parity import check_parity
    from imod_export.report import write_report

    report = check_parity(source.base, source.adapter, folder, plan.stored_dtype, settings.probes)
    software = {name: version(name) for name in ("torch", "transformers", "peft")}
    write_report(report, folder, {"base": source.base.name, "base sha256": source.base_sha256, **software})
    return report


def _facts(source: Source, adapter: Adapter, plan: MergePlan) -> dict[str, Any]:
    pairs = sum(isinstance(change, LoraPair) for change in plan.changes.values())
    return {
        "method": source.method,
        "base": {"path": str(source.base), "sha256": source.base_sha256, "verified": source.base_verified},
        "adapter": {
            "path": str(source.adapter),
            "config_sha256": sha256(source.adapter / CONFIG),
            "weights_sha256": sha256(source.adapter / WEIGHTS),
        },
        "merged": {
            "lora": pairs,
            "saved": len(plan.changes) - pairs,
            "untouched": len(plan.checkpoint.tensors) - len(plan.changes),
            "dtype": plan.stored_dtype,
        },
    }


def _summary(adapter: Adapter, source: Source, plan: MergePlan) -> str:
    return (
        f"Merging {len(adapter.pairs)} LoRA pairs and {len(adapter.saved)} saved tensors of {source.adapter} into "
        f"{len(plan.checkpoint.tensors)} tensors of {source.base}"
    )


def _check_inputs(out: Path, settings: ExportSettings) -> None:
    """What can be refused before the base is read."""
    if out.is_symlink() and not out.exists():
        raise InputError(f"{out} is a link that leads nowhere: give another --out or remove it.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists and is not empty: give another --out or remove it first.")
    parent = next(p for p in out.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{out} cannot be written ({parent} is no folder that can be written): give another --out.")
    if settings.onnx is not None:
        from imod_export.onnx.export import check_variants

        check_variants(settings.onnx)
    if settings.probes is not None:
        from imod_core.samples import read_samples

        read_samples(settings.probes)


def _check_apart(out: Path, source: Source) -> None:
    for folder in (source.base, source.adapter):
        if out.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{out} lies within {folder}, which is merged: give another --out.")


def _check_room(plan: MergePlan, out: Path) -> None:
    tensors = plan.checkpoint.tensors.values()
    wanted = sum(i.nbytes // ITEM_BYTES[i.dtype] * ITEM_BYTES[plan.dtype_of(i)] for i in tensors) + SPARE_BYTES
    free = shutil.disk_usage(next(p for p in out.absolute().parents if p.exists())).free
    if free < wanted:
        raise InputError(f"{out} needs {wanted / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free: make room.")


def _reject(folder: Path, out: Path, faults: list[str]) -> str:
    """Move the failed merge to the first free name beside `out`, and say what was wrong with it."""
    names = [out.with_name(f"{out.name}.rejected")] + [
        out.with_name(f"{out.name}.rejected-{n}") for n in range(2, 1000)
    ]
    target = next(name for name in names if not name.exists())
    folder.rename(target)
    more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
    return (
        f"The exported model is not the one that it was made from ({faults[0]}{more}): "
        f"it was kept in {target}, the report is parity/parity.html there."
    )
