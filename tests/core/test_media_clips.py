"""Clips that were trimmed, mirrored or joined come out as they are shown, and damage ends in a sentence."""

import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from media_files import (
    MATRICES,
    RATE,
    UNTURNED,
    begins_at,
    displayed,
    grey,
    set_display,
    trim,
    unannounced_stream,
    write_clip,
)
from PIL import Image

from imod_core import media
from imod_core.errors import InputError
from imod_core.media import frame_indices, load_audio, load_image, load_video, read_video

# Trimmed clips


@pytest.mark.parametrize("hidden", [1, 16])
def test_a_trimmed_clip_has_the_frames_that_it_shows(hidden: int, tmp_path: Path) -> None:
    """One of 40 is less than a file may lack without being refused, and still moves which frames are chosen."""
    clip = trim(write_clip(tmp_path / "a.mp4"), tmp_path / "b.mp4", hidden / RATE)
    with av.open(str(clip)) as container:
        assert container.streams.video[0].frames == 40
        shown = sum(1 for _ in container.decode(video=0))
    assert shown == 40 - hidden
    found = read_video(clip, lambda total, fps: frame_indices(total, 4))
    assert found.total == shown
    assert found.metadata["duration"] == pytest.approx(shown / RATE)
    middles = found.frames[:, :, 40:].mean(axis=(1, 2, 3))
    assert np.allclose(middles, [grey(hidden + index) for index in found.indices], atol=3)
    assert not np.allclose(middles, [grey(index) for index in found.indices], atol=3)


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_a_trimmed_clip_that_is_cut_off_is_refused(keep: float, tmp_path: Path) -> None:
    data = trim(write_clip(tmp_path / "a.mp4"), tmp_path / "b.mp4", 1.0).read_bytes()
    with pytest.raises(InputError, match=r"cut off|damaged"):
        load_video(data[: int(len(data) * keep)], 4)
    assert load_video(data, 4).shape[0] == 4


@pytest.mark.parametrize("keep", [0.5, 0.8])
def test_an_avi_that_is_cut_off_is_refused(keep: float, tmp_path: Path) -> None:
    """FFmpeg guesses how long one without an end lasts from how large it is."""
    data = write_clip(tmp_path / "a.avi").read_bytes()
    with pytest.raises(InputError, match=r"cut off|damaged"):
        load_video(data[: int(len(data) * keep)], 4)
    assert load_video(data, 4).shape[0] == 4


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.txt"])
def test_a_picture_or_a_text_is_no_video(name: str, tmp_path: Path) -> None:
    if name == "a.txt":
        (tmp_path / name).write_text("Where is the louder instrument?\n" * 20)
    else:
        Image.new("RGB", (32, 24)).save(tmp_path / name)
    for source in (tmp_path / name, (tmp_path / name).read_bytes()):
        with pytest.raises(InputError, match=r"picture or a text|damaged"):
            load_video(source, 2)


def test_a_clip_that_cannot_be_wound_back_is_read(tmp_path: Path) -> None:
    with av.open(str(write_clip(tmp_path / "a.mp4"))) as found, av.open(str(tmp_path / "a.h264"), "w") as out:
        stream = out.add_stream_from_template(found.streams.video[0])
        for packet in found.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    assert read_video(tmp_path / "a.h264", lambda total, fps: [0, total - 1]).total == 40


def test_too_long_a_video_is_refused_though_its_header_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with av.open(str(tmp_path / "a.webm"), "w", options={"live": "1"}) as out:
        stream = out.add_stream("libvpx", rate=1)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(8):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        out.mux(stream.encode(None))
    with av.open(str(tmp_path / "a.webm")) as container:
        assert (container.duration, container.streams.video[0].duration) == (None, None)
    assert load_video(tmp_path / "a.webm", 2).shape[0] == 2
    monkeypatch.setattr(media.source, "MAX_SECONDS", 5.0)
    with pytest.raises(InputError, match="at most 5 s"):
        load_video(tmp_path / "a.webm", 2)


# Display matrices


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_frame_is_turned_and_mirrored_as_its_matrix_says(matrix: tuple[int, int, int, int], tmp_path: Path) -> None:
    plain = load_video(write_clip(tmp_path / "a.mp4", frames=2), 1)[0]
    turned = load_video(set_display(tmp_path / "a.mp4", matrix), 1)[0]
    assert np.array_equal(turned, displayed(plain, matrix))
    assert (matrix == UNTURNED) == (turned.shape == plain.shape and np.array_equal(turned, plain))


# Sounds


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "aac"), ("a.mkv", "pcm_s16le")])
@pytest.mark.parametrize("late", [0.0, 1.5])
def test_a_sound_begins_when_its_picture_has_run_so_long(name: str, codec: str, late: float, tmp_path: Path) -> None:
    """No silence for the encoder's own first samples: AAC has 64 ms of them here."""
    samples = load_audio(write_clip(tmp_path / name, sound_at=late, codec=codec))
    assert begins_at(samples) == pytest.approx(late, abs=0.003)
    assert len(samples) / 16_000 == pytest.approx(late + 4, abs=0.07)


def test_the_silence_before_a_sound_counts_as_its_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_clip(tmp_path / "a.mkv", sound_at=9.0, live="1")
    with av.open(str(clip)) as container:
        assert (container.duration, container.streams.audio[0].duration) == (None, None)
    monkeypatch.setattr(media.source, "MAX_SECONDS", 10.0)
    with pytest.raises(InputError, match="at most 10 s"):
        load_audio(clip)


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000, 192_000])
@pytest.mark.parametrize("count", [1, 20, 64, 400])
def test_a_sound_of_few_samples_is_a_sound(rate: int, count: int) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.full(count, 0.5, np.float32), rate, format="WAV")
    samples = load_audio(file.getvalue())
    assert len(samples) == max(1, round(count * 16_000 / rate))
    assert np.allclose(samples, 0.5, atol=0.01)


def test_a_sound_that_changes_its_channels_midway_is_refused() -> None:
    mono, stereo = (adts(layout) for layout in ("mono", "stereo"))
    assert len(load_audio(mono + mono)) > 20_000
    with pytest.raises(InputError, match="changes its channels"):
        load_audio(mono + stereo)


def adts(layout: str) -> bytes:
    """A second of AAC in a form that can be joined by joining bytes."""
    file = io.BytesIO()
    with av.open(file, "w", format="adts") as out:
        stream = out.add_stream("aac", rate=16_000, layout=layout)
        channels = stream.codec_context.channels
        frame = av.AudioFrame.from_ndarray(np.zeros((channels, 16_000), np.float32), format="fltp", layout=layout)
        frame.sample_rate = 16_000
        out.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


@pytest.mark.parametrize("rate", [100, 3_999, 192_001, 2**31 - 1])
def test_a_rate_that_no_sound_has_is_refused(rate: int) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(1600, np.float32), 16_000, format="WAV", subtype="PCM_16")
    content = bytearray(file.getvalue())
    content[24:28] = struct.pack("<I", rate)
    with pytest.raises(InputError, match=rf"has {rate:,} samples a second: expected 4,000 to 192,000"):
        load_audio(bytes(content))


# Pictures


def test_sixteen_bits_in_a_pgm_keep_their_range() -> None:
    image = load_image(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 32768, 65535))
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0,) * 3, (128,) * 3, (255,) * 3]


@pytest.mark.parametrize(("values", "seen"), [
    ((0, 128, 255), (0, 128, 255)), ((0, 32_768, 65_535), (0, 128, 255)), ((-5, 2**30, 2**31 - 1), (0, 128, 255)),
])  # fmt: skip
def test_whole_numbers_of_32_bits_are_scaled_by_what_is_in_them(values: tuple[int, ...], seen: tuple[int, ...]) -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([values], np.int32)).save(file, "TIFF")
    assert tuple(load_image(file.getvalue()).getpixel((x, 0))[0] for x in range(3)) == seen


# Damage


def test_a_damaged_avif_is_refused() -> None:
    file = io.BytesIO()
    Image.effect_noise((24, 32), 60).convert("RGB").save(file, "AVIF")
    whole = file.getvalue()
    assert load_image(whole).size == (24, 32)
    with pytest.raises(InputError, match="damaged picture"):
        load_image(whole.replace(b"pitm", b"zzzz"))  # the box that names the picture among the items


def test_packets_of_a_stream_that_is_not_announced_are_damage() -> None:
    for load in (lambda data: load_video(data, 2), load_audio):
        with pytest.raises(InputError, match=r"does not announce|no sound stream"):
            load(unannounced_stream())
