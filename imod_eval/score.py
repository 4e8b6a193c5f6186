"""Accuracy of short answers, overall and by question type, and what guessing would have got."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from imod_core.samples import Sample
from imod_eval.prediction import Prediction


def is_right(prediction: Prediction) -> bool:
    """Whether the answers are the same words, case, surrounding blanks and a closing full stop aside."""
    return _plain(prediction.answer) == _plain(prediction.gold)


def accuracy(predictions: Iterable[Prediction]) -> float:
    """Share of right answers; every prediction counts."""
    outcomes = [is_right(p) for p in predictions]
    return sum(outcomes) / len(outcomes)


def accuracy_by(predictions: Iterable[Prediction], attribute: str) -> dict[str, float]:
    """Accuracy of each group of predictions that share an attribute, `type` or `modality`."""
    groups: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        groups[getattr(prediction, attribute)].append(prediction)
    return {kind: accuracy(group) for kind, group in sorted(groups.items())}


def majority(train: Iterable[Sample], test: Iterable[Sample]) -> float:
    """Accuracy on `test` of always giving the most frequent answer that `train` has for the question's template."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for sample in train:
        counts[sample.meta.get("template", "")][sample.answer] += 1
    best = {template: counter.most_common(1)[0][0] for template, counter in counts.items()}
    outcomes = [best.get(sample.meta.get("template", "")) == sample.answer for sample in test]
    return sum(outcomes) / len(outcomes)


def _plain(text: str) -> str:
    return text.strip().lower().removesuffix(".").strip()
