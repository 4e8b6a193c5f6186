"""Videos: the frames that are chosen of them."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imod_core.errors import InputError
from imod_core.media.orientation import orientation
from imod_core.media.packets import Packets, read_packets, share_there
from imod_core.media.source import (
    Source,
    announced_seconds,
    check_pixels,
    check_seconds,
    check_whole,
    codec_context,
    name_and_file,
    open_container,
)

UNKNOWN_FPS = 24.0
"""Taken where a video does not tell its rate, as in transformers."""
STILL = ("image2", "_pipe", "tty")
"""Ends of the names under which FFmpeg reads single pictures and texts as videos."""


@dataclass(frozen=True)
class Clip:
    """Frames of a video, and where in it they were."""

    frames: NDArray[np.uint8]
    """(T, H, W, 3), RGB."""
    indices: tuple[int, ...]
    """Of each frame in the file."""
    total: int
    """Frames of the file."""
    fps: float
    """Frames of the file a second."""
    source: Source | None = field(default=None, repr=False, compare=False)
    """The file."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.frames, dtype)

    @property
    def metadata(self) -> dict[str, Any]:
        """The fields of transformers' `VideoMetadata` that processors read."""
        return {
            "total_num_frames": self.total,
            "fps": self.fps,
            "duration": self.total / self.fps,
            "frames_indices": list(self.indices),
        }


def load_video(source: Source, num_frames: int) -> NDArray[np.uint8]:
    """`num_frames` frames (T, H, W, 3), RGB, upright, at rounded linspace(0, total - 1, num_frames).

    A video with fewer frames repeats some. Frames between the wanted ones are decoded but not converted.
    """
    if num_frames < 1:
        raise InputError(f"num_frames is {num_frames}: expected 1 or more.")
    return read_video(source, lambda total, fps: frame_indices(total, num_frames)).frames


def read_video(source: Source, choose: Callable[[int, float], list[int]]) -> Clip:
    """The frames at the rising indices that `choose` names, given how many there are and how many a second."""
    name, file = name_and_file(source)
    total, fps = _count_frames(name, file)
    wanted = choose(total, fps)
    return Clip(_decode_at(name, file, wanted), tuple(wanted), total, fps, source)


def frame_indices(total: int, num_frames: int) -> list[int]:
    """Indices of `num_frames` uniformly spaced frames out of `total`, both ends included."""
    return [int(i) for i in np.rint(np.linspace(0, max(total, 1) - 1, num_frames))]


def _count_frames(name: str, file: Any) -> tuple[int, float]:
    """Frames that a video shows, and frames a second; raises for one that is cut off, too long or too large."""

    def check(packets: Packets) -> None:
        check_seconds(name, packets.seconds)

    with open_container(name, file) as container:
        if not container.streams.video:
            raise InputError(f"{name} has no picture stream: expected a video.")
        if container.format.name.endswith(STILL):
            raise InputError(f"{name} is a picture or a text: expected a video.")
        stream = container.streams.video[0]
        codec = codec_context(name, stream)
        check_pixels(name, codec.width, codec.height)
        check_seconds(name, announced_seconds(container, stream))
        packets = read_packets(container, stream, check)
        check_whole(name, share_there(packets, container, stream), 1.0)
        return max(packets.shown, 1), float(stream.average_rate or stream.guessed_rate or UNKNOWN_FPS)


def _decode_at(name: str, file: Any, wanted: list[int]) -> NDArray[np.uint8]:
    """The frames at the rising indices `wanted`, (len(wanted), H, W, 3); beyond the last frame the last is repeated.

    Each is put into its place as it is decoded: together they may be large, and need not be there twice. The file is
    opened anew, since not every format can go back to its start.
    """
    frames: NDArray[np.uint8] | None = None
    position, last, places = -1, None, defaultdict(list)
    for place, index in enumerate(wanted):
        places[index].append(place)
    with open_container(name, file) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for position, last in enumerate(container.decode(stream)):
            if position in places:
                frames = _put(name, frames, places.pop(position), last, len(wanted))
                if not places:
                    break
    if last is None:
        raise InputError(f"{name} holds no picture that can be decoded: expected a video.")
    check_whole(name, position + 1, wanted[-1] + 1)
    for rest in places.values():
        frames = _put(name, frames, rest, last, len(wanted))
    assert frames is not None
    return frames


def _put(name: str, frames: NDArray[np.uint8] | None, places: list[int], frame: Any, count: int) -> NDArray[np.uint8]:
    picture = orientation(frame).upright(frame.to_ndarray(format="rgb24"))
    if frames is None:
        frames = np.empty((count, *picture.shape), np.uint8)
    if picture.shape != frames.shape[1:]:
        raise InputError(f"{name} changes the size of its pictures in the middle: write it anew in one size.")
    frames[places] = picture
    return frames
