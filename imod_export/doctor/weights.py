"""Are the weight files whole, listed rightly, and safetensors?"""

import math
import shlex
from collections.abc import Iterator
from pathlib import Path

from imod_core.errors import ImodError
from imod_export.doctor.finding import Finding, Patient
from imod_export.folder import PICKLE_SUFFIXES, SPEAKERS
from imod_export.tensors import INDEX, SINGLE, read_checkpoint, read_shard

CHECK = "weights"


def check(patient: Patient) -> Iterator[Finding]:
    """Headers and byte ranges, missing and surplus shards, the index's sum, pickles."""
    yield from _readable(patient)
    yield from _index(patient)
    yield from _surplus(patient)
    yield from _pickles(patient)


def _readable(patient: Patient) -> Iterator[Finding]:
    try:
        read_checkpoint(patient.folder)
    except (ImodError, OSError) as error:
        why = "no engine loads the folder, or it loads other values than were saved"
        yield Finding(CHECK, str(error).rstrip("."), why, patient.merge_again())


def _index(patient: Patient) -> Iterator[Finding]:
    checkpoint = patient.checkpoint
    if checkpoint is None or checkpoint.index is None:
        return
    told = (checkpoint.index.get("metadata") or {}).get("total_size")
    if told != checkpoint.nbytes:
        change = f"c.setdefault('metadata', {{}})['total_size'] = {checkpoint.nbytes}"
        what = f"{INDEX} says total_size {told}, the tensors have {checkpoint.nbytes} bytes"
        why = "loaders plan memory and check downloads by it"
        yield Finding(CHECK, what, why, patient.edit(change, INDEX))
    unlisted = checkpoint.tensors.keys() - checkpoint.index["weight_map"].keys()
    if unlisted:
        what = f"{len(unlisted)} tensors are in the shards and not in {INDEX}, first '{min(unlisted)}'"
        yield Finding(CHECK, what, "transformers does not load what the index leaves out", patient.merge_again())


def _surplus(patient: Patient) -> Iterator[Finding]:
    """vLLM reads every safetensors file that the index does not exclude: another copy is loaded over the first."""
    if patient.checkpoint is None:
        return
    used = {shard.path.name for shard in patient.checkpoint.shards}
    surplus = sorted(path.name for path in patient.folder.glob("*.safetensors") if path.name not in used)
    if surplus:
        files = " ".join(shlex.quote(str(patient.folder / name)) for name in surplus)
        other = SINGLE if patient.checkpoint.index is None else INDEX
        what = (
            f"{', '.join(surplus[:3])} {'is' if len(surplus) == 1 else 'are'} no part of the model that {other} names"
        )
        yield Finding(CHECK, what, "some loaders read every safetensors file, and the last one wins", f"rm {files}")


def _pickles(patient: Patient) -> Iterator[Finding]:
    names = sorted(p.name for p in patient.folder.iterdir() if p.suffix in PICKLE_SUFFIXES and p.name != SPEAKERS)
    if names:
        files = " ".join(shlex.quote(str(patient.folder / name)) for name in names)
        why = "a pickle runs code when it is loaded, and vLLM prefers it where safetensors are missing"
        alone = patient.checkpoint is None and not any(patient.folder.glob("*.safetensors"))
        mend = patient.merge_again() if alone else f"rm {files}"
        yield Finding(CHECK, f"{', '.join(names[:3])}: pickle files lie beside the weights", why, mend)


def adapter_weights(path: Path) -> Iterator[Finding]:
    """The header of an adapter's file, and that it holds anything."""
    try:
        shard = read_shard(path)
    except (ImodError, OSError) as error:
        yield Finding(CHECK, str(error).rstrip("."), "the adapter cannot be loaded", "imod train RECIPE --resume")
        return
    if not sum(math.prod(info.shape) for info in shard.tensors):
        yield Finding(CHECK, f"{path.name} holds no values", "there is nothing to merge", "imod train RECIPE --out RUN")
