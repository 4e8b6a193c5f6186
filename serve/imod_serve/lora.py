"""An adapter to be served beside its base instead of merged into it, in the form in which vLLM loads it truly.

vLLM takes low-rank pairs alone and refuses adapters with whole saved modules, such as AVT's projectors. Those do not
depend on the prompt either, so they move into the base: a view of it, links to its files and one further shard with
the saved tensors. Limits on media under which the adapter was trained go into the view's processor. Nothing of the base
is copied or changed.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imod_core.artifacts import read_json, write_json
from imod_core.errors import InputError, MissingFileError
from imod_core.families.served import adapter_for_vllm

if TYPE_CHECKING:
    from imod_export.adapter import Adapter
    from imod_export.plan import MergePlan
    from imod_export.source import Sources
    from imod_export.tensors import TensorInfo

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank."""
SAVED = "zz_saved_modules.safetensors"
"""vLLM reads shards in the order of their names and the last one to name a tensor wins, so this must come last."""


@dataclass(frozen=True)
class ServedAdapter:
    """What vLLM is given."""

    base: Path
    """Folder of the base, or of a view of it with the adapter's saved modules and limits on media."""
    folder: Path
    """Folder of an adapter that holds low-rank pairs alone."""
    max_rank: int


def find_adapter(path: Path, base: Path | None) -> "Sources":
    """The adapter of a run or adapter folder, with its recorded base or the one given.

    Raises:
        MissingFileError: the adapter or its base is not there.
        InputError: the run's adapter was changed.
    """
    from imod_export.source import find_sources

    path = path.expanduser()
    if not path.is_dir():
        raise MissingFileError(f"{path} is no folder: expected a run of imod train or a PEFT adapter after --lora.")
    try:
        return find_sources([path], base)
    except MissingFileError as error:
        if base or "base" not in str(error):
            raise
        raise MissingFileError(f"The base of {path} is not found: name it, imod serve BASE --lora {path}.") from None


def prepare_adapter(sources: "Sources", work: Path) -> ServedAdapter:
    """Check the adapter against its base by the merge's plan and bring both into a form that vLLM loads, in `work`.

    Raises:
        InputError: the adapter does not fit the base, or holds what vLLM cannot apply beside a base.
    """
    from imod_export.adapter import read_adapter
    from imod_export.plan import make_plan
    from imod_export.processor import set_media
    from imod_export.tensors import read_checkpoint

    adapter = read_adapter(sources.adapters[0].adapter)
    plan = make_plan(read_checkpoint(sources.base), adapter)
    if adapter.rows:
        raise InputError(f"{adapter.folder} trains single token rows, which vLLM cannot serve unmerged: merge it.")
    if not adapter.pairs:
        raise InputError(f"{adapter.folder} holds no low-rank pairs, so there is nothing to serve unmerged: merge it.")
    rank = max(pair.a.shape[0] for pair in adapter.pairs)
    if rank > RANKS[-1]:
        raise InputError(f"{adapter.folder} has rank {rank}: vLLM serves up to {RANKS[-1]} unmerged, merge it.")
    max_rank = next(known for known in RANKS if known >= rank)
    base, folder = sources.base.resolve(), adapter.folder.resolve()
    if adapter.saved or sources.media:
        base = work / "base"
        _write_base(plan, base)
        set_media(base, sources.media)
    if adapter.saved:
        folder = work / "adapter"
        _write_pairs(adapter, folder)
    named = adapter_for_vllm(folder, read_json(base / "config.json"), work / "named")
    return ServedAdapter(base, named, max_rank)


def _write_base(plan: "MergePlan", view: Path) -> None:
    """Links to the base's files, a shard of any saved tensors under the base's names, an index that knows it."""
    from imod_export.folder import link_files
    from imod_export.tensors import INDEX

    link_files(plan.checkpoint.folder, view, but=(INDEX,))
    saved = {name: change.replacement for name, change in plan.changes.items() if change.replacement}
    if saved:
        _write_shard(view / SAVED, saved)
    places = {info.name: shard.path.name for shard in plan.checkpoint.shards for info in shard.tensors}
    size = sum(info.nbytes for info in {**plan.checkpoint.tensors, **saved}.values())
    write_json(view / INDEX, {"metadata": {"total_size": size}, "weight_map": places | dict.fromkeys(saved, SAVED)})


def _write_pairs(adapter: "Adapter", folder: Path) -> None:
    """The adapter without its saved tensors."""
    from imod_export.adapter import CONFIG, WEIGHTS
    from imod_export.tensors import read_shard

    folder.mkdir()
    whole = {(info.path, info.start) for info in adapter.saved.values()}
    tensors = read_shard(adapter.folder / WEIGHTS).tensors
    _write_shard(folder / WEIGHTS, {info.name: info for info in tensors if (info.path, info.start) not in whole})
    (folder / CONFIG).write_text(json.dumps({**adapter.config, "modules_to_save": None}))


def _write_shard(path: Path, tensors: "dict[str, TensorInfo]") -> None:
    """A safetensors file of tensors that lie in others."""
    from imod_export.tensors import header_bytes

    with path.open("wb") as file:
        file.write(header_bytes([(name, info.dtype, info.shape) for name, info in tensors.items()], {"format": "pt"}))
        for info in tensors.values():
            with info.path.open("rb") as source:
                source.seek(info.start)
                file.write(source.read(info.nbytes))
