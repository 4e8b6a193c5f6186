"""Greedy answers of a native model's folder on samples, one by one, by its own processor and chat template."""

from collections.abc import Collection, Iterator
from pathlib import Path

from imod_core.console import track
from imod_core.samples import Sample
from imod_eval.conditions import BLANKED_KINDS, shown
from imod_eval.prediction import MAX_NEW_TOKENS, Prediction
from imod_serve.local import LocalModel
from imod_serve.messages import asked


class NativePredictor:
    """A model folder of any family ready to answer.

    Args:
        folder: a merged model, or a base.
        dtype: precision of the weights and products.
    """

    def __init__(self, folder: Path, dtype: str = "bfloat16"):
        self.model = LocalModel(folder, dtype)

    def predict(
        self, samples: list[Sample], condition: str = "as_is", done: Collection[str] = ()
    ) -> Iterator[Prediction]:
        """The greedy answer to the last question of every sample that is not `done`, in the samples' order.

        Raises:
            InputError: a sample that the model cannot take, before any is answered.
        """
        for sample in samples:
            self.model.check(*asked(sample), f"The sample '{sample.id}'")
        pairs = [(s, other) for s, other in zip(samples, shown(condition, samples), strict=True) if s.id not in done]
        for sample, other in track(pairs, f"Answers, media {condition}"):
            answer = self.model.ask_sample(other, blanked=BLANKED_KINDS[condition], max_tokens=MAX_NEW_TOKENS)
            yield Prediction.of(sample, answer.text)
