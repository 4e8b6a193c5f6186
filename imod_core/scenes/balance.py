"""Which questions are asked: chosen so that one modality alone cannot answer.

The ledger admits an option only while its answer is not ahead of the other possible answers *under the same
cue* (how many are seen, how many are heard, whether the instrument asked about is seen or heard). With
instruments and places exchangeable, what is left for a guess is the chance of the template.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from imod_core.scenes.composition import Scene
from imod_core.scenes.questions import TEMPLATES, Option, Template

SLACK = 1
"""How many questions an answer may be ahead of the rarest possible answer under the same cue."""


@dataclass(frozen=True)
class Question:
    """A question that was chosen for a scene."""

    template: Template
    text: str
    answer: str


class Ledger:
    """What has been asked so far in a split, and what may therefore be asked next."""

    def __init__(self, quota: int):
        self.quota = quota
        """Most questions of one type."""
        self.types: Counter[tuple[str, str]] = Counter()
        self.templates: Counter[str] = Counter()
        self.labels: Counter[tuple[object, ...]] = Counter()

    def choose(self, scene: Scene, count: int, rng: np.random.Generator) -> list[Question]:
        """`count` questions of different templates, types asked least first; an empty list if too few fit."""
        picked: list[tuple[Template, Option]] = []
        offers = [(template, self._admitted(template, scene)) for template in TEMPLATES]
        waiting = [(template, options) for template, options in offers if options]
        while waiting and len(picked) < count:
            taken = Counter(template.type for template, _ in picked)
            ranks = [(taken[t.type], self.types[t.type], self.templates[t.id], rng.random()) for t, _ in waiting]
            template, options = waiting.pop(ranks.index(min(ranks)))
            picked.append((template, options[int(rng.integers(len(options)))]))
        if len(picked) < count:
            return []
        for template, option in picked:
            self._record(template, option)
        return [Question(template, option.text, option.answer) for template, option in picked]

    def _admitted(self, template: Template, scene: Scene) -> list[Option]:
        if self.types[template.type] >= self.quota:
            return []
        return [option for option in template.options(scene) if self._admits(template, option)]

    def _admits(self, template: Template, option: Option) -> bool:
        rarest = min(self.labels[template.id, option.cue, label] for label in option.possible)
        return self.labels[template.id, option.cue, option.label] < rarest + SLACK

    def _record(self, template: Template, option: Option) -> None:
        self.types[template.type] += 1
        self.templates[template.id] += 1
        self.labels[template.id, option.cue, option.label] += 1
