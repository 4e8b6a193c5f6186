"""How many pixels of a picture or of a video frame a native model reads, in the terms of its processor.

A limit is a number of pixels. Qwen's processors scale what is larger down to `size["longest_edge"]` pixels (their name
for it). Qwen3-VL's counts all frames of a video together there, and a frame's own limit in tokens.
"""

from collections.abc import Mapping
from typing import Any

from imod_core.errors import InputError

PARTS = ("image", "video")
PER_FRAME = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil", "Qwen2VLVideoProcessor")
"""Whose `size["longest_edge"]` is the most pixels of a picture or frame. Elsewhere it may be an edge."""
PER_VIDEO = "Qwen3VLVideoProcessor"
LEAST = 4
"""What is smaller than a LEAST-th of the limit is scaled up to it, where the processor's own minimum is not lower."""


def pixel_settings(processor: Any, limits: Mapping[str, int | None]) -> dict[str, dict[str, Any]]:
    """Settings, by part, of a processor that keeps to `limits`.

    Args:
        processor: the model's, of transformers.
        limits: most pixels of an `image`, and of a frame of a `video`; None leaves the processor's own.

    Raises:
        InputError: this processor scales by another measure.
    """
    found = {}
    for part in PARTS:
        limit = limits.get(part)
        if limit is not None:
            found[part] = _settings(processor, part, limit)
    return found


def limit_pixels(processor: Any, limits: Mapping[str, int | None]) -> None:
    """Make a loaded processor keep to `limits`; arguments and errors as of `pixel_settings`."""
    for part, settings in pixel_settings(processor, limits).items():
        reader = getattr(processor, f"{part}_processor")
        for name, value in settings.items():
            setattr(reader, name, type(reader.size)(**value) if name == "size" else value)


def _settings(processor: Any, part: str, limit: int) -> dict[str, Any]:
    # What an omni processor is made with wins over its parts' own settings, in transformers and so in vLLM.
    fixed = _call_defaults(processor).get(f"{part}s_kwargs", {}).get("size")
    if fixed:
        raise InputError(
            f"The recipe's 'media.{part}_pixels' is {limit}; this model's processor reads {fixed['shortest_edge']} to "
            f"{fixed['longest_edge']} pixels whatever it is told: leave it out."
        )
    reader: Any = getattr(processor, f"{part}_processor", None)
    kind = type(reader).__name__
    if kind not in (*PER_FRAME, PER_VIDEO):
        raise InputError(
            f"The recipe's 'media.{part}_pixels' is {limit}; this model's processor has no limit of pixels: "
            "leave it out."
        )
    size = dict(reader.size)
    least = min(size["shortest_edge"], limit // LEAST)
    if kind == PER_VIDEO:
        tokens = max(1, limit // (reader.patch_size * reader.merge_size) ** 2)
        kept = {"shortest_edge": least, "longest_edge": size["longest_edge"]}
        return {"size": kept, "cap_pixels_per_frame": True, "max_video_tokens": tokens}
    return {"size": {"shortest_edge": least, "longest_edge": limit}}


def _call_defaults(processor: Any) -> dict[str, dict[str, Any]]:
    """Arguments of a part, as `videos_kwargs`, that a processor of transformers gives where a call does not."""
    return getattr(getattr(type(processor), "valid_processor_kwargs", None), "_defaults", {})
