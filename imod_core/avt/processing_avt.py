"""AVT's processor: text, pictures, sounds and videos to `input_ids` with placeholders and the towers' inputs.

A picture becomes `<start>Left:<|image|>... Middle:... Right:...<end>`: one tag for each column of its grid, since
words that the LLM knows tell it where things are far better than position alone. A sound becomes
`<start>Sound:<|audio|>...<end>`, window by window. Every expansion begins and ends with a special token, so that
tokenising it alone or within the prompt gives the same ids.
"""

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin


class AvtProcessorKwargs(ProcessingKwargs, total=False):
    """Defaults of a call."""

    _defaults = {  # noqa: RUF012
        "text_kwargs": {
            "padding": False,
            "add_special_tokens": False,  # the chat template writes them
            "return_mm_token_type_ids": False,
            "return_text_replacement_offsets": False,
        },
        "videos_kwargs": {"return_metadata": False},
    }


class AvtProcessor(ProcessorMixin):
    """One call for all modalities: `processor(text=..., images=..., audio=..., videos=..., return_tensors="pt")`.

    Args:
        image_processor, feature_extractor, video_processor, tokenizer: the parts, any of transformers'.
        vision_grid: side of the token grid of a picture.
        audio_window_seconds, audio_window_tokens: length and placeholders of one window of sound.
        max_audio_windows: a longer sound is heard in this many windows, evenly spaced.
        column_tags: one text for each column of the grid; empty for none.
        audio_tag: text before the tokens of a sound; empty for none.
    """

    valid_processor_kwargs = AvtProcessorKwargs
    image_token = "<|image|>"
    video_token = "<|video|>"
    audio_token = "<|audio|>"
    vision_start, vision_end = "<|vision_start|>", "<|vision_end|>"
    audio_start, audio_end = "<|audio_start|>", "<|audio_end|>"

    def __init__(
        self,
        image_processor=None,
        feature_extractor=None,
        video_processor=None,
        tokenizer=None,
        chat_template=None,
        vision_grid: int = 3,
        audio_window_seconds: float = 4.0,
        audio_window_tokens: int = 10,
        max_audio_windows: int = 8,
        column_tags: tuple[str, ...] = ("Left:", " Middle:", " Right:"),
        audio_tag: str = "Sound:",
    ):
        self.vision_grid = vision_grid
        self.audio_window_seconds = audio_window_seconds
        self.audio_window_tokens = audio_window_tokens
        self.max_audio_windows = max_audio_windows
        self.column_tags = list(column_tags)
        self.audio_tag = audio_tag
        for modality in ("image", "video", "audio"):
            token = getattr(self, f"{modality}_token")
            setattr(self, f"{modality}_token_id", tokenizer.convert_tokens_to_ids(token))
        super().__init__(image_processor, feature_extractor, video_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The expansion of one picture."""
        return self._columns(self.image_token, self.vision_grid)

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs) -> str:
        """The expansion of one video: in each column all its frames."""
        frames = len(video_inputs["pixel_values_videos"][video_idx])
        return self._columns(self.video_token, frames * self.vision_grid)

    def replace_audio_token(self, audio_inputs: dict, audio_idx: int, **kwargs) -> str:
        """The expansion of one sound."""
        tokens = int(audio_inputs["audio_windows"][audio_idx]) * self.audio_window_tokens
        return f"{self.audio_start}{self.audio_tag}{self.audio_token * tokens}{self.audio_end}"

    def _columns(self, token: str, tokens: int) -> str:
        tags = self.column_tags or [""] * self.vision_grid
        return self.vision_start + "".join(tag + token * tokens for tag in tags) + self.vision_end

    def _process_audio(self, audio, **kwargs):
        """Cut each sound into windows and extract features window by window.

        Returns `input_features (n, W, ...)`, zero beyond a sound's own `audio_windows (n,)`, and the expansions.
        """
        windows = [self.cut_windows(np.asarray(sound, dtype=np.float32)) for sound in audio]
        rate = self.feature_extractor.sampling_rate
        flat = self.feature_extractor(
            [w for sound in windows for w in sound],
            sampling_rate=rate,
            padding="max_length",
            return_tensors="pt",
        )
        features = flat[self.feature_extractor.model_input_names[0]]
        counts = torch.tensor([len(sound) for sound in windows])
        padded = torch.nn.utils.rnn.pad_sequence(features.split(counts.tolist()), batch_first=True)
        processed = {"input_features": padded, "audio_windows": counts}
        return processed, [self.replace_audio_token(processed, i) for i in range(len(windows))]

    def cut_windows(self, sound: np.ndarray) -> list[np.ndarray]:
        """Windows of a mono sound `(samples,)`: consecutive, or evenly spaced where it is longer than the limit.

        What is left after a whole window and is shorter than the span of one token gets none of its own: codecs pad.
        """
        size = int(self.audio_window_seconds * self.feature_extractor.sampling_rate)
        wanted = max(1, -((size // self.audio_window_tokens - len(sound)) // size))
        if wanted <= self.max_audio_windows:
            return [sound[i * size : (i + 1) * size] for i in range(wanted)]
        starts = np.linspace(0, len(sound) - size, self.max_audio_windows).astype(int)
        return [sound[s : s + size] for s in starts]

    def __call__(self, images=None, text=None, videos=None, audio=None, **kwargs) -> BatchFeature:
        """As transformers' processors; without `return_tensors`, `input_ids` is a list of lists."""
        return super().__call__(images=images, text=text, videos=videos, audio=audio, **kwargs)

    def _get_num_multimodal_tokens(self, image_sizes=None, video_sizes=None, **kwargs) -> MultiModalData:
        """Tokens of media of the given sizes, `(height, width)` or `(frames, height, width)`, without the tags."""
        data = {}
        if image_sizes is not None:
            data["num_image_tokens"] = [self.vision_grid**2] * len(image_sizes)
            data["num_image_patches"] = [1] * len(image_sizes)
        if video_sizes is not None:
            frames = self.video_processor.num_frames
            data["num_video_tokens"] = [frames * self.vision_grid**2] * len(video_sizes)
        return MultiModalData(**data)

    @property
    def model_input_names(self) -> list[str]:
        """What the model's forward takes."""
        media = ["pixel_values", "pixel_values_videos", "input_features", "audio_windows"]
        return [*self.tokenizer.model_input_names, *media]


__all__ = ["AvtProcessor"]
