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
VIDEO_BACKEND = "imod"
CONNECTOR = "imod"
"""Name of the media connector that holds clients to limits."""
ALL_FRAMES = 32
"""Taken where a request asks for all frames; as many as vLLM takes by default."""

logger = logging.getLogger("vllm.imod")


def register() -> None:
    """Register AVT and its video decoding with transformers and vLLM. Safe to call again; never raises."""
    for step in (_register_model, _register_video, _register_connector):
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


def _register_connector() -> None:
    """Used where VLLM_MEDIA_CONNECTOR names it."""
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

    from imod_serve.connector import LimitedConnector

    MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)(LimitedConnector)


def _register_video() -> None:
    """Take over the decoding for AVT's video processor alone."""
    from vllm.multimodal.video import VIDEO_LOADER_REGISTRY, VideoLoader

    from imod_core.media import load_video

    @VIDEO_LOADER_REGISTRY.register(VIDEO_BACKEND, video_processor="AvtVideoProcessor")
    class ImodVideoLoader(VideoLoader):
        """`num_frames` frames at the places where training takes them."""

        @classmethod
        def load_bytes(cls, data: bytes, num_frames: int = -1, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
            frames = load_video(data, num_frames if num_frames > 0 else ALL_FRAMES)
            return frames, {
                "total_num_frames": len(frames),
                "fps": 1.0,
                "duration": float(len(frames)),
                "frames_indices": list(range(len(frames))),
                "video_backend": VIDEO_BACKEND,
                "do_sample_frames": False,
            }
