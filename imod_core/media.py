"""Media decoding: pictures, sounds and videos from a path or from bytes. Nothing else in the project decodes.

Knows nothing of models: towers' processors resize and normalise. Every fault of a file ends in one sentence
that names the file; sizes beyond the limits below are refused before they are decoded.
"""

import io
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from imod_core.errors import InputError, MissingFileError

Source = Path | str | bytes

SAMPLE_RATE = 16_000
"""Hz; what the speech and sound encoders of the field are trained on."""
MAX_PIXELS = 50_000_000
"""Of one picture or video frame; a 50-megapixel camera still passes."""
MAX_SECONDS = 600.0
"""Of one sound or video: a MUSIC-AVQA clip has 60, and ten minutes of 48 kHz stereo take 230 MB."""
UNKNOWN_FPS = 24.0
"""Taken where a video does not tell its rate, as in transformers."""
SHORTFALL = 0.05
"""Share of its announced length that a container may lack: edit lists and encoder padding make up to this."""


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


def load_image(source: Source) -> Image.Image:
    """A picture as RGB; turned upright by its EXIF data, transparency laid over white."""
    name, file = _open(source)
    try:
        with Image.open(file) as image:
            _check_pixels(name, *image.size)
            upright = ImageOps.exif_transpose(image)
            return _over_white(upright)
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a picture that can be read: expected PNG, JPEG, WebP or the like.") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large: {error}") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is a damaged picture ({error}).") from None


def load_audio(source: Source, rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """A sound, or the sound track of a video, as mono samples (n,) in [-1, 1] at `rate` Hz."""
    name, file = _open(source)
    samples, found_rate = _read_sound(name, file)
    if samples.shape[0] == 0:
        raise InputError(f"{name} holds a sound of zero length: expected at least one sample.")
    if not np.isfinite(samples).all():
        raise InputError(f"{name} holds sound samples that are not numbers (NaN or infinite).")
    mono = samples.mean(axis=1, dtype=np.float32)
    return mono if found_rate == rate else _resample(mono, found_rate, rate)


def load_video(source: Source, num_frames: int) -> NDArray[np.uint8]:
    """`num_frames` frames (T, H, W, 3), RGB, upright, at rounded linspace(0, total - 1, num_frames).

    A video with fewer frames repeats some. Frames between the wanted ones are decoded but not converted.
    """
    if num_frames < 1:
        raise InputError(f"num_frames is {num_frames}: expected 1 or more.")
    return read_video(source, lambda total, fps: frame_indices(total, num_frames)).frames


def read_video(source: Source, choose: Callable[[int, float], list[int]]) -> Clip:
    """The frames at the rising indices that `choose` names, given how many there are and how many a second."""
    name, file = _open(source)
    with _container(name, file) as container:
        if not container.streams.video:
            raise InputError(f"{name} has no picture stream: expected a video.")
        stream = container.streams.video[0]
        codec = _codec(name, stream)
        stream.thread_type = "AUTO"
        _check_pixels(name, codec.width, codec.height)
        _check_seconds(name, _seconds(container, stream))
        total = stream.frames or _count_frames(container, stream)
        fps = float(stream.average_rate or stream.guessed_rate or UNKNOWN_FPS)
        wanted = choose(max(total, 1), fps)
        frames = _decode_at(name, container, stream, wanted)
    return Clip(frames, tuple(wanted), max(total, 1), fps, source)


def frame_indices(total: int, num_frames: int) -> list[int]:
    """Indices of `num_frames` uniformly spaced frames out of `total`, both ends included."""
    return [int(i) for i in np.rint(np.linspace(0, max(total, 1) - 1, num_frames))]


def has_sound(source: Source) -> bool:
    """Whether the file has a sound stream, so that `load_audio` can be asked for it."""
    name, file = _open(source)
    with _container(name, file) as container:
        return bool(container.streams.audio)


def _open(source: Source) -> tuple[str, Any]:
    """A name for messages and what the decoders open."""
    if isinstance(source, bytes):
        if not source:
            raise InputError("The given media data is empty (0 bytes).")
        return "The given media data", io.BytesIO(source)
    path = Path(source)
    if not path.is_file():
        raise MissingFileError(f"{path} is no file: expected a picture, sound or video.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes): expected a picture, sound or video.")
    return str(path), str(path)


def _check_pixels(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} has {width} x {height} pixels: at most {MAX_PIXELS:,} are read, scale it down.")


def _check_seconds(name: str, seconds: float) -> None:
    if seconds > MAX_SECONDS:
        raise InputError(f"{name} lasts {seconds:.0f} s: at most {MAX_SECONDS:.0f} s are read, cut it.")


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # PIL's own conversion clips 16 bits to 8 instead of scaling them
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    front = image.convert("RGBA")
    white = Image.new("RGBA", front.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, front).convert("RGB")


def _read_sound(name: str, file: Any) -> tuple[NDArray[np.float32], int]:
    """Samples (n, channels) and their rate: libsndfile where it knows the format, FFmpeg for all else."""
    import soundfile

    try:
        with soundfile.SoundFile(file) as sound:
            _check_seconds(name, sound.frames / sound.samplerate)
            _check_wav_is_whole(name, file)
            samples = sound.read(dtype="float32", always_2d=True)
            _check_whole(name, samples.shape[0], sound.frames)
            return samples, sound.samplerate
    except (soundfile.LibsndfileError, TypeError):  # TypeError: it takes the name *.raw for samples without a header
        if isinstance(file, io.BytesIO):
            file.seek(0)
        return _read_sound_track(name, file)


def _check_wav_is_whole(name: str, file: Any) -> None:
    """A RIFF header states the file's size; libsndfile silently reads what is left of a cut file."""
    if isinstance(file, io.BytesIO):
        head, size = file.getvalue()[:8], file.getbuffer().nbytes
    else:
        with Path(file).open("rb") as opened:
            head, size = opened.read(8), Path(file).stat().st_size
    stated = int.from_bytes(head[4:8], "little")
    if head[:4] == b"RIFF" and stated < 0xFFFFFF00:  # streamed files carry a placeholder near 2**32
        _check_whole(name, size, stated + 8)


def _check_whole(name: str, found: int, announced: int) -> None:
    if found < announced * (1 - SHORTFALL):
        raise InputError(f"{name} is cut off: {found / announced:.0%} of its announced length is there.")


def _read_sound_track(name: str, file: Any) -> tuple[NDArray[np.float32], int]:
    with _container(name, file) as container:
        if not container.streams.audio:
            raise InputError(f"{name} has no sound stream: expected a sound, or a video with sound.")
        stream = container.streams.audio[0]
        _check_seconds(name, _seconds(container, stream))
        rate = _codec(name, stream).sample_rate
        samples = _decode_sound(name, container, stream, rate)
        _check_whole(name, samples.shape[0], int(float(stream.duration or 0) * float(stream.time_base or 0) * rate))
    return samples, rate


def _codec(name: str, stream: Any) -> Any:
    """A stream's codec context, which FFmpeg has for encodings that it knows."""
    if stream.codec_context is None:
        raise InputError(f"{name} is in an encoding that FFmpeg does not know: convert it.")
    return stream.codec_context


def _decode_sound(name: str, container: Any, stream: Any, rate: int) -> NDArray[np.float32]:
    """All frames of a stream as (n, channels); a stream that announces no length is stopped at the limit."""
    from av.audio.resampler import AudioResampler

    to_float = AudioResampler(format="fltp")
    parts, length = [np.zeros((stream.codec_context.channels, 0), np.float32)], 0
    for decoded in container.decode(stream):
        try:
            frames = to_float.resample(decoded)
        except ValueError:  # PyAV's word for a frame unlike the first
            raise InputError(f"{name} changes its channels or rate midway: convert it.") from None
        for frame in frames:
            parts.append(frame.to_ndarray())
            length += parts[-1].shape[1]
        _check_seconds(name, length / rate)
    return np.concatenate(parts, axis=1).T


def _resample(mono: NDArray[np.float32], rate_in: int, rate_out: int) -> NDArray[np.float32]:
    """Band-limited resampling by FFmpeg's swresample; the length is n · rate_out / rate_in, rounded."""
    from av import AudioFrame
    from av.audio.resampler import AudioResampler

    frame = AudioFrame.from_ndarray(np.ascontiguousarray(mono[None]), format="fltp", layout="mono")
    frame.sample_rate = rate_in
    resampler = AudioResampler(format="fltp", layout="mono", rate=rate_out)
    pieces = [piece.to_ndarray()[0] for piece in [*resampler.resample(frame), *resampler.resample(None)]]
    length = max(1, round(len(mono) * rate_out / rate_in))
    return np.pad(np.concatenate(pieces), (0, length))[:length]


@contextmanager
def _container(name: str, file: Any) -> Iterator[Any]:
    """An opened FFmpeg container; whatever FFmpeg finds wrong while it is open is the file's fault."""
    import av

    try:
        with av.open(file, metadata_errors="ignore") as container:
            yield container
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{name} is damaged or not a sound or video that can be read ({reason}).") from None


def _seconds(container: Any, stream: Any) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1_000_000


def _count_frames(container: Any, stream: Any) -> int:
    """Frames of a stream whose header does not tell, by reading its packets."""
    total = sum(1 for packet in container.demux(stream) if packet.size)
    container.seek(0)
    return total


def _decode_at(name: str, container: Any, stream: Any, wanted: list[int]) -> NDArray[np.uint8]:
    """The frames at the rising indices `wanted`, (len(wanted), H, W, 3); beyond the last frame the last is repeated.

    Each is put into its place as it is decoded: together they may be large, and need not be there twice.
    """
    frames: NDArray[np.uint8] | None = None
    position, last, places = -1, None, defaultdict(list)
    for place, index in enumerate(wanted):
        places[index].append(place)
    for position, last in enumerate(container.decode(stream)):
        if position in places:
            frames = _put(name, frames, places.pop(position), last, len(wanted))
            if not places:
                break
    if last is None:
        raise InputError(f"{name} holds no picture that can be decoded: expected a video.")
    _check_whole(name, position + 1, wanted[-1] + 1)
    for rest in places.values():
        frames = _put(name, frames, rest, last, len(wanted))
    assert frames is not None
    return frames


def _put(name: str, frames: NDArray[np.uint8] | None, places: list[int], frame: Any, count: int) -> NDArray[np.uint8]:
    picture = _upright(frame)
    if frames is None:
        frames = np.empty((count, *picture.shape), np.uint8)
    if picture.shape != frames.shape[1:]:
        raise InputError(f"{name} changes the size of its pictures in the middle: write it anew in one size.")
    frames[places] = picture
    return frames


def _upright(frame: Any) -> NDArray[np.uint8]:
    """A decoded frame as (H, W, 3), turned as the container's display matrix asks, in quarter turns."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
