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
    picture_stream,
)

SAMPLE_RATE = 16_000
"""Hz; what the speech and sound encoders of the field are trained on."""
LOWEST_RATE, HIGHEST_RATE = 4_000, 192_000
"""Hz; less is no sound that anybody records, and a second of it becomes many at 16 kHz; more are in damaged headers."""
LATE = 0.005
"""Seconds by which a sound may begin after the picture without a silence before it; clocks of files round to 1 ms."""
FILTER_SAMPLES = 1024
"""The resampler answers nothing to fewer than its filter is long, some 400 from the highest rate to 16 kHz."""


def load_audio(source: Source, rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """A sound, or the sound track of a video, as mono samples (n,) in [-1, 1] at `rate` Hz.

    A track that begins after the picture has silence before it, so that both stay together.
    """
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
            _check_rate(name, sound.samplerate)
            check_seconds(name, sound.frames / sound.samplerate)
            _check_wav_is_whole(name, file)
            samples = sound.read(dtype="float32", always_2d=True)
            check_whole(name, samples.shape[0], sound.frames)
            return samples, sound.samplerate
    except (soundfile.LibsndfileError, TypeError):  # TypeError: it takes the name *.raw for samples without a header
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
        _check_rate(name, rate)
        samples, late = _decode_sound(name, container, stream, rate)
        check_whole(name, samples.shape[0], int(float(stream.duration or 0) * float(stream.time_base or 0) * rate))
    return np.pad(samples, ((late, 0), (0, 0))), rate


def _check_rate(name: str, rate: int) -> None:
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise InputError(f"{name} has {rate:,} samples a second: expected {LOWEST_RATE:,} to {HIGHEST_RATE:,}.")


def _decode_sound(name: str, container: Any, stream: Any, rate: int) -> tuple[NDArray[np.float32], int]:
    """All frames of a stream as (n, channels), and how many samples of silence belong before them.

    A stream that announces no length is stopped at the limit.
    """
    from av.audio.resampler import AudioResampler

    to_float = AudioResampler(format="fltp")
    parts: list[NDArray[Any]] = []
    shape, late, length = None, 0, 0
    for decoded in container.decode(stream):
        found = (decoded.format.name, decoded.layout.nb_channels, decoded.sample_rate)
        if shape is None:
            shape, late = found, round(seconds_late(container, decoded) * rate)
            length = late
        if found != shape:
            raise InputError(f"{name} changes its channels or rate midway: convert it.")
        for frame in to_float.resample(decoded):
            parts.append(frame.to_ndarray())
            length += parts[-1].shape[1]
        check_seconds(name, length / rate)
    return np.concatenate(parts or [np.zeros((1, 0), np.float32)], axis=1).T, late


def seconds_late(container: Any, first: Any) -> float:
    """Seconds from the first picture of a file to `first`, the first decoded frame of its sound.

    0 where the sound is first, where nothing tells, and where there are no moving pictures. Of the encoder's own first
    samples (AAC's priming) the decoder has taken away what the file marks as such, and turned the time forward.
    """
    pictures = picture_stream(container)
    if pictures is None or pictures.start_time is None or first.time is None:
        return 0.0
    late = first.time - float(pictures.start_time * pictures.time_base)
    return late if late > LATE else 0.0


def _resample(mono: NDArray[np.float32], rate_in: int, rate_out: int) -> NDArray[np.float32]:
    """Band-limited resampling by FFmpeg's swresample; the length is n · rate_out / rate_in, rounded."""
    from av import AudioFrame
    from av.audio.resampler import AudioResampler

    length = max(1, round(len(mono) * rate_out / rate_in))
    enough = np.pad(mono, (0, max(0, FILTER_SAMPLES - len(mono))), mode="symmetric")  # as the filter goes on at an end
    frame = AudioFrame.from_ndarray(np.ascontiguousarray(enough[None]), format="fltp", layout="mono")
    frame.sample_rate = rate_in
    resampler = AudioResampler(format="fltp", layout="mono", rate=rate_out)
    pieces = [piece.to_ndarray()[0] for piece in [*resampler.resample(frame), *resampler.resample(None)]]
    return np.pad(np.concatenate(pieces), (0, length))[:length]
