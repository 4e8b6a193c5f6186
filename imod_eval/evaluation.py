"""One evaluation: questions, the predictions under each condition, their scores."""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from imod_core.artifacts import read_json, write_json
from imod_core.console import track
from imod_core.errors import InputError
from imod_core.samples import Sample
from imod_eval.journal import Journal, digest_of_files, digest_of_questions
from imod_eval.prediction import CONDITIONS, Prediction, predict_over_http, write_predictions
from imod_eval.score import accuracy, accuracy_by, majority


class Evaluation:
    """Predictions on one set of questions.

    Args:
        questions: samples with their true answers.
        training: samples from which the majority answer of each template is taken; may be empty.
        out: folder for predictions and scores, where answers are kept as they come; without one nothing is written.
        name: of the files of predictions.
    """

    def __init__(self, questions: list[Sample], training: list[Sample], out: Path | None = None, name: str = "samples"):
        self.questions, self.training, self.out, self.name = questions, training, out, name
        self.predictions: dict[str, list[Prediction]] = {}
        self.subject: dict[str, str] = {"questions": digest_of_questions(questions)}
        """What was asked which questions; answers of another are never mixed with these."""
        self._journals: list[Journal] = []

    def ask_server(self, url: str) -> None:
        """Answer over HTTP."""
        from imod_serve.client import Client

        client = Client(url)
        self.subject |= {"url": client.url, "model": client.model}

        def predict(done: Collection[str]) -> Iterator[Prediction]:
            left = [sample for sample in self.questions if sample.id not in done]
            return predict_over_http(client, track(left, f"Questions to {url}"))

        self._ask("as_is", predict)

    def ask_folder(self, model: Path, states: Path | None, dtype: str, conditions: Sequence[str]) -> None:
        """Answer with a model folder in this process, under each condition; AVT reads its tower states in `states`.

        Raises:
            InputError: questions that the model or a condition cannot take, before any is asked.
        """
        from imod_eval.conditions import shown

        for condition in conditions:
            shown(condition, self.questions)
        files = sorted(path for path in model.iterdir() if path.is_file())
        self.subject |= {"model": str(model.resolve()), "files": digest_of_files(files), "dtype": dtype}
        predictor: Any
        if states:
            from imod_eval.predictor import Predictor

            predictor = Predictor(model, states, dtype)
        else:
            from imod_eval.native import NativePredictor

            predictor = NativePredictor(model, dtype)
        for condition in conditions:
            self._ask(condition, partial(predictor.predict, self.questions, condition))

    def _ask(self, condition: str, predict: Callable[[Collection[str]], Iterator[Prediction]]) -> None:
        asked = {**self.subject, "condition": condition}
        with Journal(self.out, f"{self.name}.{condition}", asked) as journal:
            for prediction in predict(set(journal.done)):
                journal.add(prediction)
        self._journals.append(journal)
        self.predictions[condition] = [journal.done[sample.id] for sample in self.questions]

    def scores(self) -> dict[str, Any]:
        """`accuracy` by condition, `by_type` and `by_modality` below it, `majority`, `answered`, `subject`."""
        found = self.predictions
        return {
            "subject": self.subject,
            "questions": len(self.questions),
            "answered": sum(bool(p.answer) for p in next(iter(found.values()))),
            "accuracy": {condition: accuracy(p) for condition, p in found.items()},
            "by_type": {condition: accuracy_by(p, "type") for condition, p in found.items()},
            "by_modality": {condition: accuracy_by(p, "modality") for condition, p in found.items()},
            "majority": majority(self.training, self.questions) if self.training else None,
        }

    def write(self) -> None:
        """`NAME.CONDITION.jsonl` for each condition, then `scores.json`; answers of another subject go."""
        if self.out is None:
            return
        scores = self.out / "scores.json"
        if _subject(scores) != self.subject:
            for condition in CONDITIONS:
                (self.out / f"{self.name}.{condition}.jsonl").unlink(missing_ok=True)
        scores.unlink(missing_ok=True)
        for condition, predictions in self.predictions.items():
            write_predictions(self.out / f"{self.name}.{condition}.jsonl", predictions)
        write_json(scores, self.scores())
        for journal in self._journals:
            journal.remove()

    def print(self, name: str) -> None:
        """A table of accuracies, question types down and conditions across."""
        scores = self.scores()
        table = Table(
            "question type", *self.predictions, title=f"Accuracy on {len(self.questions)} questions of {escape(name)}"
        )
        for kind in scores["by_type"][next(iter(self.predictions))]:
            table.add_row(escape(kind) or "-", *(f"{by_type[kind]:.3f}" for by_type in scores["by_type"].values()))
        table.add_section()
        table.add_row("all", *(f"{value:.3f}" for value in scores["accuracy"].values()))
        if scores["majority"] is not None:
            table.add_row("the majority's answer", *(f"{scores['majority']:.3f}" for _ in self.predictions))
        Console().print(table)


def _subject(scores: Path) -> Any:
    """Whose scores lie there; None where that cannot be read."""
    try:
        return read_json(scores).get("subject")
    except (InputError, OSError):
        return None
