"""What has to be known of a model family because it cannot be read from a model folder, and how a small one is drawn.

Which modalities a model takes is not here: its configuration's placeholder ids say so (`imod_core.modality`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_LAYER = r"(?:.*\.)?model\.(?:language_model\.)?layers\.\d+"
LANGUAGE_LINEARS = rf"{_LAYER}\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)"
"""The linears of the language model by their names at run time, in a thinker of its own without `language_model`;
towers and projectors have another name before `layers`."""
ATTENTION_LINEARS = rf"{_LAYER}\.self_attn\.[qkvo]_proj"
"""Those of its attention alone."""

Ids = Mapping[str, int]
"""Token to id, of a tokenizer."""


@dataclass(frozen=True)
class Blueprint:
    """How to write a shrunken model folder that has the layout of the family's folders on the hub."""

    trainer: str
    """Which tokenizer is trained on the spot: `byte_level`, `llama` or `gemma`; see `imod_core.families.words`."""
    specials: tuple[str, ...]
    """Special tokens that the family's tokenizer adds, in the order of their ids."""
    tokenizer: Mapping[str, Any]
    """tokenizer_config.json."""
    config: Callable[[Ids, int], dict[str, Any]]
    """config.json as the hub has it, for these token ids and this number of rows in the embedding."""
    model: str
    """Class in transformers that holds every weight of the folder."""
    generation: Callable[[Ids], dict[str, Any]]
    """generation_config.json."""
    template: str
    """Chat template in the family's format."""
    template_file: str | None = "chat_template.jinja"
    """Where the hub's folder keeps it: a file of its own, JSON or not, or None for tokenizer_config.json."""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further JSON files: what tells processors how to read media."""
    finish: Callable[[Path], None] = lambda folder: None
    """Writes what is neither JSON nor weights."""


@dataclass(frozen=True)
class Family:
    """One family of models."""

    name: str
    title: str
    """As people call it."""
    model_type: str
    """In config.json."""
    trains: str
    """Class in transformers that is trained, by which the adapter's tensors are named."""
    serves: str
    """Class that vLLM runs."""
    blueprint: Blueprint | None = None
    """None for AVT, which is composed."""
    backbone: Blueprint | None = None
    """Of AVT's language model."""
    core: str | None = None
    """Part of config.json that belongs to `trains`, where that is not all of it."""
    linears: str = LANGUAGE_LINEARS
    """PEFT's `target_modules`: the linears of the language model that take an adapter."""
    exclude: str | None = None
    """PEFT's `exclude_modules`, where PEFT takes `linears` by the last part of its names alone."""
    left_alone: tuple[str, ...] = ()
    """Beginnings of tensor names in the hub's checkpoint that belong to other models, kept byte for byte."""
    vllm_owner: str | None = None
    """What an adapter's names need in front for vLLM to find them beside the base; None where it maps them itself."""
    sound_of_video: str | None = None
    """How a clip's sound reaches the model: `beside` as a sound of its own, or `interleaved` with the frames."""
    graphs: bool = False
    """Whether `imod export --onnx` has graphs for it."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """By column of `imod families`: why there is no figure, where that is known and documented."""
