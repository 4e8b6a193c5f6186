"""Greedy answers of a model folder on samples, in batches, from cached tower states."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import imod_core.avt  # noqa: F401  (registers AVT with the Auto classes)
from imod_core.avt.processing_avt import AvtProcessor
from imod_core.avt.prompts import check_texts, encode
from imod_core.avt.states import KINDS, TowerStates
from imod_core.console import track
from imod_core.samples import Sample
from imod_eval.conditions import States, shown, states_under
from imod_eval.prediction import MAX_NEW_TOKENS, Prediction

BATCH = 32


class Predictor:
    """A model folder ready to answer.

    Args:
        folder: a merged AVT folder; `NativePredictor` takes others.
        cache: folder of tower states.
        dtype: precision of the weights and products.
    """

    def __init__(self, folder: Path, cache: Path, dtype: str = "bfloat16"):
        self.processor: AvtProcessor = AutoProcessor.from_pretrained(folder)
        self.states = TowerStates(Path(folder), self.processor, cache)
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def predict(
        self, samples: list[Sample], condition: str = "as_is", done: Collection[str] = ()
    ) -> Iterator[Prediction]:
        """The greedy answer to the last question of every sample that is not `done`, in the samples' order.

        A batch with one such sample is answered whole, so that answers never depend on where an earlier run stopped.

        Raises:
            InputError: a sample that cannot be read, before any is answered.
        """
        check_texts(self.processor, samples)
        self.states.prepare(samples)
        pairs = list(zip(samples, states_under(condition, shown(condition, samples), self.states), strict=True))
        batches = [pairs[i : i + BATCH] for i in range(0, len(pairs), BATCH)]
        left = [batch for batch in batches if any(sample.id not in done for sample, _ in batch)]
        for batch in track(left, f"Answers, media {condition}, in batches"):
            yield from self._answer(batch)

    @torch.inference_mode()
    def _answer(self, batch: list[tuple[Sample, States]]) -> Iterator[Prediction]:
        inputs = self._inputs(batch)
        output = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        texts = self.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for (sample, _), text in zip(batch, texts, strict=True):
            yield Prediction.of(sample, text)

    def _inputs(self, batch: list[tuple[Sample, States]]) -> dict[str, torch.Tensor]:
        """Prompts padded on the left, and the states of each kind in the order of their placeholders."""
        tokenizer = self.processor.tokenizer
        prompts = [
            encode(self.processor, sample, [len(s) for s in states["audio"]], with_answers=False).input_ids.tolist()
            for sample, states in batch
        ]
        inputs = dict(tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt"))
        for kind in KINDS:
            found = [state for _, states in batch for state in states[kind]]
            if found:
                inputs[f"{kind}_states"] = torch.cat(found).to(self.model.dtype).unsqueeze(0)
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
