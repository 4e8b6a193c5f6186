"""Sounds, and the sound tracks of videos."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imod_core.errors import InputError
from imod_core.media.source import (
    Source,
    announced_seconds,
    check_seconds,
    check_whole,
    codec_context,
    name_and_file,
    open_container,
)

SAMPLE_RATE = 16_000
"""Hz; what the speech and sound encoders of the field are trained on."""


def load_audio(source: Source, rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """A sound, or the sound track of a video, as mono samples (n,) in [-1, 1] at `rate` Hz."""
    name, file = name_and_file(source)
    samples, found_rate = _read_sound(name, file)
    if samples.shape[0] == 0:
        raise InputError(f"{name} holds a sound of zero length: expected at least one sample.")
    if not np.isfinite(samples).all():
        raise InputError(f"{name} holds sound samples that are not numbers (NaN or infinite).")
    mono = samples.mean(axis=1, dtype=np.float32)
    return mono if found_rate == rate else _resample(mono, found_rate, rate)


def has_sound(source: Source) -> bool:
    """Whether the file has a sound stream, so that `load_audio` can be asked for it."""
    name, file = name_and_file(source)
    with open_container(name, file) as container:
        return bool(container.streams.audio)


def _read_sound(name: str, file: Any) -> tuple[NDArray[np.float32], int]:
    """Samples (n, channels) and their rate: libsndfile where it knows the format, FFmpeg for all else."""
    import soundfile

    try:
        with soundfile.SoundFile(file) as sound:
            check_seconds(name, sound.frames / sound.samplerate)
            _check_wav_is_whole(name, file)
            samples = sound.read(dtype="float32", always_2d=True)
            check_whole(name, samples.shape[0], sound.frames)
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
        check_whole(name, size, stated + 8)


def _read_sound_track(name: str, file: Any) -> tuple[NDArray[np.float32], int]:
    with open_container(name, file) as container:
        if not container.streams.audio:
            raise InputError(f"{name} has no sound stream: expected a sound, or a video with sound.")
        stream = container.streams.audio[0]
        check_seconds(name, announced_seconds(container, stream))
        rate = codec_context(name, stream).sample_rate
        samples = _decode_sound(name, container, stream, rate)
        check_whole(name, samples.shape[0], int(float(stream.duration or 0) * float(stream.time_base or 0) * rate))
    return samples, rate


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
        check_seconds(name, length / rate)
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
