"""One evaluation: questions, the predictions under each condition, their scores."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from imod_core.artifacts import write_json
from imod_core.console import track
from imod_core.samples import Sample
from imod_eval.prediction import Prediction, predict_over_http, write_predictions
from imod_eval.score import accuracy, accuracy_by, majority


class Evaluation:
    """Predictions on one set of questions.

    Args:
        questions: samples with their true answers.
        training: samples from which the majority answer of each template is taken; may be empty.
    """

    def __init__(self, questions: list[Sample], training: list[Sample]):
        self.questions, self.training = questions, training
        self.predictions: dict[str, list[Prediction]] = {}

    def ask_server(self, url: str) -> None:
        """Answer over HTTP."""
        questions = track(self.questions, f"Questions to {url}")
        self.predictions["as_is"] = list(predict_over_http(url, questions))

    def ask_folder(self, model: Path, states: Path, dtype: str, conditions: Iterable[str]) -> None:
        """Answer with a model folder in this process, under each condition."""
        from imod_eval.predictor import Predictor

        predictor = Predictor(model, states, dtype)
        for condition in conditions:
            self.predictions[condition] = predictor.predict(self.questions, condition)

    def scores(self) -> dict[str, Any]:
        """`accuracy` by condition, `by_type` and `by_modality` below it, `majority`, `answered`."""
        found = self.predictions
        return {
            "questions": len(self.questions),
            "answered": sum(bool(p.answer) for p in next(iter(found.values()))),
            "accuracy": {condition: accuracy(p) for condition, p in found.items()},
            "by_type": {condition: accuracy_by(p, "type") for condition, p in found.items()},
            "by_modality": {condition: accuracy_by(p, "modality") for condition, p in found.items()},
            "majority": majority(self.training, self.questions) if self.training else None,
        }

    def write(self, folder: Path, name: str) -> None:
        """`NAME.CONDITION.jsonl` for each condition, then `scores.json`."""
        for condition, predictions in self.predictions.items():
            write_predictions(folder / f"{name}.{condition}.jsonl", predictions)
        write_json(folder / "scores.json", self.scores())

    def print(self, name: str) -> None:
        """A table of accuracies, question types down and conditions across."""
        scores = self.scores()
        table = Table(
            "question type", *self.predictions, title=f"Accuracy on {len(self.questions)} questions of {name}"
        )
        for kind in scores["by_type"][next(iter(self.predictions))]:
            table.add_row(kind or "-", *(f"{by_type[kind]:.3f}" for by_type in scores["by_type"].values()))
        table.add_section()
        table.add_row("all", *(f"{value:.3f}" for value in scores["accuracy"].values()))
        Console().print(table)
