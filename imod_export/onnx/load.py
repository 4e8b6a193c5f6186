"""The part of a model folder that becomes graphs: all of it, or of an omni model the thinker."""

from pathlib import Path
from typing import Any

from imod_export.subject import load_model
from imod_export.tensors import read_json

OMNI = "qwen2_5_omni"


def load_core(folder: Path) -> Any:
    """The model in float32. A full Qwen2.5-Omni also speaks; only its thinker is loaded, which needs no voices.

    Raises:
        InputError: transformers does not load it.
    """
    if read_json(folder / "config.json").get("model_type") != OMNI:
        return load_model(folder, "float32", "float32")
    import torch
    from transformers import AutoConfig, Qwen2_5OmniThinkerForConditionalGeneration

    config = AutoConfig.from_pretrained(folder).thinker_config
    kind = Qwen2_5OmniThinkerForConditionalGeneration
    return kind.from_pretrained(folder, config=config, dtype=torch.float32).eval()
