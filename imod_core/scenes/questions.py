"""Questions of the nine MUSIC-AVQA types about a scene.

A template lists every question it could ask of a scene as options; balance.py chooses among them. Each option
carries a cue: what its text and a single modality show, as far as that could tell of the answer. A template
also declines scenes in which picture or sound alone would leave only one answer.

"Audio" is what one hears in mono: the stereo position follows the place, as in life, and no question needs it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations

from imod_core.scenes.composition import PLACES, Scene, Sound
from imod_core.scenes.instruments import NAMES

NUMBERS = ("zero", "one", "two", "three")
YES_NO = ("yes", "no")
FIRST_SECOND = ("first", "second")

Cue = tuple[object, ...]
"""What the text and a single modality show of a question, as far as it could tell of the answer."""


@dataclass(frozen=True)
class Option:
    """One question that could be asked of a scene."""

    text: str
    answer: str
    cue: Cue
    possible: tuple[str, ...]
    """The labels that questions under this cue can have."""
    label: str
    """What is balanced: the answer, or for "the X or the Y" which of the two."""


@dataclass(frozen=True)
class Template:
    """One form of question."""

    id: str
    type: tuple[str, str]
    """Modality and kind, as MUSIC-AVQA writes them."""
    options: Callable[[Scene], Iterator[Option]]


def _option(text: str, answer: str, cue: Cue, possible: tuple[str, ...], label: str = "") -> Option:
    return Option(text, answer, cue, possible, label or answer)


def _yes_no(truth: bool) -> str:
    return "yes" if truth else "no"


# Audio


def hear_count(scene: Scene) -> Iterator[Option]:
    yield _option("How many instruments do you hear?", NUMBERS[len(scene.heard)], _seen(scene), NUMBERS)


def hear_name(scene: Scene) -> Iterator[Option]:
    """Of seen and unseen instruments alike; where only one answer was possible, the picture would give it."""
    silent_seen = set(scene.seen) - set(scene.heard)
    off = set(scene.heard) - set(scene.seen)
    for name in NAMES:
        visible = name in scene.seen
        if (scene.playing and silent_seen) if visible else off:
            cue = ("seen", visible, name)
            yield _option(f"Do you hear a {name}?", _yes_no(name in scene.heard), cue, YES_NO)


def hear_louder(scene: Scene) -> Iterator[Option]:
    for one, two in _pairs(scene, by="level"):
        text = f"Is the {one.instrument} louder than the {two.instrument}?"
        yield _option(text, _yes_no(one.level == "loud"), _pair_cue(one, two), YES_NO)


def hear_which_louder(scene: Scene) -> Iterator[Option]:
    for one, two in _pairs(scene, by="level"):
        first = one.level == "loud"
        text = f"Which is louder, the {one.instrument} or the {two.instrument}?"
        answer = one.instrument if first else two.instrument
        yield _option(text, answer, _pair_cue(one, two), FIRST_SECOND, FIRST_SECOND[not first])


def hear_before(scene: Scene) -> Iterator[Option]:
    for one, two in _pairs(scene, by="entrance"):
        text = f"Does the {one.instrument} start before the {two.instrument}?"
        yield _option(text, _yes_no(one.entrance < two.entrance), _pair_cue(one, two), YES_NO)


# Visual


def see_count(scene: Scene) -> Iterator[Option]:
    text = "How many instruments are in the picture?"
    yield _option(text, NUMBERS[len(scene.seen)], _heard(scene), NUMBERS[1:])


def see_name(scene: Scene) -> Iterator[Option]:
    """Of sounding and silent instruments alike, for the same reason as `hear_name`."""
    off = set(scene.heard) - set(scene.seen)
    silent_seen = set(scene.seen) - set(scene.heard)
    for name in NAMES:
        sounding = name in scene.heard
        if (scene.playing and off) if sounding else silent_seen:
            cue = ("heard", sounding, name)
            yield _option(f"Is there a {name} in the picture?", _yes_no(name in scene.seen), cue, YES_NO)


def see_what(scene: Scene) -> Iterator[Option]:
    for place, name in zip(PLACES, scene.places, strict=True):
        if name:
            yield _option(f"Which instrument is on the {place}?", name, (place,), NAMES)


def see_where(scene: Scene) -> Iterator[Option]:
    if len(scene.seen) > 1:
        for place, name in zip(PLACES, scene.places, strict=True):
            if name:
                yield _option(f"Where is the {name}?", place, (name,), PLACES)


# Audio-visual


def is_playing(scene: Scene) -> Iterator[Option]:
    """Only where some of the seen instruments play and some do not."""
    if 0 < len(scene.playing) < len(scene.seen):
        for place, name in zip(PLACES, scene.places, strict=True):
            if name:
                cue = (place, *_seen(scene), *_heard(scene))
                text = f"Is the {place} instrument playing?"
                yield _option(text, _yes_no(name in scene.heard), cue, YES_NO)


def is_outside(scene: Scene) -> Iterator[Option]:
    """Only where the seen instruments could account for all sounds."""
    if 1 <= len(scene.heard) <= len(scene.seen):
        outside = len(scene.playing) < len(scene.heard)
        cue = (*_seen(scene), *_heard(scene))
        yield _option("Does any sound come from outside the picture?", _yes_no(outside), cue, YES_NO)


def count_playing(scene: Scene) -> Iterator[Option]:
    seen, heard = len(scene.seen), len(scene.heard)
    if seen > 1 and heard > 1:
        text, count = "How many instruments in the picture are playing?", len(scene.playing)
        yield _option(text, NUMBERS[count], (seen, heard), NUMBERS[: min(seen, heard) + 1])


def count_silent(scene: Scene) -> Iterator[Option]:
    seen, heard = len(scene.seen), len(scene.heard)
    if seen > 1 and heard > 1:
        text, count = "How many instruments in the picture are silent?", seen - len(scene.playing)
        yield _option(text, NUMBERS[count], (seen, heard), NUMBERS[max(0, seen - heard) : seen + 1])


def where_loudest(scene: Scene) -> Iterator[Option]:
    loudest = [sound for sound in scene.sounds if sound.level == "loud"]
    yield from _where(scene, loudest, "Where is the loudest instrument?")


def where_playing(scene: Scene) -> Iterator[Option]:
    if len(scene.playing) == 1:
        playing = [scene.sound_of(scene.playing[0])]
        yield from _where(scene, playing, "Where is the playing instrument?")


def which_playing(scene: Scene) -> Iterator[Option]:
    """With sounds from outside too, so that hearing alone leaves two or three names."""
    if len(scene.seen) == 3 and len(scene.playing) == 1 and len(scene.heard) > 1:
        yield _option("Which instrument in the picture is playing?", scene.playing[0], _heard(scene), NAMES)


def which_silent(scene: Scene) -> Iterator[Option]:
    silent = [name for name in scene.seen if name not in scene.heard]
    if len(scene.seen) == 3 and len(silent) == 1:
        yield _option("Which instrument in the picture is silent?", silent[0], _heard(scene), NAMES)


def is_place_louder(scene: Scene) -> Iterator[Option]:
    for one, two in _pairs(scene, by="level"):
        if one.place and two.place:
            text = f"Is the {one.place} instrument louder than the {two.place} one?"
            cue = (one.place, two.place, *_seen(scene), *_heard(scene))
            yield _option(text, _yes_no(one.level == "loud"), cue, YES_NO)


def which_place_louder(scene: Scene) -> Iterator[Option]:
    for one, two in _pairs(scene, by="level"):
        if one.place and two.place:
            first = one.level == "loud"
            text = f"Which is louder, the {one.place} or the {two.place} instrument?"
            answer = one.place if first else two.place
            cue = (one.place, two.place, *_seen(scene), *_heard(scene))
            yield _option(text, answer, cue, FIRST_SECOND, FIRST_SECOND[not first])


def where_first(scene: Scene) -> Iterator[Option]:
    yield from _where(scene, _alone_at(scene, min), "Where is the instrument that starts first?")


def where_last(scene: Scene) -> Iterator[Option]:
    yield from _where(scene, _alone_at(scene, max), "Where is the instrument that starts last?")


def which_place_first(scene: Scene) -> Iterator[Option]:
    """Only where two of three sounds start together: else hearing alone tells whether any do."""
    if sorted(sound.entrance for sound in scene.sounds) not in ([0, 0, 1], [0, 1, 1]):
        return
    for one, two in permutations((sound for sound in scene.sounds if sound.place), 2):
        text = f"Which starts first, the {one.place} or the {two.place} instrument?"
        possible = (*FIRST_SECOND, "simultaneously")
        order = -1 if one.entrance == two.entrance else int(one.entrance > two.entrance)
        answer = (one.place, two.place, "simultaneously")[order]
        cue = (one.place, two.place, *_seen(scene))
        yield _option(text, str(answer), cue, possible, possible[order])


# What a modality shows


def _seen(scene: Scene) -> tuple[object, ...]:
    return ("seen", len(scene.seen))


def _heard(scene: Scene) -> tuple[object, ...]:
    return ("heard", len(scene.heard))


def _pair_cue(one: Sound, two: Sound) -> tuple[object, ...]:
    return ("seen", one.place is not None, two.place is not None)


def _pairs(scene: Scene, by: str) -> Iterator[tuple[Sound, Sound]]:
    """Ordered pairs of sounds that differ in `by`."""
    for one, two in permutations(scene.sounds, 2):
        if getattr(one, by) != getattr(two, by):
            yield one, two


def _alone_at(scene: Scene, end: Callable[[list[int]], int]) -> list[Sound]:
    """The sounds that come in first or last; nobody does where all come in together."""
    entrances = [sound.entrance for sound in scene.sounds]
    if len(set(entrances)) < 2:
        return []
    return [sound for sound in scene.sounds if sound.entrance == end(entrances)]


def _where(scene: Scene, candidates: list[Sound], text: str) -> Iterator[Option]:
    """Asked of a full picture, about the one sound in question, if its instrument is seen."""
    if len(scene.seen) == 3 and len(candidates) == 1 and candidates[0].place:
        yield _option(text, candidates[0].place, _heard(scene), PLACES)


TEMPLATES: tuple[Template, ...] = tuple(
    Template(function.__name__.replace("_", "-"), (modality, kind), function)
    for (modality, kind), functions in {
        ("Audio", "Counting"): (hear_count, hear_name),
        ("Audio", "Comparative"): (hear_louder, hear_which_louder, hear_before),
        ("Visual", "Counting"): (see_count, see_name),
        ("Visual", "Location"): (see_what, see_where),
        ("Audio-Visual", "Existential"): (is_playing, is_outside),
        ("Audio-Visual", "Counting"): (count_playing, count_silent),
        ("Audio-Visual", "Location"): (where_loudest, where_playing, which_playing, which_silent),
        ("Audio-Visual", "Comparative"): (is_place_louder, which_place_louder),
        ("Audio-Visual", "Temporal"): (where_first, where_last, which_place_first),
    }.items()
    for function in functions
)
TYPES: tuple[tuple[str, str], ...] = tuple(dict.fromkeys(template.type for template in TEMPLATES))
