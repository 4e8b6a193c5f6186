"""Choosing the parts of an AVT base: a preset's, or any that transformers loads from a hub id or a folder."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    ViTImageProcessor,
)

from imod_core.avt.compose import Geometry, Part, compose
from imod_core.errors import InputError, MissingFileError


def build_base(
    out: Path,
    *,
    preset: str | None,
    llm: str | None,
    vision: str | None,
    audio: str | None,
    seed: int,
    dtype: str,
) -> None:
    """Write a base folder to `out` from a preset, from three given parts, or from a preset with parts replaced.

    Raises:
        InputError: neither a preset nor all three parts; a part that cannot be used; `out` exists.
    """
    if preset is None and not (llm and vision and audio):
        raise InputError("Name a --preset (smol or tiny), or all of --llm, --vision and --audio.")
    if preset == "tiny" and (vision or audio):
        raise InputError("--preset tiny takes no other tower: its own are random; use --preset smol.")
    kind = getattr(torch, dtype)
    if preset == "tiny":
        from imod_core.avt import tiny

        tiny.build(out, seed, kind, _load(llm, _llm) if llm else None)
        return
    from imod_core.avt import smol

    text = _load(llm, _llm) if llm else smol.smollm2()
    pictures = _load(vision, _vision) if vision else smol.efficientnet()
    sounds, geometry = (_load(audio, _audio) if audio else smol.whisper()), smol.GEOMETRY
    if audio:
        geometry = _geometry(sounds)
    compose(text, pictures, sounds, geometry, out, kind, seed)


def _load(name: str, loader: Callable[[str], Part]) -> Part:
    if not Path(name).is_dir() and (Path(name).is_absolute() or name.startswith(".")):
        raise MissingFileError(f"{name} does not exist: give a model folder or a hub id.")
    try:
        return loader(name)
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{name} cannot be used here: {str(error).splitlines()[0]}") from None


def _llm(name: str) -> Part:
    return Part(AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32), AutoTokenizer.from_pretrained(name))


def _vision(name: str) -> Part:
    """An encoder of squares: pictures are resized to the side that it was trained on, not cropped."""
    config = AutoConfig.from_pretrained(name)
    config = getattr(config, "vision_config", config)
    model = AutoModel.from_pretrained(name, config=config, dtype=torch.float32)
    made = AutoImageProcessor.from_pretrained(name)
    side = getattr(config, "image_size", None) or _side(getattr(made, "crop_size", None) or made.size)
    mean, deviation = (list(getattr(made, key, None) or [0.5] * 3) for key in ("image_mean", "image_std"))
    processor = ViTImageProcessor(size={"height": side, "width": side}, image_mean=mean, image_std=deviation)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, side, side))
    return Part(model, processor)


def _side(size: dict) -> int:
    return size.get("height") or size["shortest_edge"]


def _audio(name: str) -> Part:
    model = AutoModel.from_pretrained(name, dtype=torch.float32)
    return Part(model, AutoFeatureExtractor.from_pretrained(name))


def _geometry(audio: Part) -> Geometry:
    """Windows as long as a fixed-length tower wants them, one token for every 0.4 seconds."""
    extractor = audio.processor
    frames = getattr(audio.model.config, "max_source_positions", None)
    if frames is None or not hasattr(extractor, "chunk_length"):
        raise InputError(
            f"{type(audio.model).__name__} is no audio tower of fixed windows: expected a Whisper-like encoder."
        )
    seconds = float(extractor.chunk_length)
    pool = max(1, int(frames / seconds * 0.4))
    return Geometry(audio_pool_frames=pool, audio_window_frames=frames, audio_window_seconds=seconds)
