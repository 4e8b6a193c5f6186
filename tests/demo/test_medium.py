"""Any phone's clip plays and is understood; what cannot be is refused in a sentence. Pictures of other programs too."""

import io
import shutil

import av
import numpy as np
import pytest
import soundfile
from media_files import RATE, begins_at, trim, unannounced_stream
from media_files import write_clip as write_grey_clip
from PIL import Image

from imod_core.errors import InputError
from imod_core.media import load_audio, load_image, load_video
from imod_demo import medium
from imod_demo.blank import GREY, emptied_clip, grey_picture, silence, without
from imod_demo.medium import take
from imod_demo.streams import look_into
from imod_serve.messages import Turn

from . import clips
from .clips import SECONDS, SIZE, tone, turn_display, write_clip

PHONES = {
    "HEVC in QuickTime": ("a.mov", {"codec": "libx265"}),
    "10-bit HEVC": ("a.mp4", {"codec": "libx265", "pixels": "yuv420p10le"}),
    "VP9 and Opus from a browser": ("a.webm", {"codec": "libvpx-vp9", "sound": ("libopus", 48_000, "stereo")}),
    "old MPEG-4 with MP3": ("a.avi", {"codec": "mpeg4", "sound": ("libmp3lame", 22_050, "mono")}),
    "surround sound": ("a.mp4", {"sound": ("aac", 48_000, "5.1")}),
    "telephone sound": ("a.mkv", {"sound": ("pcm_s16le", 8_000, "mono")}),
    "odd sample rate": ("a.mkv", {"sound": ("pcm_s16le", 37_800, "stereo")}),
    "variable frame rate": ("a.mp4", {"times": [0, 0.1, 0.2, 0.9, 1.0, 1.1, 1.7, 1.95]}),
    "4K": ("a.mp4", {"size": (3840, 2160), "rate": 4, "seconds": 1}),
    "without sound": ("a.mp4", {"sound": None, "codec": "libx265"}),
}


@pytest.mark.parametrize("phone", PHONES)
def test_what_comes_out_plays_in_every_browser(phone, tmp_path):
    name, made = PHONES[phone]
    source = write_clip(tmp_path / name, **made)
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    found = take(source, name, shelf)
    with av.open(str(found.path)) as clip:
        picture = clip.streams.video[0]
        assert (picture.codec_context.name, picture.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert max(picture.width, picture.height) <= 1280
        times = [frame.time for frame in clip.decode(picture)]
        assert np.ptp(np.diff(times)) < 0.01
        sounds = [s.codec_context for s in clip.streams.audio]
        assert all(sound.name == "aac" and sound.channels <= 2 for sound in sounds)
        assert bool(sounds) == found.sounding == (made.get("sound", True) is not None)
    assert found.seconds == pytest.approx(made.get("seconds", SECONDS), abs=0.15)
    assert found.changes


def test_a_clip_that_plays_already_stays_the_same_bytes(tmp_path):
    source = write_clip(tmp_path / "a.mp4")
    found = take(source, "a.mp4", _shelf(tmp_path))
    assert found.path.read_bytes() == source.read_bytes()
    assert found.changes == ()


@pytest.mark.parametrize(("matrix", "corner"), [
    ((0, 1, -1, 0), "top right"), ((-1, 0, 0, -1), "bottom right"),
    ((-1, 0, 0, 1), "top right"), ((1, 0, 0, -1), "bottom left"), ((0, -1, -1, 0), "bottom right"),
])  # fmt: skip
def test_a_turned_clip_is_shown_and_sent_upright(tmp_path, matrix, corner):
    source = turn_display(write_clip(tmp_path / "a.mp4"), matrix)
    found = take(source, "a.mp4", _shelf(tmp_path))
    frame = load_video(found.path, 1)[0]
    assert (found.size == SIZE) == (matrix[0] != 0)
    assert frame.shape[:2] == (found.size[1], found.size[0])
    assert _red_corner(frame) == corner == _red_corner(load_video(source, 1)[0])
    assert "turned upright" in found.changes


def test_steadied_frames_show_what_was_to_be_seen_at_each_instant(tmp_path):
    times = [0, 0.1, 0.2, 0.9, 1.0, 1.1, 1.7, 1.95]
    source = write_clip(tmp_path / "a.mp4", times=times)
    found = take(source, "a.mp4", _shelf(tmp_path))
    with av.open(str(found.path)) as clip:
        shown = [(frame.time, _bar(frame.to_ndarray(format="rgb24"))) for frame in clip.decode(video=0)]
    wanted = [max(i for i, time in enumerate(times) if time <= at + 0.51 * shown[1][0]) for at, _ in shown]
    bars = [_bar(frame) for frame in load_video(source, len(times))]
    assert [bar for _, bar in shown] == pytest.approx([bars[index] for index in wanted], abs=2)
    assert len(set(wanted)) > 3


@pytest.mark.parametrize("hidden", [1, 16])
def test_a_trimmed_clip_is_as_long_as_what_it_shows(tmp_path, hidden):
    source = trim(write_grey_clip(tmp_path / "a.mp4", sound_at=0.0), tmp_path / "b.mp4", hidden / RATE)
    shown = 40 - hidden
    found = take(source, "b.mp4", _shelf(tmp_path))
    assert found.seconds == pytest.approx(shown / RATE)
    for picture, sound in ((True, False), (False, True)):
        emptied = emptied_clip(found.path, picture=picture, sound=sound)
        assert _frames(emptied) == shown
        assert picture or np.array_equal(load_video(emptied, shown), load_video(source, shown))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_sound_that_begins_later_stays_where_it_is(tmp_path, name):
    source = write_grey_clip(tmp_path / name, sound_at=1.5)
    found = take(source, name, _shelf(tmp_path))
    assert bool(found.changes) == (name == "a.mkv")
    blanked = emptied_clip(found.path, picture=True, sound=False)
    for heard in (source, found.path, blanked):
        assert begins_at(load_audio(heard)) == pytest.approx(1.5, abs=0.003)
    assert np.array_equal(load_audio(blanked), load_audio(found.path))


def test_surround_sound_is_mixed_without_going_beyond_the_loudest(tmp_path, monkeypatch):
    loud = np.repeat(3.6 * tone(48_000, 1), 6, axis=0)
    monkeypatch.setattr(clips, "tone", lambda rate, channels, seconds: loud)
    source = write_clip(tmp_path / "a.mkv", sound=("pcm_s16le", 48_000, "5.1"))
    found = take(source, "a.mkv", _shelf(tmp_path))
    with av.open(str(found.path)) as clip:
        peak = max(np.abs(frame.to_ndarray()).max() for frame in clip.decode(audio=0))
    assert 0.5 < peak < 1


def test_a_sound_of_few_samples_is_taken(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(20, 0.5, np.float32), 8_000)
    assert take(tmp_path / "a.wav", "a.wav", _shelf(tmp_path)).kind == "audio"


def test_a_sound_is_passed_on_or_made_what_the_model_hears(tmp_path):
    shelf = _shelf(tmp_path)
    soundfile.write(tmp_path / "a.wav", tone(22_050, 2).T, 22_050, subtype="PCM_16")
    wav = take(tmp_path / "a.wav", "a.wav", shelf)
    assert wav.path.read_bytes() == (tmp_path / "a.wav").read_bytes()
    soundfile.write(tmp_path / "a.ogg", tone(37_800, 2).T, 37_800)
    ogg = take(tmp_path / "a.ogg", "a.ogg", shelf)
    assert (ogg.kind, ogg.path.suffix) == ("audio", ".wav")
    assert np.abs(load_audio(ogg.path) - load_audio(tmp_path / "a.ogg")).max() < 1e-4


def test_a_cover_picture_makes_no_clip_of_a_sound(tmp_path):
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as out:
        track = out.add_stream("libmp3lame", rate=44_100, layout="mono")
        cover = out.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        out.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        frame = av.AudioFrame.from_ndarray(tone(44_100, 1), format="fltp", layout="mono")
        frame.sample_rate = 44_100
        out.mux([*track.encode(frame), *track.encode(None)])
    assert take(path, "song.mp3", _shelf(tmp_path)).kind == "audio"


def test_pictures_that_browsers_do_not_show_become_png(tmp_path):
    Image.effect_noise((40, 30), 60).convert("RGB").save(tmp_path / "a.tiff")
    found = take(tmp_path / "a.tiff", "a.tiff", _shelf(tmp_path))
    assert found.path.suffix == ".png"
    assert np.array_equal(load_image(found.path), load_image(tmp_path / "a.tiff"))


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def _playlist(path):
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n")
    return path


def _text(path):
    path.write_text("Not a clip at all.\n" * 40)
    return path


def _empty(path):
    path.write_bytes(b"")
    return path


def _unannounced(path):
    path.write_bytes(unannounced_stream())
    return path


def _joined(path):
    """Of two clips in a form that can be joined by joining bytes, one with a sound of two channels."""
    path = path.with_suffix(".ts")
    parts = [write_clip(path, sound=("aac", 44_100, layout)).read_bytes() for layout in ("mono", "stereo")]
    path.write_bytes(b"".join(parts))
    return path


def _long(path):
    return write_clip(path, rate=1, seconds=130, size=(32, 32), sound=None)


REFUSED = {
    "cut off": (lambda path: _cut(write_clip(path)), "damaged"),
    "a playlist that names another file": (_playlist, "damaged or no picture"),
    "text": (_text, "damaged or no picture"),
    "empty": (_empty, "damaged or no picture"),
    "a stream that is not announced": (_unannounced, "damaged or no picture"),
    "a sound that changes its channels": (_joined, "changes its channels"),
    "too long": (_long, "130 s: clips of up to 120 s"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_a_sentence_about_the_visitors_file(case, tmp_path):
    make, words = REFUSED[case]
    source = make(tmp_path / "stored.mp4")
    shelf = _shelf(tmp_path)
    with pytest.raises(InputError, match=words) as error:
        take(source, "holiday.mp4", shelf)
    assert "holiday.mp4" in str(error.value)
    assert str(tmp_path) not in str(error.value)
    assert not list(shelf.iterdir())


def test_too_many_bytes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(medium, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="at most"):
        take(write_clip(tmp_path / "a.mp4"), "a.mp4", _shelf(tmp_path))


def test_a_name_is_shown_without_markup(tmp_path):
    source = write_clip(tmp_path / "a.mp4")
    assert "<" not in take(source, "<img src=x onerror=alert(1)>.mp4", _shelf(tmp_path)).name


@pytest.mark.parametrize("picture", [False, True])
@pytest.mark.parametrize("sound", [False, True])
def test_an_emptied_clip_keeps_frames_size_and_length_and_what_was_not_emptied(tmp_path, picture, sound):
    source = write_clip(tmp_path / "a.mp4")
    (tmp_path / "b.mov").write_bytes(emptied_clip(source, picture=picture, sound=sound))
    before, after = look_into(source), look_into(tmp_path / "b.mov")
    assert (after.size, round(after.rate)) == (before.size, round(before.rate))
    frames = load_video(source, 30), load_video(tmp_path / "b.mov", 30)
    assert frames[0].shape == frames[1].shape
    if picture:
        assert np.abs(frames[1].astype(int) - GREY).max() <= 1
    else:
        assert np.array_equal(*frames)
    heard = load_audio(source), load_audio(tmp_path / "b.mov")
    assert len(heard[0]) == len(heard[1])
    assert np.array_equal(*heard) == (not sound)
    assert np.any(heard[1]) == (not sound)


def test_blank_means_what_it_means_in_evaluation(tmp_path):
    from imod_core.avt.states import BLANK_GREY

    assert BLANK_GREY == (GREY,) * 3
    Image.effect_noise((40, 30), 60).convert("RGB").save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", tone(16_000, 1)[0], 16_000)
    assert np.all(np.array(load_image(grey_picture(tmp_path / "a.png"))) == GREY)
    assert load_image(grey_picture(tmp_path / "a.png")).size == (40, 30)
    assert np.array_equal(load_audio(silence(tmp_path / "a.wav")), np.zeros(16_000 * SECONDS, np.float32))
    turn = Turn("user", "?", (tmp_path / "a.png",), (tmp_path / "a.wav",))
    muted = without(turn, picture=False, sound=True)
    assert (muted.images, muted.audios == turn.audios) == (turn.images, False)


def _shelf(tmp_path):
    shelf = tmp_path / "shelf"
    shutil.rmtree(shelf, ignore_errors=True)
    shelf.mkdir()
    return shelf


def _frames(data):
    with av.open(io.BytesIO(data)) as clip:
        return sum(1 for _ in clip.decode(video=0))


def _red_corner(frame):
    redness = frame[..., 0].astype(int) - frame[..., 1]
    rows, columns = np.array_split(np.arange(frame.shape[0]), 2), np.array_split(np.arange(frame.shape[1]), 2)
    corners = {f"{y} {x}": redness[np.ix_(r, c)].sum() for y, r in zip(("top", "bottom"), rows, strict=True)
               for x, c in zip(("left", "right"), columns, strict=True)}  # fmt: skip
    return max(corners, key=corners.get)


def _bar(frame):
    """The column at which the bright bar begins."""
    return int(np.argmax(frame[-8:].mean(axis=(0, 2)) > 195))
