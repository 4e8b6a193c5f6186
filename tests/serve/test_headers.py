"""What a look at the headers refuses, each with its reason, and that it lets ordinary media pass."""

import dataclasses
import tracemalloc
from contextlib import suppress

import hostile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_files import RATE, trim, unannounced_stream, write_clip

from imod_core.errors import InputError
from imod_serve.headers import check_audio, check_image, check_video
from imod_serve.limits import Limits

from .damage import PICTURES, SOUNDS, VIDEOS, damaged, encoded

LIMITS = Limits()


def limits(**values):
    return dataclasses.replace(LIMITS, **values)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_ordinary_pictures_pass(format):
    check_image(encoded(format), limits(image_pixels=64))
    with pytest.raises(InputError, match="72 pixels: at most 64"):
        check_image(encoded(format, (8, 9)), limits(image_pixels=64))


@pytest.mark.parametrize("format", ["PDF", "EPS", "PPM", "ICO"])
def test_documents_and_odd_formats_are_no_pictures(format):
    with pytest.raises(InputError, match="in no format that is taken"):
        check_image(encoded(format), LIMITS)


def test_a_picture_bomb_is_refused_by_its_header_alone():
    bomb = hostile.huge_picture()
    assert len(bomb) < 1000
    tracemalloc.start()
    with pytest.raises(InputError, match="pixels"):
        check_image(bomb, LIMITS)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_ordinary_sounds_pass_and_long_ones_do_not(format):
    data = hostile.sound(1, 2.0, format=format)
    check_audio(data, limits(audio_seconds=3))
    with pytest.raises(InputError, match="2 seconds: at most 1"):
        check_audio(data, limits(audio_seconds=1))


def test_a_videos_sound_track_is_a_sound(media):
    check_audio(media.video.read_bytes(), LIMITS)
    with pytest.raises(InputError, match="no sound stream"):
        check_audio(media.silent.read_bytes(), LIMITS)
    with pytest.raises(InputError, match="2 channels: at most 1"):
        check_audio(media.video.read_bytes(), limits(audio_channels=1))


@pytest.mark.parametrize(("rate", "channels", "reason"), [
    (16_000, 8, "8 channels: at most 6"), (1_000_000, 1, "1,000,000 samples a second"), (10, 1, "at least 4,000"),
])  # fmt: skip
def test_sounds_of_odd_shape_are_refused(rate, channels, reason):
    with pytest.raises(InputError, match=reason):
        check_audio(hostile.sound(1, 0.2, rate, channels), LIMITS)


def test_a_sound_is_held_to_what_it_becomes_when_decoded(media):
    stereo = hostile.sound(1, 1.0, 8000, 2)
    check_audio(stereo, limits(audio_bytes=4 * 2 * 8000))
    for data, most in ((stereo, 4 * 2 * 8000 - 1), (media.video.read_bytes(), 4 * 1000)):
        with pytest.raises(InputError, match="bytes when decoded: at most"):
            check_audio(data, limits(audio_bytes=most))


def test_an_hour_of_silence_in_few_bytes_is_refused():
    data = hostile.sound(0, 3601, format="FLAC")
    assert len(data) < 200_000
    with pytest.raises(InputError, match="3,601 seconds"):
        check_audio(data, LIMITS)


def test_ordinary_videos_pass_and_each_limit_is_held(media):
    data = hostile.video(1, frames=8, rate=8, side=64)
    check_video(data, limits(video_frames=8, video_seconds=1, video_pixels=64 * 64, video_total_pixels=8 * 64 * 64))
    check_video(media.video.read_bytes(), LIMITS)
    for changed in ({"video_frames": 7}, {"video_pixels": 64 * 63}, {"video_total_pixels": 8 * 64 * 64 - 1}):
        with pytest.raises(InputError, match="at most"):
            check_video(data, limits(**changed))
    with pytest.raises(InputError, match="2 seconds: at most 1"):
        check_video(hostile.video(1, frames=16), limits(video_seconds=1))


def test_a_video_whose_header_lies_about_its_length_is_counted_by_its_packets():
    """The header of the sample table is trusted by nobody: the announced durations are set to one second."""
    data = bytearray(hostile.video(1, frames=24, rate=8))
    for box in (b"mvhd", b"mdhd", b"tkhd"):
        at = data.index(box) + 4  # version and flags, two times, then for mvhd and mdhd the scale, then the duration
        place = at + (20 if box == b"tkhd" else 16)
        scale = 1 if box == b"tkhd" else int.from_bytes(data[place - 4 : place], "big")
        data[place : place + 4] = (scale if box != b"tkhd" else 1000).to_bytes(4, "big")
    with pytest.raises(InputError, match="at most 2 are taken"):
        check_video(bytes(data), limits(video_seconds=2))


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_cut_video_is_refused_wherever_it_is_cut(keep):
    data = hostile.video(1, frames=16)
    with pytest.raises(InputError, match=r"cut off|damaged|nothing"):
        check_video(data[: int(len(data) * keep)], LIMITS)


@pytest.mark.parametrize("hidden", [1, 16])
def test_a_trimmed_video_passes_and_counts_what_it_shows(hidden, tmp_path):
    """Its header counts frames besides that are only there to decode the others."""
    data = trim(write_clip(tmp_path / "a.mp4"), tmp_path / "b.mp4", hidden / RATE).read_bytes()
    asked = []
    check_video(data, LIMITS, kept=lambda total, fps: asked.append((total, fps)) or total)
    assert asked == [(40 - hidden, RATE)]
    with pytest.raises(InputError, match=r"cut off|damaged"):
        check_video(data[: int(len(data) * 0.9)], LIMITS)


@pytest.mark.parametrize("keep", [0.5, 0.8])
def test_an_avi_that_is_cut_off_is_refused(keep, tmp_path):
    data = write_clip(tmp_path / "a.avi").read_bytes()
    check_video(data, LIMITS)
    with pytest.raises(InputError, match=r"cut off|damaged"):
        check_video(data[: int(len(data) * keep)], LIMITS)


def test_packets_of_a_stream_that_is_not_announced_are_damage():
    with pytest.raises(InputError, match="does not announce"):
        check_video(unannounced_stream(), LIMITS)


@pytest.mark.parametrize("text", [
    b"#EXTM3U\n#EXTINF:5,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", b"ffconcat version 1.0\nfile '/etc/passwd'\n",
    b"<svg/>", b"", b"RIFF", b"\x00" * 100,
])  # fmt: skip
@pytest.mark.parametrize("check", [check_image, check_audio, check_video])
def test_lists_of_other_files_and_rubbish_are_no_media(check, text):
    with pytest.raises(InputError):
        check(text, LIMITS)


def test_an_unknown_encoding_is_refused():
    video = hostile.video(1)
    assert video.count(b"mp4v") == 1
    with pytest.raises(InputError, match="encoding"):
        check_video(video.replace(b"mp4v", b"zzzz").replace(b"esds", b"zzzz"), LIMITS)


KINDS = {check_image: PICTURES, check_audio: [*SOUNDS, *VIDEOS], check_video: VIDEOS}


@pytest.mark.parametrize("check", KINDS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_whatever_is_changed_in_a_file_it_passes_or_is_refused(check, data):
    content = damaged(data, KINDS[check])
    with suppress(InputError):
        check(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))], LIMITS)


def test_limits_come_from_words_and_are_checked():
    assert Limits().changed(["video_seconds=7", "images=0"]) == limits(video_seconds=7, images=0)
    assert Limits(images=3).by_modality(["video", "image"]) == {"image": 3, "video": 2}
    for setting, reason in (("seconds=7", "request_bytes"), ("images=many", "whole number"), ("images=-1", "whole")):
        with pytest.raises(InputError, match=reason):
            Limits().changed([setting])
    with pytest.raises(InputError, match="request_bytes is 0"):
        Limits(request_bytes=0)
