"""Is all there that stands beside the weights: tokenizer, processor, chat template, generation config, voices?"""

from collections.abc import Iterator

from imod_core.modality import modalities
from imod_export.doctor.finding import Finding, Patient
from imod_export.folder import SPEAKERS
from imod_export.names import EMBEDDING, canonical

CHECK = "companions"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json")
PARTS = {
    "image": (("preprocessor_config.json", "image_processor_type"), ("processor_config.json", "image_processor")),
    "audio": (
        ("preprocessor_config.json", "feature_extractor_type"), ("processor_config.json", "feature_extractor"),
        ("processor_config.json", "audio_processor"),
    ),
    "video": (
        ("video_preprocessor_config.json", "video_processor_type"), ("processor_config.json", "video_processor"),
        ("preprocessor_config.json", "image_processor_type"),
    ),
}  # fmt: skip
"""Where transformers keeps the part of a processor that reads a medium: file and key, newer and older forms."""


def check(patient: Patient) -> Iterator[Finding]:
    """Files beside the weights, and that token ids fit the embedding."""
    if not patient.config:
        return
    yield from _tokenizer(patient)
    yield from _processor(patient)
    yield from _generation(patient)
    yield from _voices(patient)
    yield from _vocabulary(patient)


def media(patient: Patient) -> tuple[str, ...]:
    """Those that the model takes."""
    return modalities(patient.config)


def _tokenizer(patient: Patient) -> Iterator[Finding]:
    if not patient.has(*TOKENIZERS):
        what, why = "there is no tokenizer", "no text gets into the model or out of it"
        yield Finding(CHECK, what, why, patient.copy("tokenizer.json", "tokenizer_config.json"))
    inside = patient.json("tokenizer_config.json").get("chat_template")
    if not inside and not patient.has("chat_template.jinja", "chat_template.json"):
        why = "chat requests are refused, or answered in another format than was trained"
        yield Finding(CHECK, "there is no chat template", why, patient.copy("chat_template.jinja"))


def _processor(patient: Patient) -> Iterator[Finding]:
    for medium in media(patient):
        if not any(patient.json(name).get(key) for name, key in PARTS[medium]):
            what = f"config.json has {medium} tokens, but no file says how a {medium} is read"
            why = f"the processor does not load, or the {medium} is dropped on the way to the model"
            yield Finding(CHECK, what, why, patient.copy(*dict.fromkeys(name for name, _ in PARTS[medium][:2])))


def _generation(patient: Patient) -> Iterator[Finding]:
    if not patient.has("generation_config.json"):
        why = "a chat model that ends its turn with another token than config.json names does not stop"
        mend = patient.copy("generation_config.json")
        yield Finding(CHECK, "there is no generation_config.json", why, mend, "note")


def _voices(patient: Patient) -> Iterator[Finding]:
    speaks = patient.config.get("model_type") == "qwen2_5_omni" and patient.config.get("enable_audio_output", True)
    if speaks and not patient.has(SPEAKERS):
        what = f"enable_audio_output is on, and {SPEAKERS} is not there"
        why = "transformers' full class does not load without it"
        yield Finding(CHECK, what, why, patient.copy(SPEAKERS))


def _vocabulary(patient: Patient) -> Iterator[Finding]:
    tensors = patient.checkpoint.tensors if patient.checkpoint else {}
    rows = next((i.shape[0] for n, i in tensors.items() if canonical(n) == f"{EMBEDDING}.weight" and i.shape), None)
    ids = {key: value for key in patient.core if key.endswith("_token_id") and type(value := patient.core[key]) is int}
    beyond = [f"{key} {value}" for key, value in ids.items() if rows is not None and value >= rows]
    if beyond:
        what = f"{beyond[0]} lies beyond the embedding's {rows} rows"
        why = "a prompt with that token ends the server, or reads another token's row"
        yield Finding(CHECK, what, why, patient.merge_again())
    size = patient.text.get("vocab_size")
    if rows is not None and isinstance(size, int) and size != rows:
        what = f"vocab_size is {size}, the embedding has {rows} rows"
        part = "c['thinker_config']" if "thinker_config" in patient.config else "c"
        part += "['text_config']" if patient.text is not patient.core else ""
        mend = patient.edit(f"{part}['vocab_size'] = {rows}")
        why = "the model does not load: the vocabulary was extended before or after the merge"
        yield Finding(CHECK, what, why, mend)
