"""Configuration of AVT, the composed audio-visual-text model: an LLM, a vision tower, an audio tower, two projectors.

This file, `modeling_avt.py`, `processing_avt.py` and `video_processing_avt.py` import nothing of this package but each
other: they are copied into every saved model folder, so that transformers and vLLM can load it on their own.
"""

from transformers import AutoConfig, PreTrainedConfig


class AvtConfig(PreTrainedConfig):
    """What AVT is composed of and how a medium becomes tokens.

    Args:
        text_config: configuration of the causal LLM, any that transformers knows.
        vision_config: configuration of the vision tower: its output is `(B, C, H, W)` or `(B, H*W [+1], C)`.
        audio_config: configuration of the audio tower, an encoder or an encoder-decoder whose encoder is taken.
        image_token_id, video_token_id, audio_token_id: placeholders, one for each embedding of a medium.
        boundary_token_ids: the markers around a medium; they belong to no modality.
        vision_feature_size: channels of the vision tower's output.
        vision_grid: a picture is pooled to `vision_grid x vision_grid` tokens, column by column from the left.
        video_frames: frames taken evenly from a video.
        audio_layers: hidden states of the audio tower that are concatenated; 0 is the input of the first layer.
        audio_pool_frames: tower frames behind one audio token, which holds their mean and standard deviation.
        audio_window_frames: tower frames of one window of sound.
        projector_hidden_size: width of the projectors' hidden layer; the LLM's width if None.
    """

    model_type = "avt"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig, "audio_config": AutoConfig}  # noqa: RUF012

    def __init__(
        self,
        text_config: PreTrainedConfig | dict | None = None,
        vision_config: PreTrainedConfig | dict | None = None,
        audio_config: PreTrainedConfig | dict | None = None,
        image_token_id: int = 0,
        video_token_id: int = 1,
        audio_token_id: int = 2,
        boundary_token_ids: list[int] | None = None,
        vision_feature_size: int = 1280,
        vision_grid: int = 3,
        video_frames: int = 2,
        audio_layers: list[int] | None = None,
        audio_pool_frames: int = 20,
        audio_window_frames: int = 200,
        projector_hidden_size: int | None = None,
        **kwargs,
    ):
        self.text_config = _resolve(text_config, "llama")
        self.vision_config = _resolve(vision_config, "timm_wrapper")
        self.audio_config = _resolve(audio_config, "whisper")
        self.image_token_id = image_token_id
        self.video_token_id = video_token_id
        self.audio_token_id = audio_token_id
        self.boundary_token_ids = list(boundary_token_ids or [])
        self.vision_feature_size = vision_feature_size
        self.vision_grid = vision_grid
        self.video_frames = video_frames
        self.audio_layers = list(audio_layers if audio_layers is not None else [-1])
        self.audio_pool_frames = audio_pool_frames
        self.audio_window_frames = audio_window_frames
        self.projector_hidden_size = projector_hidden_size or self.text_config.hidden_size
        kwargs.setdefault("tie_word_embeddings", bool(self.text_config.tie_word_embeddings))
        super().__init__(**kwargs)

    @property
    def audio_window_tokens(self) -> int:
        """Placeholders of one window of sound."""
        return self.audio_window_frames // self.audio_pool_frames

    @property
    def audio_feature_size(self) -> int:
        """Width of one pooled audio state: mean and deviation of every layer taken."""
        width = getattr(self.audio_config, "d_model", None) or self.audio_config.hidden_size
        return 2 * len(self.audio_layers) * width


def _resolve(config: PreTrainedConfig | dict | None, default: str) -> PreTrainedConfig:
    if isinstance(config, PreTrainedConfig):
        return config
    values = dict(config or {})
    return AutoConfig.for_model(values.pop("model_type", default), **values)


__all__ = ["AvtConfig"]
