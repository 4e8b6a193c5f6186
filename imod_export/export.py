"""Adapters and their base to a merged model folder, complete and compared, or to nothing.

OUT/*.safetensors        the base's weights with the adapters in them, and their index
OUT/config.json …        every other file of the base: processor, template, tokenizer, generation config, model code
OUT/onnx/                if asked for: the model as ONNX graphs, complete on its own
OUT/README.md            model card: method, data, what rounding cost, what the comparison found
OUT/merge.json           each update's strength, and how much of it rounding lost
OUT/parity/              parity.json and parity.html
OUT/manifest.json        base and adapter identities, method, digests; written last

OUT appears when all of it is there and the comparison passed. A merge that fails it is kept as OUT.rejected. One that
was interrupted goes on when the same command is run again.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from imod_core.artifacts import blake3_of, write_json, write_manifest
from imod_core.console import console
from imod_core.errors import CheckFailed, InputError
from imod_export.adapter import CONFIG, WEIGHTS, read_adapter
from imod_export.folder import copy_companions, set_dtype, set_untied
from imod_export.plan import MergePlan, make_plan
from imod_export.processor import set_media
from imod_export.rounding import MODES, WARN_LOST, Rounding
from imod_export.source import Identity, Sources, find_sources
from imod_export.tensors import DTYPES, read_checkpoint
from imod_export.work import Work, place_of, sweep, work_on

SPARE_BYTES = 64 << 20
"""Room beside the weights, for everything else in the folder."""
MERGE_FILE = "merge.json"


@dataclass(frozen=True)
class ExportSettings:
    """What `imod export` was asked for."""

    dtype: str | None = None
    """`float32`, `bfloat16` or `float16` for all weights; None keeps the base's."""
    rounding: str = "nearest"
    """How merged weights are cast to fewer bits: `nearest` or `stochastic`."""
    seed: int = 0
    """Of stochastic rounding."""
    untie: bool = False
    """Give the head a tensor of its own where an adapter changes one of two tied embeddings."""
    max_shard: int | None = None
    """Bytes of a file; None keeps the base's files."""
    probes: Path | None = None
    """A sample file to compare on; None takes the built-in probes."""
    parity: bool = True
    """Whether to compare at all."""
    onnx: tuple[str, ...] | None = None
    """Smaller forms of the ONNX graphs beside float32, e.g. `("int8",)`; None writes no ONNX."""
    against: tuple[str, ...] = ()
    """Further links of the comparison's chain, as `vllm`."""
    strict: bool = True
    """Whether a merge that fails the comparison is rejected."""
    push: str | None = None
    """Repository on a model hub to upload the result to."""
    weights: tuple[float, ...] = field(default=())
    """Of several adapters; empty takes 1 for each."""

    def __post_init__(self) -> None:
        for name, allowed in (("dtype", (None, *DTYPES)), ("rounding", MODES)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}: expected one of {', '.join(map(str, allowed))}.")
        if self.max_shard is not None and self.max_shard < 1:
            raise InputError(f"max_shard is {self.max_shard}: expected bytes above 0.")


def export(
    paths: Path | Sequence[Path], out: Path, base: Path | None = None, settings: ExportSettings | None = None
) -> Path:
    """Merge the runs or adapters at `paths` into their base as `out`, and compare; returns `out`.

    Raises:
        InputError, MissingFileError: unusable input; nothing is written.
        CheckFailed: the merged model is not the attached one; it lies in `out`.rejected with its report.
    """
    settings = settings or ExportSettings()
    check_inputs(out, settings)
    sources = find_sources([paths] if isinstance(paths, Path) else paths, base, settings.weights)
    _check_apart(out, sources)
    plan = plan_of(sources, settings)
    _check_room(plan, out)
    if settings.onnx is not None:
        from imod_export.graphs import check_model

        check_model(sources.base)
    if settings.parity:
        _check_comparable(sources, settings)
    identity = Identity(sources)
    _say_plan(sources, plan)
    with work_on(out, _fingerprint(sources, plan, settings)) as work:
        costs = _write_model(plan, sources, work, settings, identity)
        facts = _facts(sources, plan, settings, identity.get())
        work.keep()
        report = _compare(sources, plan, work.folder, settings, costs) if settings.parity else None
        verdict = None if report is None else report.verdict
        if settings.onnx is not None:
            from imod_export.graphs import add_graphs

            verdict = add_graphs(work.folder, work.folder, settings, verdict)
        _finish(work, sources, plan, facts, costs, report, verdict)
        if verdict is not None and not verdict["passed"]:
            on_failure(work.folder, out, verdict["faults"], settings.strict)
    note = "" if report else "; it was not compared (--no-parity)"
    console.print(f"Merged model written to {out}{note}", soft_wrap=True)
    if settings.push:
        from imod_export.hub import push

        console.print(f"Pushed to {push(out, settings.push)}")
    return out


def plan_of(sources: Sources, settings: ExportSettings) -> MergePlan:
    """The merge of `sources` as `settings` want it."""
    adapters = [read_adapter(source.adapter, source.weight) for source in sources.adapters]
    return make_plan(
        read_checkpoint(sources.base), adapters, settings.dtype, untie=settings.untie, max_shard=settings.max_shard
    )


def _write_model(
    plan: MergePlan, sources: Sources, work: Work, settings: ExportSettings, identity: Identity
) -> list[dict[str, Any]]:
    from imod_export.merge import rounding_costs, write_weights

    left_out = copy_companions(sources.base, work.folder)
    if left_out:
        console.print(f"Left out, since pickles can run code: {', '.join(left_out)}")
    if settings.dtype:
        set_dtype(work.folder, settings.dtype)
    if plan.untied:
        set_untied(work.folder)
    set_media(work.folder, sources.media)
    write_weights(plan, work, Rounding(settings.rounding, settings.seed), identity.check)
    costs = rounding_costs(plan, work)
    write_json(work.folder / MERGE_FILE, {"rounding": settings.rounding, "dtype": plan.stored_dtype, "updates": costs})
    _warn_of_rounding(costs, plan.stored_dtype)
    return costs


def _warn_of_rounding(costs: list[dict[str, Any]], dtype: str) -> None:
    lossy = [cost for cost in costs if cost["lost"] > WARN_LOST]
    if lossy:
        worst = max(lossy, key=lambda cost: cost["lost"])
        console.print(
            f"Warning: rounding to {dtype} lost more than {WARN_LOST:.0%} of {len(lossy)} of {len(costs)} updates, at "
            f"most {worst['lost']:.0%} ({worst['name']}): give --dtype float32 or --rounding stochastic.",
            soft_wrap=True,
        )


def _compare(
    sources: Sources, plan: MergePlan, folder: Path, settings: ExportSettings, costs: list[dict[str, Any]]
) -> Any:
    from imod_export.parity import Chain, check_parity
    from imod_export.report import write_report

    attached = tuple((source.adapter, source.weight) for source in sources.adapters)
    chain = Chain(
        folder, plan.stored_dtype, sources.base, attached, settings.against, settings.probes, settings.rounding,
        limited=bool(sources.media),
    )  # fmt: skip
    report = check_parity(chain)
    names = ", ".join(source.adapter.parent.name if source.run else source.adapter.name for source in sources.adapters)
    write_report(report, folder / "parity", {"base": sources.base.name, "adapter": names}, costs)
    return report


def _finish(
    work: Work, sources: Sources, plan: MergePlan, facts: dict[str, Any], costs: list[dict[str, Any]], report: Any,
    verdict: dict[str, Any] | None,
) -> None:  # fmt: skip
    """Card and manifest, last of all."""
    from imod_export.card import write_card

    write_card(work.folder, sources, facts, costs, report)
    digests = {shard.name: (work.record(shard.name) or {}).get("blake3", "") for shard in plan.shards}
    write_manifest(work.folder, "export", digests, **facts, parity=verdict)


def _facts(sources: Sources, plan: MergePlan, settings: ExportSettings, identity: str | None) -> dict[str, Any]:
    low_rank = sum(bool(change.updates) for change in plan.changes.values())
    return {
        "method": sources.method,
        "base": {
            "path": str(sources.base),
            "blake3": identity,
            "headers_blake3": _headers_digest(plan),
            "verified": sources.verified,
        },
        **({"media": sources.media} if sources.media else {}),
        "adapter": _adapter_facts(sources)[0],
        **({"adapters": _adapter_facts(sources)} if len(sources.adapters) > 1 else {}),
        "merged": {
            "lora": low_rank,
            "saved": len(plan.changes) - low_rank,
            "untouched": len(plan.outputs) - len(plan.changes),
            "dtype": plan.stored_dtype,
            "rounding": settings.rounding,
            **({"cast": True} if settings.dtype else {}),
            **({"seed": settings.seed} if settings.rounding == "stochastic" else {}),
        },
    }


def _headers_digest(plan: MergePlan) -> str:
    """Of the base's names, shapes and dtypes: cheap, and enough to see that another base was meant."""
    return blake3(b"".join(shard.header for shard in plan.checkpoint.shards)).hexdigest()


def _adapter_facts(sources: Sources) -> list[dict[str, Any]]:
    return [
        {
            "path": str(source.adapter),
            "weight": source.weight,
            "config_blake3": blake3_of(source.adapter / CONFIG),
            "weights_blake3": blake3_of(source.adapter / WEIGHTS),
        }
        for source in sources.adapters
    ]


def _fingerprint(sources: Sources, plan: MergePlan, settings: ExportSettings) -> str:
    """What an interrupted merge must have in common with this one to be gone on with."""
    headers = [
        (shard.path.name, blake3(shard.header).hexdigest(), shard.path.stat().st_mtime_ns)
        for shard in plan.checkpoint.shards
    ]
    options = [settings.dtype, settings.rounding, settings.seed, settings.untie, settings.max_shard]
    told = [str(sources.base.resolve()), headers, _adapter_facts(sources), options]
    return blake3(json.dumps(told).encode()).hexdigest()


def _say_plan(sources: Sources, plan: MergePlan) -> None:
    low_rank = sum(len(change.updates) for change in plan.changes.values())
    whole = sum(bool(change.replacement or change.rows) for change in plan.changes.values())
    names = " and ".join(
        f"{source.adapter}{f' (weight {source.weight:g})' if source.weight != 1 else ''}" for source in sources.adapters
    )
    console.print(
        f"Merging {low_rank} LoRA pairs and {whole} saved tensors of {names} into "
        f"{len(plan.checkpoint.tensors)} tensors of {sources.base}",
        soft_wrap=True,
    )
    if plan.untied:
        console.print("The head gets a tensor of its own: embeddings are no longer tied.")


def check_inputs(out: Path, settings: ExportSettings) -> None:
    """What can be refused before the base is read."""
    if out.is_symlink() and not out.exists():
        raise InputError(f"{out} is a link that leads nowhere: give another --out or remove it.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        sweep(out)
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
    if settings.push:
        from imod_export.hub import check_target

        check_target(settings.push)


def _check_comparable(sources: Sources, settings: ExportSettings) -> None:
    """Refuse before the merge what the comparison after it would stumble over."""
    from imod_export.parity import Chain, prepare

    attached = tuple((source.adapter, source.weight) for source in sources.adapters)
    prepare(Chain(sources.base, "float32", None, attached, settings.against, settings.probes))


def _check_apart(out: Path, sources: Sources) -> None:
    for folder in (sources.base, *(source.adapter for source in sources.adapters)):
        if out.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{out} lies within {folder}, which is merged: give another --out.")


def _check_room(plan: MergePlan, out: Path) -> None:
    wanted = plan.nbytes + SPARE_BYTES
    free = shutil.disk_usage(next(p for p in out.absolute().parents if p.exists())).free
    free += sum(path.stat().st_size for path in place_of(out).rglob("*") if path.is_file())  # an interrupted merge's
    if free < wanted:
        raise InputError(f"{out} needs {wanted / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free: make room.")


def on_failure(folder: Path, out: Path, faults: list[str], strict: bool) -> None:
    """Move the failed merge to the first free name beside `out`, or only say so, and what was wrong with it."""
    more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
    told = f"The exported model is not the one that it was made from ({faults[0]}{more})"
    if not strict:
        console.print(f"Warning: {told}; --no-strict keeps it all the same.", soft_wrap=True)
        return
    names = [out.with_name(f"{out.name}.rejected{f'-{n}' if n > 1 else ''}") for n in range(1, 1000)]
    target = next(name for name in names if not name.exists())
    folder.rename(target)
    raise CheckFailed(f"{told}: it was kept in {target}, the report is parity/parity.html there.")
