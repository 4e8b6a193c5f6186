"""Frozen tower outputs, computed once for each medium and kept on disk.

A state file is named by the digest of the medium's bytes, its kind, and the towers with their preprocessing: a changed
file or another base never meets a stale state. Files are `.npy`, float16 (float32 where that would overflow), written
whole or not at all.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig
from transformers.utils import logging

from imod_core.artifacts import blake3_of
from imod_core.avt.modeling_avt import AvtForConditionalGeneration, AvtModel
from imod_core.avt.processing_avt import AvtProcessor
from imod_core.console import track
from imod_core.media import load_audio, load_image, load_video
from imod_core.media.blank import GREY
from imod_core.samples import Sample

KINDS = {"image": "images", "audio": "audios", "video": "videos"}
"""Which list of a sample holds each kind of medium."""
BATCH = 16
BLANK_SIZE = (224, 224)
BLANK_GREY = (GREY,) * 3


class TowerStates:
    """The states of media under one base model.

    Args:
        base: folder of the AVT base whose towers are used.
        processor: its processor.
        cache: folder of the state files.
    """

    def __init__(self, base: Path, processor: AvtProcessor, cache: Path):
        self.base, self.processor, self.cache = Path(base), processor, Path(cache)
        self._identity = _towers_identity(self.base, processor)
        self._digests: dict[Path, str] = {}
        self._towers: AvtModel | None = None

    def prepare(self, samples: Iterable[Sample]) -> None:
        """Compute what is missing for `samples`, with progress; interrupted, it goes on where it stopped.

        Raises:
            InputError: a medium cannot be decoded.
        """
        wanted = {(kind, path) for s in samples for kind, key in KINDS.items() for path in getattr(s, key)}
        missing: dict[Path, tuple[str, Path]] = {}
        for kind, path in sorted(wanted):
            if not (file := self._file(kind, path)).is_file():
                missing.setdefault(file, (kind, path))
        if missing:
            for batch in track(_batches(missing.values()), f"Tower states of {len(missing)} media, in batches"):
                self._compute(batch)
            self._towers = None  # their memory is better used by what trains on the states

    def get(self, kind: str, path: Path) -> torch.Tensor:
        """The state `(tokens, C)` of a medium that `prepare` has seen."""
        return torch.from_numpy(np.load(self._file(kind, path)))

    @torch.no_grad()
    def blank(self) -> dict[str, torch.Tensor]:
        """The states of one grey picture, one silent window and one grey video, by kind."""
        frames = self.processor.video_processor.num_frames
        samples = int(self.processor.audio_window_seconds * self.processor.feature_extractor.sampling_rate)
        media = {
            "image": Image.new("RGB", BLANK_SIZE, BLANK_GREY),
            "audio": np.zeros(samples, dtype=np.float32),
            "video": np.full((frames, *BLANK_SIZE, 3), BLANK_GREY[0], dtype=np.uint8),
        }
        return {kind: _compact(self._encode(kind, [medium])[0]) for kind, medium in media.items()}

    def of(self, sample: Sample) -> dict[str, list[torch.Tensor]]:
        """The states of all media of a sample: `image`, `audio` and `video` to lists in the sample's order."""
        return {kind: [self.get(kind, path) for path in getattr(sample, key)] for kind, key in KINDS.items()}

    @torch.no_grad()
    def _compute(self, jobs: list[tuple[str, Path]]) -> None:
        kind = jobs[0][0]
        media = [self._load(kind, path) for _, path in jobs]
        for (_, path), state in zip(jobs, self._encode(kind, media), strict=True):
            _save(self._file(kind, path), _compact(state).numpy())

    def _load(self, kind: str, path: Path) -> Any:
        if kind == "image":
            return load_image(path)
        if kind == "video":
            return load_video(path, self.processor.video_processor.num_frames)
        return load_audio(path, self.processor.feature_extractor.sampling_rate)

    def _encode(self, kind: str, media: list) -> list[torch.Tensor]:
        """States of decoded media of one kind, float32 on the CPU."""
        processor, towers = self.processor, self._load_towers()
        if kind == "image":
            pixels = processor.image_processor(media, return_tensors="pt")["pixel_values"]
            return list(towers.encode_images(pixels.to(towers.device)).cpu())
        if kind == "video":
            videos = processor.video_processor(media, return_tensors="pt")["pixel_values_videos"]
            return list(towers.encode_videos(videos.to(towers.device)).cpu())
        features, _ = processor._process_audio(media)
        states = towers.encode_audio(features["input_features"].to(towers.device)).cpu()
        lengths = features["audio_windows"] * processor.audio_window_tokens
        return [state[:length] for state, length in zip(states, lengths, strict=True)]

    def _load_towers(self) -> AvtModel:
        """The base without its LLM's layers, float32, on the GPU if there is one; loaded once."""
        if self._towers is None:
            config = AutoConfig.from_pretrained(self.base)
            config.text_config.num_hidden_layers = 0
            level = logging.get_verbosity()
            logging.set_verbosity_error()  # the layers left out would be reported as unexpected
            try:
                model = AvtForConditionalGeneration.from_pretrained(self.base, config=config, dtype=torch.float32)
            finally:
                logging.set_verbosity(level)
            self._towers = model.model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        return self._towers

    def _file(self, kind: str, path: Path) -> Path:
        if path not in self._digests:
            self._digests[path] = blake3_of(path)
        name = hashlib.sha256(f"{self._identity}:{kind}:{self._digests[path]}".encode()).hexdigest()
        return self.cache / name[:2] / f"{name}.npy"


def _batches(jobs: Iterable[tuple[str, Path]]) -> list[list[tuple[str, Path]]]:
    """Jobs of one kind together, `BATCH` at a time."""
    by_kind: dict[str, list[tuple[str, Path]]] = {kind: [] for kind in KINDS}
    for kind, path in jobs:
        by_kind[kind].append((kind, path))
    return [part[i : i + BATCH] for part in by_kind.values() for i in range(0, len(part), BATCH)]


def _save(file: Path, state: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    with partial.open("wb") as handle:
        np.save(handle, state)
    partial.replace(file)


def _compact(state: torch.Tensor) -> torch.Tensor:
    """float16 if all values fit."""
    half = state.half()
    return half if bool(torch.isfinite(half).all()) else state


def _towers_identity(base: Path, processor: AvtProcessor) -> str:
    """Digest of all that decides a state: the towers' weights, their configuration, the preprocessing and its code."""
    from safetensors import safe_open

    digest = hashlib.sha256()
    for code in ("modeling_avt.py", "processing_avt.py", "video_processing_avt.py"):
        digest.update(Path(__file__).with_name(code).read_bytes())
    config = json.loads((base / "config.json").read_text())
    for name in ("vision_config", "audio_config", "vision_grid", "video_frames", "audio_layers", "audio_pool_frames"):
        digest.update(json.dumps(config[name], sort_keys=True).encode())
    digest.update(json.dumps(processor.to_dict(), sort_keys=True, default=str).encode())
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                if "_tower." in name:
                    digest.update(name.encode() + file.get_tensor(name).reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
