"""Takes of the instruments, each rendered once, and the stereo mix of a scene.

The real instruments are those of a General MIDI soundfont, rendered by midirenderer; `drawn` ones are sums of
harmonics made here, for tests and for machines without a registry.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from imod_core.errors import MissingExtraError
from imod_core.media import SAMPLE_RATE, load_audio
from imod_core.parts import PARTS, read
from imod_core.scenes.composition import Scene
from imod_core.scenes.instruments import INSTRUMENTS, PERCUSSION, STEP, Instrument, Take, notes, takes

SECONDS = 4.0
"""Of every clip."""
LENGTH = int(SECONDS * SAMPLE_RATE)
LOUD_DB = 10.0
"""By how much a loud sound exceeds a soft one in the same clip."""
LEVELS_DB = {"loud": -20.0, "even": -22.0, "soft": -20.0 - LOUD_DB}
"""Root mean square of a take, dB of full scale, before the clip's own gain."""
GAIN_DB = 3.0
"""A clip as a whole is up to this much louder or softer: level alone must not tell loud from soft."""
NOISE_DB = -65.0
"""Of the room, under every clip; a clip without music is quiet, not void."""
ENTRANCE_GAP = {2: 1.8, 3: 1.3}
"""Seconds between successive onsets, by how many different onsets a clip has."""
PAN = {"left": -0.6, "middle": 0.0, "right": 0.6, None: 0.9}
"""Stereo position by place; a sound from outside comes from far left or far right."""
TICKS = 500
"""Of a MIDI quarter note, which the default tempo makes half a second: a tick is a millisecond."""

Bank = dict[tuple[str, bool], list[NDArray[np.float32]]]
"""(instrument, unseen) -> its takes, mono (LENGTH,) at SAMPLE_RATE, root mean square 1."""


def play_takes(parts: str) -> Bank:
    """Every take of every instrument, training and unseen."""
    soundfont = b"" if parts == "drawn" else read(PARTS["pretty_midi"], "pretty_midi/TimGM6mb.sf2")
    bank: Bank = {}
    for instrument in INSTRUMENTS:
        for unseen in (False, True):
            played = [_play(instrument, take, soundfont) for take in takes(instrument, unseen)]
            bank[instrument.name, unseen] = [_leveled(samples) for samples in played]
    return bank


def mix(scene: Scene, bank: Bank, rng: np.random.Generator) -> NDArray[np.float32]:
    """The stereo sound of a scene (LENGTH, 2); the mean of the channels keeps the levels, wherever they stand."""
    total = rng.standard_normal((LENGTH, 2), dtype=np.float32) * _amplitude(NOISE_DB)
    onsets = entrance_times(scene, rng)
    for sound in scene.sounds:
        choices = bank[sound.instrument, scene.unseen]
        start = round(onsets[sound.entrance] * SAMPLE_RATE)
        mono = np.zeros(LENGTH, np.float32)
        mono[start:] = _faded(choices[int(rng.integers(len(choices)))][: LENGTH - start])
        pan = PAN[sound.place] * (1 if sound.place or rng.random() < 0.5 else -1)
        total += mono[:, None] * np.array([1 - pan, 1 + pan], np.float32) * _amplitude(LEVELS_DB[sound.level])
    total *= _amplitude(float(rng.uniform(-GAIN_DB, GAIN_DB)))
    return total / max(1.0, float(np.abs(total).max()) / 0.99)


def entrance_times(scene: Scene, rng: np.random.Generator) -> list[float]:
    """Seconds at which each rank of entrance begins."""
    ranks = len({sound.entrance for sound in scene.sounds})
    gap = ENTRANCE_GAP.get(ranks, 0.0)
    return [0.05 + rank * gap + float(rng.uniform(0, 0.1)) for rank in range(ranks)]


def _amplitude(decibels: float) -> np.float32:
    return np.float32(10 ** (decibels / 20))


def _faded(samples: NDArray[np.float32], milliseconds: int = 20) -> NDArray[np.float32]:
    """Without the click of a sudden end."""
    length = SAMPLE_RATE * milliseconds // 1000
    samples = samples.copy()
    samples[-length:] *= np.linspace(1, 0, length, dtype=np.float32)
    return samples


def _leveled(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    whole = np.pad(samples, (0, max(0, LENGTH - len(samples))))[:LENGTH]
    return (whole / np.sqrt(np.mean(whole**2))).astype(np.float32)


def _play(instrument: Instrument, take: Take, soundfont: bytes) -> NDArray[np.float32]:
    if not soundfont:
        return _additive(instrument, take)
    try:
        import midirenderer
    except ImportError:
        raise MissingExtraError("midirenderer", "scenes") from None
    return load_audio(midirenderer.render_wave_from(soundfont, _midi(instrument, take)))


def _pitches(instrument: Instrument, take: Take) -> list[tuple[float, float, int]]:
    """A take as (onset in s, duration in s, MIDI note)."""
    shift = 0 if instrument.program == PERCUSSION else instrument.root + take.key
    return [(first * STEP, held * STEP, pitch + shift) for first, held, pitch in notes(take.phrase)]


def _midi(instrument: Instrument, take: Take) -> bytes:
    """A standard MIDI file, one track; drums go to channel 10 as General MIDI has it."""
    drums = take.program == PERCUSSION
    channel = 9 if drums else 0
    events = []
    for onset, duration, pitch in _pitches(instrument, take):
        events.append((round(onset * 1000), bytes([0x90 | channel, pitch, 100])))
        events.append((round((onset + 0.95 * duration) * 1000), bytes([0x80 | channel, pitch, 0])))
    track = _delta(0) + bytes([0xC0 | channel, 0 if drums else take.program])
    now = 0
    for time, event in sorted(events):
        track += _delta(time - now) + event
        now = time
    track += _delta(max(0, int(SECONDS * 1000) - now)) + b"\xff\x2f\x00"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, TICKS) + b"MTrk" + struct.pack(">I", len(track)) + track


def _delta(ticks: int) -> bytes:
    """A MIDI variable-length quantity: seven bits a byte, high bit on all but the last."""
    groups = [ticks & 127]
    while ticks := ticks >> 7:
        groups.insert(0, 128 | (ticks & 127))
    return bytes(groups)


def _additive(instrument: Instrument, take: Take) -> NDArray[np.float32]:
    """Decaying sums of harmonics; a drum is decaying noise, the lower its note the longer."""
    total = np.zeros(LENGTH, np.float32)
    noise = np.random.Generator(np.random.PCG64(0)).standard_normal(LENGTH)
    for onset, duration, pitch in _pitches(instrument, take):
        start = round(onset * SAMPLE_RATE)
        time = np.arange(min(round(duration * SAMPLE_RATE), LENGTH - start)) / SAMPLE_RATE
        if instrument.program == PERCUSSION:
            wave = noise[: len(time)] * np.exp(-time * (pitch - 20))
        else:
            hertz = 440 * 2 ** ((pitch - 69) / 12)
            partials = enumerate(instrument.partials, start=1)
            wave = sum(a * np.sin(2 * np.pi * n * hertz * time) for n, a in partials) * np.exp(-2 * time)
        total[start : start + len(time)] += wave.astype(np.float32)
    return total
