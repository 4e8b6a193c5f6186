"""The frozen base of a run: AVT or any multimodal model of transformers, in full precision or in 4 bits.

Of a model that also speaks (Qwen omni) the thinker alone is loaded: it is what hears, sees and answers in text, and
the export puts it back among the other parts.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import logging

import imod_core.avt  # noqa: F401  (registers AVT with the Auto classes)
from imod_core.avt import AvtConfig, AvtForConditionalGeneration
from imod_core.console import console
from imod_core.errors import InputError, MissingExtraError
from imod_core.families.load import load_processor, mend, trained_class
from imod_core.hub import model_folder
from imod_core.modality import media_token_ids
from imod_train.recipe import Recipe

ATTENTION_ON_CPU = "eager"
"""On CPUs plain matrix products beat the fused kernel at short lengths in bfloat16 (about twice as fast)."""


def load_base(recipe: Recipe) -> tuple[PreTrainedModel, Any]:
    """The base in the recipe's precision or quantised, and its processor.

    Raises:
        MissingFileError: the base is no model folder.
        MissingExtraError: it is to be quantised and bitsandbytes is not there.
        InputError: its architecture cannot be trained here, or its files do not load.
    """
    folder = model_folder(recipe.base, "base")
    try:
        config = core_config(folder)
        model = _load(folder, config, recipe)
        processor = load_processor(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"The base '{folder}' cannot be loaded: {str(error).splitlines()[0]}") from None
    mend(model)
    model.config.get_text_config().use_cache = False
    return model, processor


def _load(folder: Path, config: Any, recipe: Recipe) -> PreTrainedModel:
    """The model with all its weights; those of an omni model's other parts are left on disk without a word."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    if not console.is_terminal:
        logging.disable_progress_bar()
    loaded: Any
    try:
        loaded = AutoModelForImageTextToText.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, recipe.precision),
            attn_implementation=attention(),
            output_loading_info=True,
            **_quantised(recipe, config),
        )
    finally:
        logging.set_verbosity(level)
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"The base '{folder}' lacks the weights of {missing[0]}{more}: copy or download it again.")
    return model


def core_config(folder: Path) -> Any:
    """The configuration of the part of a model folder that is trained, with placeholders for media.

    Raises:
        InputError: transformers has no class for it that takes media and text, or it names no placeholder.
    """
    _, config = trained_class(folder)
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise InputError(
            f"The base '{folder}' is a {config.model_type} model: imod train takes AVT bases and models of "
            "transformers that read media beside text."
        )
    media_token_ids(config)
    return config


def skeleton(config: Any, dtype: torch.dtype = torch.float32, implementation: str | None = None) -> PreTrainedModel:
    """The model of a configuration without weights, on the meta device."""
    chosen = implementation or attention()
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=chosen)


def attention() -> str:
    """Which implementation of attention training takes here."""
    return "sdpa" if torch.cuda.is_available() else ATTENTION_ON_CPU


def context_length(config: Any) -> int | None:
    """Tokens that the language model of a configuration was made for, where it says so."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def is_avt(model: PreTrainedModel) -> bool:
    """Whether a base is AVT, whose projectors are trained too and whose towers' states are kept on disk."""
    return isinstance(model, AvtForConditionalGeneration)


def is_avt_config(config: Any) -> bool:
    """The same of a configuration."""
    return isinstance(config, AvtConfig)


def decoder_name(model: PreTrainedModel) -> str:
    """The module name of the language model's layers in a multimodal model: where its word embeddings live."""
    embedding = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is embedding).rpartition(".")[0]


def beside_decoder(model: PreTrainedModel) -> list[str]:
    """Names of the largest modules that are no part of the language model's layers: towers, projectors, the head."""
    names, path = [], decoder_name(model).split(".")
    for depth, own in enumerate(path):
        parent = ".".join(path[:depth])
        children = (name for name, _ in model.get_submodule(parent).named_children() if name != own)
        names += [f"{parent}.{name}".lstrip(".") for name in children]
    return names


def _quantised(recipe: Recipe, config: Any) -> dict[str, Any]:
    """What `from_pretrained` wants for a base in 4 bits: the linear layers of the language model alone."""
    if recipe.base_quantization is None:
        return {}
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise MissingExtraError("bitsandbytes", "qlora") from None
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=recipe.base_quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, recipe.precision),
        llm_int8_skip_modules=beside_decoder(skeleton(config)),
    )
    return {"quantization_config": settings, "device_map": {"": 0 if torch.cuda.is_available() else "cpu"}}
