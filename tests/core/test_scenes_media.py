"""Sounds, pictures, clips and captions of the scenes: what is rendered or told is what the scene holds."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from imod_core.media import load_audio, load_image
from imod_core.parts import PARTS
from imod_core.scenes.captions import picture_caption, sound_caption
from imod_core.scenes.composition import Scene, Sound, stream
from imod_core.scenes.dataset import build_scenes
from imod_core.scenes.instruments import INSTRUMENTS, NAMES, PHRASES, notes, takes
from imod_core.scenes.pictures import TRAINING_STYLES, UNSEEN_STYLE, draw_sprites, paint
from imod_core.scenes.plan import ScenesSettings
from imod_core.scenes.render import Stock, render, render_all, take_stock
from imod_core.scenes.sounds import ENTRANCE_GAP, LOUD_DB, entrance_times, mix, play_takes

DUET = Scene(
    "duet",
    "drawn-filled",
    False,
    ("violin", None, "drum"),
    (Sound("violin", "left", 0, "loud"), Sound("drum", "right", 0, "soft"), Sound("flute", None, 1, "soft")),
)


@pytest.fixture(scope="module")
def stock() -> Stock:
    return take_stock("drawn")


def level(samples: np.ndarray) -> float:
    """Decibels of the root mean square."""
    return float(10 * np.log10(np.mean(samples**2)))


def only(*sounds: Sound) -> Scene:
    return Scene("solo", "drawn-filled", False, (None, None, None), sounds)


def test_a_loud_sound_exceeds_a_soft_one(stock: Stock) -> None:
    levels = {
        name: level(mix(only(Sound("violin", "left", 0, name)), stock.bank, stream(5))[:, 0])
        for name in ("loud", "soft")
    }
    assert levels["loud"] - levels["soft"] == pytest.approx(LOUD_DB, abs=0.5)


def test_a_sound_stands_where_its_instrument_does_and_mono_keeps_its_level(stock: Stock) -> None:
    stereo = {
        place: mix(only(Sound("violin", place, 0, "even")), stock.bank, stream(5))
        for place in ("left", "middle", "right")
    }
    sides = {place: level(sound[:, 0]) - level(sound[:, 1]) for place, sound in stereo.items()}
    assert sides["left"] > 6
    assert abs(sides["middle"]) < 0.5
    assert sides["right"] < -6
    mono = [level(sound.mean(axis=1)) for sound in stereo.values()]
    assert max(mono) - min(mono) < 0.5


def test_onsets_are_more_than_a_second_apart_and_end_before_the_clip() -> None:
    for names in (("violin", "drum"), ("violin", "drum", "flute")):
        scene = only(*(Sound(name, None, rank, "even") for rank, name in enumerate(names)))
        times = entrance_times(scene, stream(5))
        assert np.diff(times).min() > 1.0
        assert times[-1] < 3.0
    together = only(Sound("violin", None, 0, "even"), Sound("drum", None, 0, "even"))
    assert len(entrance_times(together, stream(5))) == 1


def test_a_later_entrance_is_silent_until_its_time(stock: Stock) -> None:
    late = only(Sound("violin", "left", 1, "even"), Sound("flute", "right", 0, "soft"))
    sound = mix(late, stock.bank, stream(5))
    start = round(ENTRANCE_GAP[2] * 16000)
    left_surplus = level(sound[start + 4000 :, 0]) - level(sound[4000:start, 0])
    assert left_surplus > 6


def test_the_loudest_mix_does_not_clip(stock: Stock) -> None:
    crowd = only(*(Sound(name, "left", 0, "loud") for name in NAMES))
    assert np.abs(mix(crowd, stock.bank, stream(5))).max() <= 1.0


def test_a_clip_without_sounds_is_quiet_but_not_void(stock: Stock) -> None:
    assert -70 < level(mix(only(), stock.bank, stream(5))) < -55


def test_the_mp4_carries_the_sound_of_the_wav(stock: Stock, tmp_path: Path) -> None:
    render(DUET, stock, 0, tmp_path)
    wav, track = load_audio(tmp_path / "duet.wav"), load_audio(tmp_path / "duet.mp4")[: 4 * 16000]
    assert np.corrcoef(wav, track)[0, 1] > 0.95
    assert np.corrcoef(wav[800:], track[:-800])[0, 1] < 0.9


def test_unseen_takes_are_never_training_takes() -> None:
    for instrument in INSTRUMENTS:
        assert len(PHRASES[instrument.manner]) > 1
        training, unseen = takes(instrument, False), takes(instrument, True)
        assert not {take.phrase for take in training} & {take.phrase for take in unseen}


def test_a_phrase_reads_as_held_and_joined_notes() -> None:
    assert notes("0 - . 4+7 - 2") == [(0, 2, 0), (3, 2, 4), (3, 2, 7), (5, 1, 2)]


# Pictures


def test_instruments_stand_in_their_thirds(stock: Stock) -> None:
    frame = paint(DUET, stock.sprites, stream(3), 1)[0]
    empty = paint(only(), stock.sprites, stream(3), 1)[0]
    changed = (np.asarray(frame) != np.asarray(empty)).any(axis=(0, 2))
    third = 224 // 3
    assert changed[third // 2]
    assert not changed[third + 20 : 2 * third - 20].any()
    assert changed[-third // 2]


def test_the_video_moves_a_little(stock: Stock) -> None:
    frames = [np.asarray(frame).astype(int) for frame in paint(DUET, stock.sprites, stream(3), 8)]
    moved = np.abs(frames[0] - frames[4]).mean()
    assert 0.1 < moved < 30


# Real parts


@pytest.fixture(scope="module")
def real() -> Stock:
    """From the registries, or from the cache."""
    return take_stock("real")


def test_real_drawings_differ_by_instrument_and_by_style(real: Stock) -> None:
    assert len(real.sprites) == (len(TRAINING_STYLES) + 1) * len(NAMES)
    for pixels in real.sprites.values():
        assert pixels.shape == (96, 96, 4)
        assert (pixels[..., 3] > 128).mean() > 0.05
    assert len({pixels.tobytes() for pixels in real.sprites.values()}) == len(real.sprites)


def test_real_instruments_sound_throughout_and_differ(real: Stock) -> None:
    spectra = []
    for name in NAMES:
        for unseen in (False, True):
            for take in real.bank[name, unseen]:
                seconds = take.reshape(4, -1)
                assert np.sqrt((seconds**2).mean(axis=1)).min() > 0.3, (name, unseen)
        spectra.append(np.abs(np.fft.rfft(real.bank[name, False][0])).reshape(-1)[:32000].reshape(64, -1).mean(1))
    likeness = np.corrcoef(np.log(spectra))
    assert (likeness - np.eye(len(NAMES))).max() < 0.999


def test_a_real_set_renders_and_names_every_licence(tmp_path: Path) -> None:
    built = build_scenes(tmp_path / "set", ScenesSettings(2, 1, 1, 1), workers=1)
    notice = (built / "NOTICE.txt").read_text()
    for part in [*TRAINING_STYLES.values(), UNSEEN_STYLE[1], "pretty_midi"]:
        assert f"{PARTS[part].name} {PARTS[part].version}" in notice
        assert PARTS[part].licence in notice
    image = np.asarray(load_image(next((built / "media").glob("train*.png"))))
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 100


def test_rendering_in_workers_equals_rendering_here(real: Stock, tmp_path: Path) -> None:
    scene = Scene("one", "noto", False, DUET.places, DUET.sounds)
    for name, workers in (("here", 1), ("workers", 2)):
        (tmp_path / name).mkdir()
        render_all([scene], real, 0, tmp_path / name, workers)
    for suffix in ("png", "wav", "mp4"):
        here = (tmp_path / "here" / f"one.{suffix}").read_bytes()
        assert here == (tmp_path / "workers" / f"one.{suffix}").read_bytes()


def test_drawn_and_real_parts_are_different_things(real: Stock) -> None:
    assert not set(real.sprites) & set(draw_sprites("drawn"))
    drawn = play_takes("drawn")
    assert {key: len(value) for key, value in drawn.items()} == {k: len(v) for k, v in real.bank.items()}
    assert Counter(NAMES) == Counter(name for name, unseen in drawn if not unseen)


def test_captions_say_what_is_where_and_when() -> None:
    assert picture_caption(DUET) == "left: violin, middle: nothing, right: drum"
    assert sound_caption(DUET) == "three: loud violin and soft drum, then soft flute"
    assert sound_caption(Scene("s", "drawn-filled", False, (None, "drum", None), ())) == "silence"
