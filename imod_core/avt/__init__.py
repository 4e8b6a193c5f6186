"""AVT, the composed audio-visual-text model, registered with transformers' Auto classes on import."""

from imod_core.avt.configuration_avt import AvtConfig
from imod_core.avt.modeling_avt import AvtForConditionalGeneration, AvtModel
from imod_core.avt.processing_avt import AvtProcessor
from imod_core.avt.video_processing_avt import AvtVideoProcessor

__all__ = [
    "AvtConfig",
    "AvtForConditionalGeneration",
    "AvtModel",
    "AvtProcessor",
    "AvtVideoProcessor",
    "register",
]


def register() -> None:
    """Make AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor and AutoVideoProcessor know AVT."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoVideoProcessor,
    )

    AutoConfig.register("avt", AvtConfig, exist_ok=True)
    AutoModel.register(AvtConfig, AvtModel, exist_ok=True)
    AutoModelForImageTextToText.register(AvtConfig, AvtForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(AvtConfig, AvtProcessor, exist_ok=True)
    AutoVideoProcessor.register(AvtConfig, AvtVideoProcessor, exist_ok=True)


register()
