"""Media with nothing to see or nothing to hear, of the same size and length, so that they take as many tokens.

A blanked picture is grey all over, a muted sound is silent: what `imod eval` means by blanked.
"""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from imod_core.media import SAMPLE_RATE, has_sound, load_audio, load_image
from imod_core.media.blank import GREY, blank_medium
from imod_core.media.packets import read_packets
from imod_demo.clip import encoder
from imod_demo.streams import opened
from imod_serve.messages import Turn


def without(turn: Turn, *, picture: bool, sound: bool) -> Turn:
    """The turn with its pictures blanked, its sounds muted, or both; what is not asked for stays as it is."""
    images = tuple(grey_picture(Path(str(image))) for image in turn.images) if picture else turn.images
    audios = tuple(silence(Path(str(audio))) for audio in turn.audios) if sound else turn.audios
    videos = tuple(emptied_clip(Path(str(video)), picture=picture, sound=sound) for video in turn.videos)
    return Turn(turn.role, turn.text, images, audios, videos, turn.mute)


def grey_picture(source: Path) -> bytes:
    """PNG."""
    file = io.BytesIO()
    blank_medium(load_image(source)).save(file, "PNG")
    return file.getvalue()


def silence(source: Path) -> bytes:
    """WAV of as many samples as the model hears of `source`."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, blank_medium(load_audio(source)), SAMPLE_RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def emptied_clip(source: Path, *, picture: bool, sound: bool) -> bytes:
    """The clip with grey frames, a silent track, or both.

    The sound is stored as the samples that the model hears, so that it stays the same to the last bit, or has the
    same length; frames that stay are copied without decoding.
    """
    import av

    file = io.BytesIO()
    with opened(source) as clip, av.open(file, "w", format="mov") as out:
        shown = clip.streams.video[0]
        pictures = _grey_stream(out, shown) if picture else out.add_stream_from_template(shown)
        track = out.add_stream("pcm_f32le", rate=SAMPLE_RATE, layout="mono") if has_sound(source) else None
        if picture:
            _write_grey(out, pictures, read_packets(clip, shown).shown)
        else:
            for packet in clip.demux(shown):
                if packet.dts is not None:
                    packet.stream = pictures
                    out.mux(packet)
        if track is not None:
            samples = load_audio(source)
            _write_samples(out, track, np.zeros_like(samples) if sound else samples)
    return file.getvalue()


def _grey_stream(out: Any, like: Any) -> Any:
    stream = out.add_stream(encoder(), rate=like.average_rate)
    stream.width, stream.height, stream.pix_fmt = like.width, like.height, "yuv420p"
    return stream


def _write_grey(out: Any, stream: Any, count: int) -> None:
    import av

    grey = np.full((stream.height, stream.width, 3), GREY, dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(grey, format="rgb24").reformat(format="yuv420p")
    for index in range(count):
        frame.pts = index
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def _write_samples(out: Any, track: Any, samples: np.ndarray) -> None:
    import av

    frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
    out.mux([*track.encode(frame), *track.encode(None)])
