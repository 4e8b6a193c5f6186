"""Are input embedding and head tied as the configuration says?"""

from collections.abc import Iterator

from imod_export.doctor.finding import Finding, Patient
from imod_export.names import EMBEDDING, HEAD, canonical
from imod_export.tensors import TensorInfo

CHECK = "embeddings"
SAMPLE_BYTES = 1 << 20
"""Compared at the beginning, the middle and the end of the two tensors."""


def check(patient: Patient) -> Iterator[Finding]:
    """tie_word_embeddings in config.json against the tensors on disk."""
    if patient.checkpoint is None or not patient.config:
        return
    by_spelling = {canonical(name): info for name, info in patient.checkpoint.tensors.items()}
    embedding, head = by_spelling.get(f"{EMBEDDING}.weight"), by_spelling.get(f"{HEAD}.weight")
    told = next((p["tie_word_embeddings"] for p in _places(patient) if "tie_word_embeddings" in p), None)
    if told and embedding and head and not _alike(embedding, head):
        what = "tie_word_embeddings is true, and the head on disk is not the embedding"
        why = "loaders use the embedding as the head and forget what was trained in the other"
        yield Finding(CHECK, what, why, patient.edit(_set(patient, False)))
    if told is False and embedding and not head:
        what = "tie_word_embeddings is false, and there is no head on disk"
        why = "transformers makes a random head and only warns: answers are noise"
        yield Finding(CHECK, what, why, patient.edit(_set(patient, True)))


def _places(patient: Patient) -> list[dict]:
    thinker = patient.config.get("thinker_config") or {}
    return [patient.config, thinker, thinker.get("text_config") or {}, patient.config.get("text_config") or {}]


def _set(patient: Patient, value: bool) -> str:
    """Python that sets it wherever it is said."""
    paths = ["", "['thinker_config']", "['thinker_config']['text_config']", "['text_config']"]
    hit = [path for path, place in zip(paths, _places(patient), strict=True) if "tie_word_embeddings" in place]
    return "; ".join(f"c{path}['tie_word_embeddings'] = {value}" for path in hit)


def _alike(first: TensorInfo, second: TensorInfo) -> bool:
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    size = min(SAMPLE_BYTES, first.nbytes)
    with first.path.open("rb") as a, second.path.open("rb") as b:
        for offset in (0, (first.nbytes - size) // 2, first.nbytes - size):
            a.seek(first.start + offset)
            b.seek(second.start + offset)
            if a.read(size) != b.read(size):
                return False
    return True
