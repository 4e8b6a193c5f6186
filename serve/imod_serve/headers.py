"""A look at the headers of a picture, sound or video from a client, before anything of it is decoded.

What a small file may blow up into stands in its headers: pixels, seconds, channels, frames. FFmpeg's demuxers read the
packets of a video or sound besides, since a header may lie about how many there are; packets stay compressed.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from imod_core.errors import InputError, first_line
from imod_core.media import LOWEST_RATE, SHORTFALL, UNKNOWN_FPS
from imod_core.media.packets import Packets, read_packets, share_there
from imod_core.media.source import damage_told
from imod_serve.limits import Limits

PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats of Pillow's that photographs and drawings come in; others may be documents or run interpreters."""
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,wav,mp3,flac,aac,aiff,amr,caf,w64"
"""FFmpeg's names of self-contained formats. Left out are lists, which make FFmpeg open other files and addresses."""
STREAMS = 8
"""In one file; a film with subtitles and a cover has fewer."""
SOUND_PACKETS = 300_000
"""Ten minutes in packets of 2.5 ms, the shortest that Opus knows, have 240,000."""
SAMPLE_BYTES = 4
"""Of one decoded sample of one channel."""


def check_image(data: bytes, limits: Limits) -> int:
    """Pixels of a picture; raises InputError for what is none, or too large a one."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=PICTURES) as image:
            width, height = image.size
    except UnidentifiedImageError:
        raise InputError(f"The picture is in no format that is taken here: expected {', '.join(PICTURES)}.") from None
    except Image.DecompressionBombError:
        raise InputError(f"The picture has far more than the {limits.image_pixels:,} pixels taken here.") from None
    except Exception as error:  # Pillow's readers raise what they like over damaged files
        raise InputError(f"The picture is damaged ({first_line(error)}).") from None
    _at_most("The picture", width * height, limits.image_pixels, "pixels")
    return width * height


def check_audio(data: bytes, limits: Limits) -> None:
    """Raises InputError for what is no sound, or too long, wide or fast a one."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            _check_sound(sound.channels, sound.samplerate, limits)
            _at_most("The sound", sound.frames / sound.samplerate, limits.audio_seconds, "seconds")
            _check_decoded(sound.channels, sound.frames, limits)
            return
    except (soundfile.LibsndfileError, TypeError):  # TypeError: raw samples without a header
        pass
    with _container("sound", data) as container:
        if not container.streams.audio:
            raise InputError("The sound holds no sound stream: expected a sound, or a video with sound.")
        stream = container.streams.audio[0]
        codec = _codec("sound", stream)
        _check_sound(codec.channels, codec.sample_rate, limits)
        packets = _check_length("sound", container, stream, limits.audio_seconds, count=SOUND_PACKETS)
        seconds = max(packets.seconds, _announced(container, stream))
        _check_decoded(codec.channels, seconds * codec.sample_rate, limits)


def check_video(data: bytes, limits: Limits, kept: Callable[[int, float], int] = lambda total, fps: total) -> None:
    """Raises InputError for what is no whole video, or too long or large a one.

    `kept` tells how many frames are kept of a video, given how many it has and how many a second.
    """
    with _container("video", data) as container:
        if not container.streams.video:
            raise InputError("The video has no picture stream: expected a video.")
        stream = container.streams.video[0]
        codec = _codec("video", stream)
        pixels = codec.width * codec.height
        if not pixels:
            raise InputError("The video does not say how large its pictures are: it is damaged.")
        _at_most("The video", pixels, limits.video_pixels, "pixels a frame")
        rate = float(stream.average_rate or stream.guessed_rate or UNKNOWN_FPS)
        packets = _check_length("video", container, stream, limits.video_seconds, count=limits.video_frames)
        share = share_there(packets, container, stream)
        if share < 1 - SHORTFALL:
            raise InputError(f"The video is cut off: {share:.0%} of its announced length is there.")
        # Frames that are not shown have to be decoded nevertheless.
        _at_most("The video", pixels * packets.found, limits.video_total_pixels, "pixels in all frames")
        check_kept(pixels * kept(packets.shown, rate), limits)


def check_kept(pixels: int, limits: Limits) -> None:
    """Hold the frames that are kept in memory to their limit."""
    _at_most("The video", pixels, limits.video_kept_pixels, "pixels in the frames that are read of it")


def _check_length(what: str, container: Any, stream: Any, seconds: int, *, count: int) -> Packets:
    """Hold the announced length and the one of the packets to `seconds`, and their number to `count`."""

    def check(packets: Packets) -> None:
        _at_most(f"The {what}", packets.seconds, seconds, "seconds")
        _at_most(f"The {what}", packets.found, count, "packets")

    _at_most(f"The {what}", _announced(container, stream), seconds, "seconds")
    packets = read_packets(container, stream, check)
    if not packets.shown:
        raise InputError(f"The {what} holds nothing that can be decoded.")
    return packets


def _announced(container: Any, stream: Any) -> float:
    """Seconds, of the stream or of the whole file, whichever is more."""
    return max(float((stream.duration or 0) * (stream.time_base or 0)), (container.duration or 0) / 1_000_000)


def _codec(what: str, stream: Any) -> Any:
    if stream.codec_context is None:
        raise InputError(f"The {what} is in an encoding that nobody here can read.")
    return stream.codec_context


def _check_decoded(channels: int, samples: float, limits: Limits) -> None:
    _at_most("The sound", SAMPLE_BYTES * channels * samples, limits.audio_bytes, "bytes when decoded")


def _check_sound(channels: int, rate: int, limits: Limits) -> None:
    _at_most("The sound", channels, limits.audio_channels, "channels")
    _at_most("The sound", rate, limits.audio_rate, "samples a second")
    if rate < LOWEST_RATE:
        raise InputError(f"The sound has {rate:,} samples a second: at least {LOWEST_RATE:,} are taken here.")


@contextmanager
def _container(what: str, data: bytes) -> Iterator[Any]:
    import av

    options = {"format_whitelist": CONTAINERS}
    unreadable = f"The {what} is damaged or in no format that is taken here"
    with (
        damage_told(unreadable),
        av.open(io.BytesIO(data), container_options=options, metadata_errors="ignore") as container,
    ):
        _at_most(f"The {what}", len(container.streams), STREAMS, "streams")
        yield container


def _at_most(what: str, found: float, most: float, unit: str) -> None:
    if found > most:
        raise InputError(f"{what} has {found:,.0f} {unit}: at most {most:,.0f} are taken here.")
