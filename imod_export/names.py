"""One name for a tensor whatever wrote it: PEFT, transformers 4 or 5, a full omni model or its thinker alone.

The same weight is called `thinker.model.layers.0.…` in an omni checkpoint, `model.language_model.layers.0.…` at run
time and in newer checkpoints, `language_model.model.layers.0.…` in older ones, `model.layers.0.…` in a text model. Both
sides of a merge are brought to one spelling and must then match one to one.
"""

import difflib
import re
from collections.abc import Iterable

PEFT_PREFIX = "base_model.model."
WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
"""Levels that compiling, sharding and checkpointing add to a module's name."""
REWRITES = (
    ("model.language_model.", "text."),
    ("language_model.model.", "text."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.", "text."),
    ("model.layers.", "text.layers."),
    ("model.embed_tokens.", "text.embed_tokens."),
    ("model.norm.", "text.norm."),
    ("layers.", "text.layers."),
    ("embed_tokens.", "text.embed_tokens."),
    ("norm.", "text.norm."),
    ("model.", ""),
)
"""Prefixes as found and their common spelling; the first that fits is applied, once."""
TOWER_LEVEL = re.compile(r"^(vision_tower|vision_model_tower)\.vision_model\.")
"""A level of CLIP's and SigLIP's towers that transformers 5 leaves out."""
OWNERS = ("thinker.",)
"""Parts of a larger model that are also saved on their own. A talker keeps its prefix: it is another language model."""
EMBEDDING, HEAD = "text.embed_tokens", "lm_head"
"""Modules that share one tensor where embeddings are tied, in their common spelling."""
_ADAPTER_NAME = re.compile(
    r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|token_adapter\.trainable_tokens_delta)"
    r"\.(?!weight$|bias$)[^.]+(\.weight|\.bias)?$"
)
_SAVED = re.compile(r"\.modules_to_save\.(?:default\.)?")


def canonical(name: str) -> str:
    """The common spelling of a base model's tensor or module name."""
    for owner in OWNERS:
        name = name.removeprefix(owner)
    for found, common in REWRITES:
        if name.startswith(found):
            name = common + name.removeprefix(found)
            break
    return TOWER_LEVEL.sub(r"\1.", name)


def without_peft(name: str) -> str:
    """An adapter's tensor name without what PEFT and training wrappers added, the adapter's own name included."""
    name = WRAPPERS.sub("", name).removeprefix(".")
    while name.startswith(PEFT_PREFIX):
        name = name.removeprefix(PEFT_PREFIX)
    name = _SAVED.sub(".", name)
    return _ADAPTER_NAME.sub(lambda match: f".{match.group(1)}{match.group(2) or ''}", name)


def head_beside(embedding: str) -> str:
    """The name that the head's weight has in the namespace of a base whose embedding's weight is `embedding`."""
    owner = next((owner for owner in OWNERS if embedding.startswith(owner)), "")
    nested = embedding.removeprefix(owner).startswith("language_model.model.")
    return f"{owner}{'language_model.' if nested else ''}lm_head.weight"


def nearest(name: str, others: Iterable[str], count: int = 2) -> list[str]:
    """The names most like `name`, by their common spelling, best first."""
    spellings = {canonical(other): other for other in others}
    return [spellings[hit] for hit in difflib.get_close_matches(canonical(name), spellings, n=count, cutoff=0.5)]
