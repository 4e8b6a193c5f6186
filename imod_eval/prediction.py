"""Predictions: what a model answered to a question whose true answer is known, and their files."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imod_core.artifacts import write_text
from imod_core.samples import Sample

if TYPE_CHECKING:
    from imod_serve.client import Client

MAX_NEW_TOKENS = 12
CONDITIONS = ("as_is", "blanked", "picture_only", "sound_only", "swapped")
"""What is done to the media: nothing; all blanked; sound or picture blanked; those of another scene put in place."""


@dataclass(frozen=True)
class Prediction:
    """One answer of a model."""

    id: str
    type: str
    """Of the question, as `Audio-Visual Counting`."""
    question: str
    gold: str
    answer: str

    @property
    def modality(self) -> str:
        """The first word of the type: Audio, Visual or Audio-Visual."""
        return self.type.partition(" ")[0]

    @classmethod
    def of(cls, sample: Sample, answer: str) -> "Prediction":
        """The prediction `answer` on a sample."""
        kind = sample.meta.get("type", "")
        kind = kind if isinstance(kind, str) else " ".join(map(str, kind))
        return cls(sample.id, kind, sample.question, sample.answer or "", answer.strip())


def predict_over_http(client: "Client", samples: Iterable[Sample]) -> Iterator[Prediction]:
    """Greedy answers of a server."""
    for sample in samples:
        yield Prediction.of(sample, client.ask_sample(sample, max_tokens=MAX_NEW_TOKENS).text)


def write_predictions(path: Path, predictions: list[Prediction]) -> None:
    """One JSON object a line, whole or not at all."""
    write_text(path, "".join(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in predictions))


def read_predictions(path: Path) -> list[Prediction]:
    """What `write_predictions` wrote."""
    return [Prediction(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
