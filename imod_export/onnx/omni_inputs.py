"""Qwen2.5-Omni's prompts and media in numpy: ids, M-RoPE positions, patches and mel chunks as its processor makes them.

Videos are silent here, as everywhere in this project: a sound track is a sound of its own after its video.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imod_core.artifacts import read_json
from imod_core.errors import InputError
from imod_core.mel import MelSettings, log_mel
from imod_core.samples import Message
from imod_export.onnx.chat import Chat
from imod_export.onnx.frames import QwenFrames
from imod_export.onnx.layout import AUDIO, VISION
from imod_export.onnx.pictures import PictureSettings, pixel_values, resize
from imod_export.onnx.prompt import Encoding, Prompt

VIDEO_SIZE = {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}
"""Pixels of a frame, which transformers' processor sets over the saved ones."""
FPS = 2.0
"""Frames a second that transformers' processor counts time by, however many a video's frames really are."""
MOST_STRETCHED = 200


@dataclass(frozen=True)
class Patches:
    """How pictures are cut."""

    side: int
    frames: int
    """Of a video that share a patch."""
    merge: int
    """Patches along one side that become one token."""


class OmniInputs:
    """What `folder`'s configuration, processor and tokenizer make of questions and media."""

    def __init__(self, folder: Path, config: dict[str, Any], chat: Chat):
        thinker = config.get("thinker_config", config)
        settings = read_json(folder / "processor_config.json")
        pictures, videos = settings["image_processor"], settings["video_processor"]
        self.chat, self.settings = chat, thinker
        self.pictures, self.frames = PictureSettings.read(pictures), PictureSettings.read(videos)
        self.patches = Patches(pictures["patch_size"], pictures["temporal_patch_size"], pictures["merge_size"])
        self.sounds = MelSettings.read(settings["feature_extractor"])
        self.chunk = 2 * thinker["audio_config"]["n_window"]
        self.sampling, self.rate = QwenFrames.read(videos, self.patches.frames), self.sounds.rate
        self.ids = {kind: _token_id(thinker, kind) for kind in ("image", "audio", "video")}

    def prompt(self, messages: Sequence[Message], media: dict[str, list[Any]]) -> Prompt:
        """Ids, positions and encoder inputs; `media` as of `AvtInputs.prompt`."""
        pictures = [self._cut(np.asarray(p)[None], self.pictures, self.pictures.size) for p in media.get("image", [])]
        videos = [self._cut(np.asarray(v), self.frames, VIDEO_SIZE) for v in media.get("video", [])]
        mels = [self._mel(np.asarray(sound, np.float32)) for sound in media.get("audio", [])]
        tokens = {
            "image": [self._tokens(grid) for _, grid in pictures],
            "video": [self._tokens(grid) for _, grid in videos],
            "audio": [_sound_tokens(mel.shape[1]) for mel in mels],
        }
        ids = self._expand(self.chat.encode(self.chat.render(messages)), tokens)
        grids = {"image": [grid for _, grid in pictures], "video": [grid for _, grid in videos]}
        positions = self._positions(ids, tokens, grids)
        following = int(positions.max()) + 1
        return Prompt(ids, positions, following, list(self._encodings(pictures, videos, mels)))

    def _encodings(self, pictures: list, videos: list, mels: list[NDArray[np.float32]]) -> Iterator[Encoding]:
        for kind, cut in (("image", pictures), ("video", videos)):
            if cut:
                patches, grids = zip(*cut, strict=True)
                feeds = {"pixel_values": np.concatenate(patches), "image_grid_thw": np.array(grids, np.int64)}
                yield Encoding(kind, VISION, feeds, self.ids[kind])
        if mels:
            chunks = [mel[:, i : i + self.chunk] for mel in mels for i in range(0, mel.shape[1], self.chunk)]
            lengths = np.array([chunk.shape[1] for chunk in chunks], np.int64)
            filled = np.stack([np.pad(chunk, ((0, 0), (0, self.chunk - chunk.shape[1]))) for chunk in chunks])

            def heard(features: NDArray[np.float32]) -> NDArray[np.float32]:
                return np.concatenate([rows[: _sound_tokens(n)] for rows, n in zip(features, lengths, strict=True)])

            yield Encoding(
                "audio", AUDIO, {"input_features": filled, "chunk_lengths": lengths}, self.ids["audio"], heard
            )

    def _cut(self, frames: NDArray[np.uint8], settings: PictureSettings, size: dict[str, int]) -> tuple[Any, list[int]]:
        """Frames `(T, H, W, 3)` to patches `(P, 3 * frames * side * side)` and their grid `[t, h, w]`."""
        side, merge, depth = self.patches.side, self.patches.merge, self.patches.frames
        area = size["shortest_edge"], size["longest_edge"]
        height, width = smart_size(frames.shape[1], frames.shape[2], side * merge, *area)
        pixels = pixel_values(resize(frames, height, width, settings.resample), settings)
        missing = -len(pixels) % depth
        pixels = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])
        grid = [len(pixels) // depth, height // side, width // side]
        shape = (grid[0], depth, 3, grid[1] // merge, merge, side, grid[2] // merge, merge, side)
        ordered = pixels.reshape(shape).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return ordered.reshape(math.prod(grid), -1), grid

    def _mel(self, sound: NDArray[np.float32]) -> NDArray[np.float32]:
        """`(mels, frames)` of the sound itself: the silence that fills the extractor's window changes nothing in it."""
        sound = sound[: self.sounds.samples]
        frames = -(-len(sound) // self.sounds.hop)
        silence = min(2 * self.sounds.n_fft, self.sounds.samples - len(sound))
        whole = -(len(sound) + silence) % self.sounds.hop
        return log_mel(np.pad(sound, (0, silence + whole)), self.sounds)[:, :frames]

    def _tokens(self, grid: list[int]) -> int:
        return math.prod(grid) // self.patches.merge**2

    def _expand(self, ids: list[int], tokens: dict[str, list[int]]) -> list[int]:
        """Each placeholder as often as its medium has embeddings."""
        left = {self.ids[kind]: list(counts) for kind, counts in tokens.items()}
        expanded: list[int] = []
        for token in ids:
            if token in left and not left[token]:
                raise InputError("The question has more media tags than media: give one medium for each.")
            expanded += [token] * (left[token].pop(0) if token in left else 1)
        if any(left.values()):
            raise InputError("The question has fewer media tags than media: give one tag for each.")
        return expanded

    def _positions(self, ids: list[int], tokens: dict[str, list[int]], grids: dict[str, list]) -> NDArray[np.int64]:
        """M-RoPE `(3, L)`: time, row and column; alike in text and sound, and counted on from the largest so far."""
        kinds = {self.ids[kind]: kind for kind in tokens}
        lengths = {kind: iter(counts) for kind, counts in tokens.items()}
        shapes = {kind: iter(found) for kind, found in grids.items()}
        pieces: list[NDArray[np.int64]] = []
        place, start = 0, 0
        while place < len(ids):
            kind = kinds.get(ids[place])
            if kind in ("image", "video"):
                piece = self._grid_positions(kind, next(shapes[kind]))
            else:
                length = next(lengths["audio"]) if kind == "audio" else 1
                piece = np.tile(np.arange(length), (3, 1))
            pieces.append(piece + start)
            place, start = place + piece.shape[1], int(pieces[-1].max()) + 1
        return np.concatenate(pieces, axis=1)

    def _grid_positions(self, kind: str, grid: list[int]) -> NDArray[np.int64]:
        seconds = self.patches.frames / FPS if kind == "video" else 1
        time = (np.arange(grid[0], dtype=np.float32) * seconds * self.settings["position_id_per_seconds"]).astype(int)
        rows, columns = (np.arange(n // self.patches.merge) for n in grid[1:])
        return np.stack(np.meshgrid(time, rows, columns, indexing="ij")).reshape(3, -1)


def smart_size(height: int, width: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """The nearest size whose sides are multiples of `factor` and whose area is between `least` and `most` pixels.

    Raises:
        InputError: one side is more than 200 times the other.
    """
    if max(height, width) > MOST_STRETCHED * min(height, width):
        raise InputError(
            f"A picture of {width} x {height} pixels is too narrow: at most {MOST_STRETCHED} to 1 is read."
        )
    new = [round(side / factor) * factor for side in (height, width)]
    if math.prod(new) > most:
        shrink = math.sqrt(height * width / most)
        new = [max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)]
    elif math.prod(new) < least:
        grow = math.sqrt(least / (height * width))
        new = [math.ceil(side * grow / factor) * factor for side in (height, width)]
    return new[0], new[1]


def _sound_tokens(frames: int) -> int:
    """Two halvings: by the second convolution, which rounds up, and by pooling, which rounds down."""
    return (frames + 1) // 2 // 2


def _token_id(config: dict[str, Any], kind: str) -> int:
    found = config.get(f"{kind}_token_id", config.get(f"{kind}_token_index"))
    if found is None:
        raise InputError(f"config.json names no {kind}_token_id: expected Qwen2.5-Omni's.")
    return found
