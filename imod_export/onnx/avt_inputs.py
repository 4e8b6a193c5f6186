"""AVT's prompts and media in numpy: ids, pixel values and mel features as `AvtProcessor` makes them.

The processor itself travels with torch and transformers; this is the same for a machine without them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imod_core.artifacts import read_json
from imod_core.errors import InputError
from imod_core.mel import MelSettings, log_mel
from imod_core.samples import Message
from imod_core.sampling import FrameSampling
from imod_export.onnx.chat import Chat
from imod_export.onnx.layout import AUDIO, VISION
from imod_export.onnx.pictures import PictureSettings, pixel_values, resize
from imod_export.onnx.prompt import Encoding, Prompt

IMAGE, VIDEO, SOUND = "<|image|>", "<|video|>", "<|audio|>"


class AvtInputs:
    """What `folder`'s processor_config.json and tokenizer.json make of questions and media."""

    def __init__(self, folder: Path, chat: Chat):
        settings = read_json(folder / "processor_config.json")
        self.chat, self.settings = chat, settings
        self.pictures = PictureSettings.read(settings["image_processor"])
        self.frames = PictureSettings.read(settings["video_processor"])
        extractor = settings["feature_extractor"]
        if (kind := extractor.get("feature_extractor_type")) != "WhisperFeatureExtractor":
            raise InputError(f"{folder} hears through a {kind}: expected a WhisperFeatureExtractor.")
        self.sounds = MelSettings.read(extractor)
        self.grid: int = settings["vision_grid"]
        self.num_frames: int = settings["video_processor"]["num_frames"]
        self.sampling, self.rate = FrameSampling(self.num_frames), self.sounds.rate

    def prompt(self, messages: Sequence[Message], media: dict[str, list[Any]]) -> Prompt:
        """Ids and encoder inputs. `media` by kind: pictures, sounds `(n,)`, videos `(T, H, W, 3)`, in tag order."""
        windows = [self._windows(np.asarray(sound, np.float32)) for sound in media.get("audio", [])]
        text = self._expand(self.chat.render(messages), [len(found) for found in windows])
        ids = self.chat.encode(text)
        encodings = list(self._encodings(media, windows))
        return Prompt(ids, np.arange(len(ids)), len(ids), encodings)

    def _encodings(self, media: dict[str, list[Any]], windows: list[list[NDArray[np.float32]]]) -> Iterator[Encoding]:
        if media.get("image"):
            pixels = [self._pixels(np.asarray(picture), self.pictures) for picture in media["image"]]
            yield Encoding("image", VISION, {"pixel_values": np.stack(pixels)}, self.chat.token_id(IMAGE))
        if media.get("video"):
            chosen = [video[frame_indices(len(video), self.num_frames)] for video in map(np.asarray, media["video"])]
            pixels = [self._pixels(frames, self.frames) for frames in chosen]
            feeds = {"pixel_values": np.concatenate(pixels)}
            yield Encoding("video", VISION, feeds, self.chat.token_id(VIDEO), self._by_column)
        if windows:
            mels = [log_mel(self._filled(window), self.sounds) for sound in windows for window in sound]
            yield Encoding("audio", AUDIO, {"input_features": np.stack(mels)}, self.chat.token_id(SOUND))

    def _pixels(self, pictures: NDArray[np.uint8], settings: PictureSettings) -> NDArray[np.float32]:
        size = settings.size
        return pixel_values(resize(pictures, size["height"], size["width"], settings.resample), settings)

    def _by_column(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Frames `(n*T, g*g, D)` to a video's order: by column, in it by frame, in it from the top."""
        width = features.shape[-1]
        grid = features.reshape(-1, self.num_frames, self.grid, self.grid, width)
        return grid.transpose(0, 2, 1, 3, 4).reshape(-1, width)

    def _windows(self, sound: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """As the processor cuts: consecutive windows, or evenly spaced ones beyond the limit."""
        size = int(self.settings["audio_window_seconds"] * self.rate)
        limit, span = self.settings["max_audio_windows"], size // self.settings["audio_window_tokens"]
        wanted = max(1, -((span - len(sound)) // size))
        if wanted <= limit:
            return [sound[i * size : (i + 1) * size] for i in range(wanted)]
        return [sound[start : start + size] for start in np.linspace(0, len(sound) - size, limit).astype(int)]

    def _filled(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        missing = max(0, self.sounds.samples - len(window))
        return np.pad(window, (0, missing))[: self.sounds.samples]

    def _expand(self, text: str, windows: list[int]) -> str:
        """Each placeholder to its tags, markers and as many placeholders as the medium has embeddings."""
        tokens = self.settings["audio_window_tokens"]
        sounds = (f"<|audio_start|>{self.settings['audio_tag']}{SOUND * (n * tokens)}<|audio_end|>" for n in windows)
        text = text.replace(IMAGE, self._columns(IMAGE, self.grid))
        text = text.replace(VIDEO, self._columns(VIDEO, self.grid * self.num_frames))
        head, *rest = text.split(SOUND)
        if len(rest) != len(windows):
            raise InputError(f"The question has {len(rest)} <audio> tags and {len(windows)} sounds: give one for each.")
        return head + "".join(sound + piece for sound, piece in zip(sounds, rest, strict=True))

    def _columns(self, token: str, tokens: int) -> str:
        tags = self.settings["column_tags"] or [""] * self.grid
        return "<|vision_start|>" + "".join(tag + token * tokens for tag in tags) + "<|vision_end|>"


def frame_indices(total: int, count: int) -> NDArray[np.int64]:
    """`count` of `total` frames as torch's float32 linspace, cut to whole numbers, chooses them."""
    if count == 1:
        return np.zeros(1, np.int64)
    step = np.float32(total - 1) / np.float32(count - 1)
    place = np.arange(count, dtype=np.float32)
    from_start, from_end = step * place, np.float32(total - 1) - step * place[::-1]
    return np.where(place < count // 2, from_start, from_end).astype(np.int64)
