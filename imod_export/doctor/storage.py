"""How the numbers are stored: configuration readable, dtype as it says, no quantisation that is not there."""

from collections import Counter
from collections.abc import Iterator

from imod_core.artifacts import read_json
from imod_core.errors import ImodError
from imod_export.doctor.finding import Finding, Patient
from imod_export.folder import DTYPE_KEYS
from imod_export.quantised import quantisation, quantised_tensors
from imod_export.tensors import DTYPES

CHECK = "storage"


def check(patient: Patient) -> Iterator[Finding]:
    """config.json itself, then dtype and quantisation in it against the tensors."""
    try:
        read_json(patient.folder / "config.json")
    except (ImodError, OSError) as error:
        found = str(error).rstrip(".") if isinstance(error, ImodError) else "there is no config.json"
        yield Finding(CHECK, found, "nothing knows what model this is", patient.copy("config.json"))
        return
    if patient.checkpoint is not None:
        yield from _quantisation(patient)
        yield from _dtype(patient)


def _quantisation(patient: Patient) -> Iterator[Finding]:
    assert patient.checkpoint is not None
    method, tensors = quantisation(patient.config), quantised_tensors(patient.checkpoint)
    codes = [n for n, i in patient.checkpoint.tensors.items() if i.dtype in ("U8", "I8", "I32", "F8_E4M3", "F8_E5M2")]
    if method and not tensors and not codes:
        what = f"config.json says quantised ({method}), and all weights are plain numbers"
        why = "loaders look for codes and scales that are not there, or quantise the merge once more"
        yield Finding(CHECK, what, why, patient.edit("c.pop('quantization_config', None)"))
    if tensors and not method:
        what = f"'{tensors[0]}' belongs to quantised weights, and config.json says nothing of quantisation"
        why = "codes are read as weights: answers are noise"
        yield Finding(CHECK, what, why, patient.merge_again("16_BIT_BASE"))


def _dtype(patient: Patient) -> Iterator[Finding]:
    assert patient.checkpoint is not None
    sizes: Counter[str] = Counter()
    for info in patient.checkpoint.tensors.values():
        sizes[info.dtype] += info.nbytes
    names = {v: k for k, v in DTYPES.items()}
    stored = names.get(sizes.most_common(1)[0][0]) if sizes else None
    key = next((key for key in DTYPE_KEYS if key in patient.config), DTYPE_KEYS[0])
    told = next((str(p[k]) for p in (patient.config, patient.core, patient.text) for k in DTYPE_KEYS if p.get(k)), None)
    if told and stored and told != stored and told in DTYPES:
        what = f"config.json says {told}, the weights are {stored}"
        why = "servers cast to what config.json says: memory doubles, or large values overflow in float16"
        yield Finding(CHECK, what, why, patient.edit(f"c['{key}'] = '{stored}'"), "note")
