"""Which frames of a video a model reads: chosen once, for training, for transformers and for the server alike.

    processor, or its folder ─> FrameSampling ─ load_clip(file) ─> Clip ─ video_arguments ─> processor(text=…, …)

A native model's video processor places its frames itself (`sample_frames` in transformers), so many a second of the
file's own time; AVT takes a fixed number. Processors are then told where in the file the frames were, since Qwen and
Gemma make time stamps or positions of it, and that nobody should sample again.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from imod_core.artifacts import read_json
from imod_core.errors import InputError
from imod_core.media import Clip, Source, frame_indices, read_video

FPS = 2.0
"""Frames a second where a processor does not say: Qwen's own tools' default, and vLLM's for these models."""
DRAWN_FPS = 2.0
"""Of frames that come from no file."""
COMPOSED = "AvtVideoProcessor"
"""AVT's, which counts frames and does not look at times."""


@dataclass(frozen=True)
class FrameSampling:
    """How many frames of a video are read, and which: `num_frames` of any video or `fps` of each second."""

    num_frames: int | None = None
    fps: float | None = None
    rule: str | None = None
    """Video processor of transformers that places the frames; None: evenly, both ends included."""
    min_frames: int | None = None
    max_frames: int | None = None
    """Limits of `fps`, where not the processor's own."""

    def __post_init__(self) -> None:
        if (self.num_frames is None) == (self.fps is None):
            raise InputError(f"num_frames is {self.num_frames} and fps is {self.fps}: expected one of the two.")
        if self.fps is not None and not (self.fps > 0 and self.rule):
            raise InputError(f"fps is {self.fps} with rule {self.rule!r}: expected a number above 0 and a rule.")

    @classmethod
    def of(cls, video_processor: Any) -> "FrameSampling":
        """As a loaded video processor samples."""
        return _from_settings(type(video_processor).__name__, lambda key: getattr(video_processor, key, None))

    @classmethod
    def read(cls, folder: Path) -> "FrameSampling | None":
        """As the video processor of a model folder samples, without loading it; None where there is none."""
        from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

        name, settings = stored_settings(folder)
        kind = read_json(folder / "config.json").get("model_type", "")
        name = name or (COMPOSED if kind == "avt" else VIDEO_PROCESSOR_MAPPING_NAMES.get(kind, {}).get("torchvision"))
        if name is None:
            return None
        default = None if name == COMPOSED else _processor_class(name)
        return _from_settings(name, lambda key: settings.get(key, getattr(default, key, None)))

    def places(self, total: int, fps: float) -> list[int]:
        """Indices of the frames to read of a video with `total` frames at `fps`."""
        if self.rule is None:
            assert self.num_frames is not None
            return frame_indices(total, self.num_frames)
        if total < 2 or (self.num_frames is not None and total <= self.num_frames):
            return list(range(total))
        from transformers.video_utils import VideoMetadata

        metadata = VideoMetadata(total_num_frames=total, fps=fps, duration=total / fps)
        wanted = {"num_frames": self.num_frames} if self.num_frames else {"fps": self.fps}
        chosen = _placer(self.rule, self.min_frames, self.max_frames).sample_frames(metadata, **wanted)
        return [min(int(index), total - 1) for index in chosen]  # Qwen2-VL's rule can step one past the end

    def to_json(self) -> dict[str, Any]:
        """The fields that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def load_clip(source: Source, sampling: FrameSampling) -> Clip:
    """The frames of a video that `sampling` asks for; raises as `imod_core.media.load_video`."""
    return read_video(source, sampling.places)


def video_arguments(processor: Any, videos: Sequence[Any]) -> dict[str, Any]:
    """Arguments of a processor's call for videos whose frames are already chosen: clips, or arrays (T, H, W, 3).

    An array is taken for the whole of a video at `DRAWN_FPS`.
    """
    frames = [np.asarray(video) for video in videos]
    if type(getattr(processor, "video_processor", None)).__name__ == COMPOSED:
        return {"videos": frames}
    from transformers.video_utils import VideoMetadata

    told = [VideoMetadata(**as_clip(video).metadata) for video in videos]
    return {"videos": frames, "video_metadata": told, "do_sample_frames": False}


def as_clip(video: Any) -> Clip:
    """A clip as it is; an array as the whole of a video at `DRAWN_FPS`."""
    if isinstance(video, Clip):
        return video
    frames = np.asarray(video)
    return Clip(frames, tuple(range(len(frames))), len(frames), DRAWN_FPS)


def _from_settings(name: str, setting: Callable[[str], Any]) -> FrameSampling:
    if setting("num_frames"):
        return FrameSampling(setting("num_frames"), rule=None if name == COMPOSED else name)
    limits = {key: setting(key) for key in ("min_frames", "max_frames")}
    return FrameSampling(fps=float(setting("fps") or FPS), rule=name, **limits)


def stored_settings(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Class and settings of a folder's video processor, from the first of the files that transformers looks into.

    Raises:
        InputError: such a file is no JSON object.
    """
    places = (
        ("processor_config.json", "video_processor"),
        ("video_preprocessor_config.json", None),
        ("preprocessor_config.json", None),
    )
    for file, key in places:
        content = read_json(folder / file) if (folder / file).is_file() else {}
        settings = content.get(key) if key else content
        if settings:
            return settings.get("video_processor_type"), settings
    return None, {}


def _processor_class(name: str) -> Any:
    import transformers

    found = getattr(transformers, name, None) if name.endswith("VideoProcessor") else None
    if found is None:
        raise InputError(f"The rule of frames is {name!r}: expected a video processor of transformers.")
    return found


@lru_cache
def _placer(name: str, min_frames: int | None, max_frames: int | None) -> Any:
    limits = {"min_frames": min_frames, "max_frames": max_frames}
    return _processor_class(name)(**{key: value for key, value in limits.items() if value is not None})
