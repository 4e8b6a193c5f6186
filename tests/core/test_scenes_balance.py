"""Whether the embedded questions can be guessed: by text, by picture facts alone, by sound facts alone.

The guessers are the strongest that facts allow: majority answers under many keys, from the whole picture or
sound down to its counts, and naive Bayes over single facts; fitted on one split, scored on another.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace

import numpy as np
import pytest

from imod_core.scenes.balance import Ledger, Question
from imod_core.scenes.composition import PLACES, Scene, sample_scene, stream
from imod_core.scenes.plan import ScenesSettings, plan
from imod_core.scenes.questions import TEMPLATES, TYPES

SETTINGS = ScenesSettings(
    clips=3000, val_clips=1, test_clips=1200, unseen_clips=1, train_questions=3, seed=11, parts="drawn"
)
CHANCE = {
    ("Audio-Visual", "Existential"): 1 / 2,
    ("Audio-Visual", "Counting"): 1 / 3,
    ("Audio-Visual", "Location"): 1 / 3,
    ("Audio-Visual", "Comparative"): 1 / 2,
    ("Audio-Visual", "Temporal"): 1 / 3,
}
"""Of a guess that knows the template and what its answers may be."""
MARGIN = 0.07
"""Over chance: three standard errors of 400 questions, for the best of several guessers."""

Asked = tuple[Scene, Question]
Key = Callable[[Scene, Question], Hashable]


def shape(scene: Scene) -> Hashable:
    return tuple(sorted((sound.level, sound.entrance) for sound in scene.sounds))


def sounds(scene: Scene) -> Hashable:
    return tuple(sorted((s.instrument, s.level, s.entrance) for s in scene.sounds))


TEXT_KEYS: tuple[Key, ...] = (lambda s, q: (), lambda s, q: q.text)
PICTURE_KEYS: tuple[Key, ...] = (
    lambda s, q: (q.text, s.places),
    lambda s, q: (q.text, tuple(map(bool, s.places))),
    lambda s, q: (q.text, tuple(sorted(s.seen))),
    lambda s, q: (q.text, len(s.seen)),
    lambda s, q: len(s.seen),
)
SOUND_KEYS: tuple[Key, ...] = (
    lambda s, q: (q.text, sounds(s)),
    lambda s, q: (q.text, shape(s)),
    lambda s, q: (q.text, tuple(sorted(s.heard))),
    lambda s, q: (q.text, len(s.heard)),
    lambda s, q: shape(s),
    lambda s, q: len(s.heard),
)
BOTH_KEYS: tuple[Key, ...] = (
    lambda s, q: (q.text, len(s.seen), len(s.heard)),
    lambda s, q: (q.text, len(s.seen), shape(s)),
    lambda s, q: (q.text, tuple((n in s.heard) if n else None for n in s.places)),
)


def picture_facts(scene: Scene) -> list[Hashable]:
    return [*zip(PLACES, scene.places, strict=True), ("seen", len(scene.seen)), *scene.seen]


def sound_facts(scene: Scene) -> list[Hashable]:
    heard = [(s.instrument, getattr(s, fact)) for s in scene.sounds for fact in ("level", "entrance")]
    return [*heard, *scene.heard, ("heard", len(scene.heard)), shape(scene)]


def hits_by_majority(fitted: list[Asked], scored: list[Asked], key: Key) -> list[bool]:
    """Whether the commonest answer under (template, key) is right, backing off to the template's."""
    table: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for scene, question in fitted:
        table[question.template.id, key(scene, question)][question.answer] += 1
        table[question.template.id][question.answer] += 1
    found = [table.get((q.template.id, key(s, q))) or table[q.template.id] for s, q in scored]
    return [counts.most_common(1)[0][0] == q.answer for counts, (_, q) in zip(found, scored, strict=True)]


def hits_by_bayes(fitted: list[Asked], scored: list[Asked], facts: Callable[[Scene], Iterable[Hashable]]) -> list[bool]:
    """Whether naive Bayes over the facts, each joined with the words asked, is right."""
    counts: Counter[Hashable] = Counter()
    answers: dict[str, set[str]] = defaultdict(set)
    for scene, question in fitted:
        answers[question.template.id].add(question.answer)
        for fact in (None, *facts(scene)):
            counts[question.text, question.answer, fact] += 1

    def score(question: Question, answer: str, scene: Scene) -> float:
        total = counts[question.text, answer, None]
        shares = [(counts[question.text, answer, fact] + 0.5) / (total + 1) for fact in facts(scene)]
        return float(np.log(total + 0.5) + np.log(shares).sum())

    guesses = [max(sorted(answers[q.template.id]), key=lambda a: score(q, a, s)) for s, q in scored]
    return [guess == q.answer for guess, (_, q) in zip(guesses, scored, strict=True)]


def by_type(hits: list[bool], scored: list[Asked]) -> dict[tuple[str, str], float]:
    groups: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for hit, (_, question) in zip(hits, scored, strict=True):
        groups[question.template.type].append(hit)
    return {kind: float(np.mean(groups[kind])) for kind in TYPES if kind in groups}


def best_guess(
    fitted: list[Asked],
    scored: list[Asked],
    keys: Iterable[Key],
    facts: Callable[[Scene], Iterable[Hashable]] | None = None,
) -> dict[tuple[str, str], float]:
    """By type, the accuracy of the best of the guessers."""
    tables = [by_type(hits_by_majority(fitted, scored, key), scored) for key in keys]
    if facts:
        tables.append(by_type(hits_by_bayes(fitted, scored, facts), scored))
    return {kind: max(table[kind] for table in tables) for kind in tables[0]}


@pytest.fixture(scope="module")
def planned() -> dict[str, list[Asked]]:
    asked: dict[str, list[Asked]] = defaultdict(list)
    for clip in plan(SETTINGS):
        asked[clip.split] += [(clip.scene, question) for question in clip.questions]
    return asked


def test_types_are_asked_evenly_and_every_template_is_used(planned: dict[str, list[Asked]]) -> None:
    kinds = Counter(question.template.type for _, question in planned["train"])
    assert min(kinds.values()) > 0.8 * max(kinds.values())
    used = Counter(question.template.id for _, question in planned["train"])
    assert set(used) == {template.id for template in TEMPLATES}
    assert min(used.values()) > 100


def test_audio_visual_questions_cannot_be_guessed_from_one_modality(planned: dict[str, list[Asked]]) -> None:
    train, test = planned["train"], planned["test"]
    guesses = {
        "text": best_guess(train, test, TEXT_KEYS),
        "picture": best_guess(train, test, PICTURE_KEYS, picture_facts),
        "sound": best_guess(train, test, SOUND_KEYS, sound_facts),
    }
    for modality, table in guesses.items():
        for kind, chance in CHANCE.items():
            assert table[kind] < chance + MARGIN, (modality, kind, table[kind])


def test_many_questions_a_training_clip_teach_no_shortcut_for_the_test() -> None:
    """A clip that must take six questions cannot have its pick of them; the balance suffers a little, not much."""
    settings = replace(SETTINGS, train_questions=ScenesSettings().train_questions)
    clips = plan(settings)
    asked = {s: [(c.scene, q) for c in clips if c.split == s for q in c.questions] for s in ("train", "test")}
    for keys, facts in ((PICTURE_KEYS, picture_facts), (SOUND_KEYS, sound_facts)):
        table = best_guess(asked["train"], asked["test"], keys, facts)
        for kind, chance in CHANCE.items():
            assert table[kind] < chance + MARGIN + 0.03, (kind, table[kind])


def test_one_modality_does_not_answer_the_questions_of_the_other(planned: dict[str, list[Asked]]) -> None:
    train, test = planned["train"], planned["test"]
    from_picture = best_guess(train, test, PICTURE_KEYS, picture_facts)
    from_sound = best_guess(train, test, SOUND_KEYS, sound_facts)
    assert from_picture["Audio", "Counting"] < 0.5 + MARGIN
    assert from_picture["Audio", "Comparative"] < 0.5 + MARGIN
    assert from_sound["Visual", "Counting"] < 0.5 + MARGIN
    assert from_sound["Visual", "Location"] < 0.5


def test_the_guessers_find_what_their_modality_does_show(planned: dict[str, list[Asked]]) -> None:
    train, test = planned["train"], planned["test"]
    assert best_guess(train, test, PICTURE_KEYS, picture_facts)["Visual", "Counting"] > 0.8
    assert best_guess(train, test, SOUND_KEYS, sound_facts)["Audio", "Counting"] > 0.8
    both = best_guess(train, test, BOTH_KEYS)
    assert both["Audio-Visual", "Counting"] > 0.9
    assert both["Audio-Visual", "Existential"] > 0.9


def test_without_the_ledger_the_guessers_would_win() -> None:
    """The same scenes, any question that is possible: the shortcut the ledger removes is there and is found."""

    class Careless(Ledger):
        def _admits(self, template, option) -> bool:
            return True

    rng = stream(3, "careless")
    ledger = Careless(quota=10**9)
    asked = [
        (scene, question)
        for index in range(3000)
        for scene in [sample_scene(rng, str(index), ["drawn-filled"], False)]
        for question in ledger.choose(scene, 3, rng)
    ]
    careless = best_guess(asked[:6000], asked[6000:], SOUND_KEYS, sound_facts)
    assert careless["Audio-Visual", "Existential"] > CHANCE["Audio-Visual", "Existential"] + MARGIN
