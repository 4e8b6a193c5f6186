"""What a set will hold: its settings, and for every split the scenes and their questions, before rendering."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from imod_core.errors import InputError
from imod_core.scenes.balance import Ledger, Question
from imod_core.scenes.composition import Scene, sample_scene, stream
from imod_core.scenes.pictures import styles
from imod_core.scenes.questions import TYPES

SPLITS = ("test", "test_unseen_style", "val", "train")
"""In the order in which they claim compositions."""
UNSEEN = "test_unseen_style"
QUOTA_MARGIN = 1.02
"""By how much a type of question may exceed its even share."""
PATIENCE = 400
"""Scenes in a row that no question fits before the quotas are widened."""


@dataclass(frozen=True)
class ScenesSettings:
    """What determines every byte of a set."""

    clips: int = 1500
    """Of the training split."""
    val_clips: int = 40
    test_clips: int = 190
    unseen_clips: int = 190
    questions: int = 3
    """A clip of the splits for evaluation."""
    train_questions: int = 6
    """A training clip: its picture and sound are then read once for all of them."""
    seed: int = 0
    parts: str = "real"
    """`real`: drawings and instruments from package registries; `drawn`: shapes and tones made here."""

    def __post_init__(self) -> None:
        lowest = {
            "clips": 1,
            "val_clips": 1,
            "test_clips": 1,
            "unseen_clips": 1,
            "questions": 1,
            "train_questions": 1,
            "seed": 0,
        }
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}: expected {least} or more.")
        if max(self.questions, self.train_questions) > len(TYPES):
            most = max(self.questions, self.train_questions)
            raise InputError(f"questions is {most}: expected at most {len(TYPES)} a clip.")
        if self.parts not in ("real", "drawn"):
            raise InputError(f"parts is {self.parts!r}: allowed are real and drawn.")

    def clips_of(self, split: str) -> int:
        return {
            "train": self.clips, "val": self.val_clips, "test": self.test_clips, UNSEEN: self.unseen_clips,
        }[split]  # fmt: skip

    def questions_of(self, split: str) -> int:
        return self.train_questions if split == "train" else self.questions


@dataclass(frozen=True)
class Clip:
    """A scene and what is asked about it."""

    split: str
    scene: Scene
    questions: tuple[Question, ...]


def plan(settings: ScenesSettings) -> list[Clip]:
    """All clips with their questions, before anything is rendered."""
    clips: list[Clip] = []
    taken: set[tuple[Any, ...]] = set()
    for split in SPLITS:
        planned = list(_plan_split(split, settings, taken))
        taken |= {clip.scene.composition for clip in planned}
        clips += planned
    return clips


def _plan_split(split: str, settings: ScenesSettings, taken: set[tuple[Any, ...]]) -> Iterator[Clip]:
    rng = stream(settings.seed, "plan", split)
    wanted, unseen, asked = settings.clips_of(split), split == UNSEEN, settings.questions_of(split)
    training_styles, unseen_style = styles(settings.parts)
    pool = (unseen_style,) if unseen else training_styles
    ledger = Ledger(quota=math.ceil(wanted * asked / len(TYPES) * QUOTA_MARGIN))
    index = failures = 0
    while index < wanted:
        scene = sample_scene(rng, f"{split.replace('_', '-')}-{index:05d}", pool, unseen)
        fits = scene.composition not in taken
        questions = ledger.choose(scene, asked, rng) if fits else []
        if questions:
            yield Clip(split, scene, tuple(questions))
            index, failures = index + 1, 0
        elif (failures := failures + 1) >= PATIENCE:
            ledger.quota, failures = ledger.quota + max(1, ledger.quota // 20), 0
