"""Which class of transformers a model folder is loaded by, and with which part of its configuration."""

from pathlib import Path
from typing import Any

from imod_core.errors import InputError, MissingFileError, first_line
from imod_core.families import family_of


def trained_class(folder: Path) -> tuple[Any, Any]:
    """The class that is trained and its configuration: of an omni model the thinker's, which needs no voices.

    A folder of no family here goes by its model type.

    Raises:
        InputError: transformers does not know the architecture, or cannot read the configuration.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    import imod_core.avt  # noqa: F401  (registers AVT with the Auto classes)

    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{folder} has no configuration that loads ({first_line(error)}): is it a model folder?"
        ) from None
    family = family_of(config.to_dict())
    if family and family.blueprint:
        return getattr(transformers, family.trains), getattr(config, family.core) if family.core else config
    several = config.model_type in (*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "avt")
    return transformers.AutoModelForImageTextToText if several else transformers.AutoModelForCausalLM, config


def load_processor(folder: Path) -> Any:
    """The processor of a model folder.

    Raises:
        MissingFileError: the folder has none that loads.
    """
    from transformers import AutoProcessor

    import imod_core.avt  # noqa: F401  (registers AVT with the Auto classes)

    try:
        return AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise MissingFileError(
            f"{folder} has no processor that loads ({first_line(error)}): complete it first."
        ) from None


def mend(model: Any) -> None:
    """Put right what the installed transformers does wrong with a loaded model's family, if anything."""
    from imod_core.positions import mend_video_positions

    mend_video_positions()
    if type(model).__name__ == "Gemma4ForConditionalGeneration":
        from imod_core.families.gemma4 import pass_frame_counts

        pass_frame_counts(model)
