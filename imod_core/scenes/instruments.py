"""What a scene can hold: instruments that every drawing style has, each with its own timbre and register.

The names are answers of MUSIC-AVQA. A phrase is a row of notes on a grid of 0.2 s steps: an integer is a
semitone above the instrument's root, `-` holds the note before, `.` is a rest; several integers joined by
`+` sound together. Training and unseen clips draw from different phrases, keys and, where the soundfont
offers a sibling, programs.
"""

from dataclasses import dataclass

STEP = 0.2
"""Seconds of one step of a phrase."""
PERCUSSION = -1
"""Instead of a MIDI program: the drum channel, where a note number chooses the drum."""


@dataclass(frozen=True)
class Instrument:
    """One instrument, as seen (by name) and as heard."""

    name: str
    program: int
    """General MIDI program, from 0, in training."""
    unseen_program: int
    """Of the unseen split; equal to `program` where the soundfont has no close sibling."""
    root: int
    """MIDI note that a phrase's 0 stands for."""
    manner: str
    """Which phrases it plays; a key of PHRASES."""
    partials: tuple[float, ...]
    """Amplitudes of the harmonics in the additive tones of `--parts drawn`."""


INSTRUMENTS: tuple[Instrument, ...] = (
    Instrument("accordion", 21, 23, 55, "chords", (1.0, 0.7, 0.6, 0.5, 0.4, 0.3)),
    Instrument("banjo", 105, 105, 67, "plucks", (1.0, 0.2, 0.6, 0.1, 0.4, 0.1, 0.3)),
    Instrument("drum", PERCUSSION, PERCUSSION, 0, "beats", ()),
    Instrument("flute", 73, 72, 84, "line", (1.0, 0.15)),
    Instrument("piano", 0, 1, 45, "arpeggio", (1.0, 0.5, 0.25, 0.12)),
    Instrument("saxophone", 65, 66, 53, "line", (0.6, 1.0, 0.7, 0.5, 0.3)),
    Instrument("trumpet", 56, 56, 67, "calls", (0.8, 1.0, 1.0, 0.8, 0.6, 0.5, 0.3)),
    Instrument("violin", 40, 40, 74, "sustained", (1.0, 0.8, 0.5, 0.6, 0.3, 0.3, 0.2)),
)
NAMES: tuple[str, ...] = tuple(instrument.name for instrument in INSTRUMENTS)

PHRASES: dict[str, tuple[str, ...]] = {
    "line": (
        "0 - 2 - 4 - 7 - 4 - 2 - 0 - 2 - 4 - 0 -",
        "7 - - 5 4 - - 2 0 - - 2 4 - - 5 7 - - -",
        "0 4 7 - 9 7 4 - 5 2 -1 - 0 4 7 - 12 - 7 -",
        "12 - 11 - 9 - 7 - 9 - 7 - 5 - 4 - 2 - 0 -",
    ),
    "sustained": (
        "0 - - - - 4 - - - - 2 - - - - 7 - - - -",
        "7 - - - 5 - - - 4 - - - 2 - - - 0 - - -",
        "0 - - - - - 2 - 4 - - - - - 5 - 7 - - -",
        "4 - - - - - - - 7 - - - - - - - 2 - - -",
    ),
    "calls": (
        "0 0 0 4 - - 7 - 4 4 4 7 - - 12 - 7 - - -",
        "7 - 7 7 12 - - - 7 - 7 7 4 - - - 0 - 0 -",
        "0 - 4 7 . . 0 - 4 7 . . 12 - 7 4 0 - - -",
        "12 - . 12 - . 7 7 9 - . 7 - . 4 4 0 - - -",
    ),
    "chords": (
        "0+4+7 - 0+4+7 - 5+9+12 - 5+9+12 - 7+11+14 - 7+11+14 - 0+4+7 - 0+4+7 - 0+4+7 - 7+11+14 -",
        "0+4+7 - - 0+4+7 - - 7+11+14 - - 7+11+14 - - 5+9+12 - - 5+9+12 - - 0+4 -",
        "0+7 4+12 0+7 4+12 0+9 5+12 0+9 5+12 2+7 11+14 2+7 11+14 0+7 4+12 0+7 4+12 0+7 4 0 -",
        "0+4+9 - - - 2+5+9 - - - 4+7+11 - - - 0+4+9 - - - 0+4+9 - - -",
    ),
    "plucks": (
        "0 4 7 12 7 4 0 4 7 12 7 4 0 4 7 12 7 4 0 7",
        "0 7 4 7 12 7 4 7 2 7 5 7 11 7 5 7 0 7 4 7",
        "12 7 4 0 9 5 0 5 11 7 2 7 12 7 4 0 4 7 12 7",
        "7 0 7 4 7 0 7 5 9 0 9 5 7 0 7 4 2 0 4 7",
    ),
    "arpeggio": (
        "0 7 12 16 19 16 12 7 5 9 12 17 21 17 12 9 0 7 12 16",
        "0+12 . 7+16 . 12+19 . 7+16 . -2+10 . 5+14 . 10+17 . 5+14 . 0+12 . 7+16 .",
        "24 19 16 12 21 17 12 9 23 19 14 11 24 19 16 12 0+12 - - -",
        "0 12 7 16 0 12 7 16 -3 9 4 12 -3 9 4 12 -5 7 2 11",
    ),
    "beats": (
        "36 . 38 . 36 36 38 . 36 . 38 . 36 36 38 38 36 . 38 .",
        "38 38 . 38 38 . 38 . 38 38 . 38 38 . 38 . 38 38 38 38",
        "36+38 . 45 45 38 . 47 45 36+38 . 45 45 38 . 47 45 36+38 . 45 45",
        "45 45 47 47 38 . 45 45 47 47 38 . 45 47 45 47 38 38 45 47",
    ),
}
"""By manner. The last of each row is heard in unseen clips only."""

KEYS = (-4, -2, 0, 1, 3, 5)
"""Semitones by which training phrases are transposed."""
UNSEEN_KEYS = (-1, 2)


@dataclass(frozen=True)
class Take:
    """One way to play an instrument."""

    program: int
    phrase: str
    key: int
    """Semitones of transposition; drums ignore it."""


def takes(instrument: Instrument, unseen: bool) -> tuple[Take, ...]:
    """All takes of an instrument that training clips, or unseen clips, may use; the two sets are disjoint."""
    phrases = PHRASES[instrument.manner][-1:] if unseen else PHRASES[instrument.manner][:-1]
    program = instrument.unseen_program if unseen else instrument.program
    keys = UNSEEN_KEYS if unseen else KEYS
    return tuple(Take(program, phrase, key) for phrase in phrases for key in keys)


def notes(phrase: str) -> list[tuple[int, int, int]]:
    """A phrase as (first step, steps held, semitone) in order of onset."""
    found: list[tuple[int, int, int]] = []
    sounding = 0
    for step, cell in enumerate(phrase.split()):
        if cell == "-":
            found[-sounding:] = [(first, held + 1, pitch) for first, held, pitch in found[-sounding:]]
        elif cell != ".":
            pitches = [int(pitch) for pitch in cell.split("+")]
            found += [(step, 1, pitch) for pitch in pitches]
            sounding = len(pitches)
    return found
