"""vLLM's entry point `vllm.general_plugins`: where this package is installed, `vllm serve DIR` knows AVT.

vLLM calls `register` in every process, before it reads a model's configuration. AVT is served by vLLM's
Transformers backend; registering the classes saves `--trust-remote-code`. Videos are decoded by the project's
own decoder, so that the server sees the very frames that training saw. A vLLM or transformers whose interface
has moved must still serve other people's models: what fails here is logged and leaves them alone.
"""

import logging
from typing import Any

AVT_ARCHITECTURE = "AvtForConditionalGeneration"
BACKEND = "vllm.model_executor.models.transformers:TransformersMultiModalForCausalLM"
OMNI_ARCHITECTURES = ("Qwen2_5OmniModel", "Qwen2_5OmniForConditionalGeneration")
OMNI = "imod_serve.vllm_omni:SERVED"
VIDEO_BACKEND = "imod"
WEAVE = "use_audio_in_video"
CONNECTOR = "imod"
"""Name of the media connector that holds clients to limits."""
ALL_FRAMES = 32
"""Taken where a request asks for all frames; as many as vLLM takes by default."""

logger = logging.getLogger("vllm.imod")


def register() -> None:
    """Register AVT and its video decoding with transformers and vLLM. Safe to call again; never raises."""
    for step in (_register_model, _register_omni, _register_video, _register_connector, allow_weaving):
        try:
            step()
        except Exception as error:
            logger.warning("imod: %s failed (%r); AVT needs --trust-remote-code here", step.__name__, error)


def _register_model() -> None:
    from vllm import ModelRegistry

    import imod_core.avt

    imod_core.avt.register()
    if AVT_ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(AVT_ARCHITECTURE, BACKEND)


def _register_omni() -> None:
    """Qwen2.5-Omni by a class of ours, named and not imported: most servers run another model."""
    from vllm import ModelRegistry

    for architecture in OMNI_ARCHITECTURES:
        ModelRegistry.register_model(architecture, OMNI)


def allow_weaving() -> None:
    """Let a request ask for a video's own sound between its frames, though it may set nothing else of a processor."""
    from vllm.renderers import online_renderer

    checked = online_renderer.validate_request_mm_kwargs

    def validate_request_mm_kwargs(*, mm_processor_kwargs: dict[str, Any] | None, **others: Any) -> None:
        if mm_processor_kwargs in ({WEAVE: True}, {WEAVE: False}):
            mm_processor_kwargs = None
        checked(mm_processor_kwargs=mm_processor_kwargs, **others)

    if checked.__module__ != __name__:
        online_renderer.validate_request_mm_kwargs = validate_request_mm_kwargs


def _register_connector() -> None:
    """Used where VLLM_MEDIA_CONNECTOR names it."""
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

    from imod_serve.connector import LimitedConnector

    MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)(LimitedConnector)


def _register_video() -> None:
    """Take over the decoding for AVT's video processor, and for others where `--media-io-kwargs` names it."""
    from vllm.multimodal.video import VIDEO_LOADER_REGISTRY, VideoLoader

    from imod_core.sampling import FrameSampling, load_clip

    @VIDEO_LOADER_REGISTRY.register(VIDEO_BACKEND, video_processor="AvtVideoProcessor")
    class ImodVideoLoader(VideoLoader):
        """The frames that training takes, see `imod_core.sampling`."""

        @staticmethod
        def sampling(
            num_frames: int = -1,
            fps: float | None = None,
            rule: str | None = None,
            min_frames: int | None = None,
            max_frames: int | None = None,
            **kwargs: Any,
        ) -> FrameSampling:
            """What `--media-io-kwargs` say."""
            count = None if fps else num_frames if num_frames > 0 else ALL_FRAMES
            return FrameSampling(count, fps, rule, min_frames, max_frames)

        @classmethod
        def load_bytes(cls, data: bytes, num_frames: int = -1, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
            clip = load_clip(data, cls.sampling(num_frames, **kwargs))
            return clip.frames, {**clip.metadata, "video_backend": VIDEO_BACKEND, "do_sample_frames": False}
