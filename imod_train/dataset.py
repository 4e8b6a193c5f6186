"""Samples for AVT as the trainer eats them: token ids, labels and cached tower states, padded into batches."""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from imod_core.avt.processing_avt import AvtProcessor
from imod_core.avt.prompts import IGNORED_LABEL, check_texts, encode
from imod_core.avt.states import KINDS, TowerStates
from imod_core.samples import Sample
from imod_train.branches import PADDING, branch_mask, group_by_media, join
from imod_train.items import KeptItems, check_answers
from imod_train.words import word_table


class SampleDataset(KeptItems):
    """One item a row: `input_ids`, `labels`, `positions`, `branches` (L,), and the states of its media by kind.

    A row is a sample, or up to `questions_per_row` samples about the same media.
    """

    def __init__(
        self, samples: Sequence[Sample], processor: AvtProcessor, states: TowerStates, questions_per_row: int = 1
    ):
        check_answers(samples)
        check_texts(processor, samples)
        super().__init__(group_by_media(samples, questions_per_row))
        self.processor, self.states = processor, states

    def _make(self, index: int) -> dict:
        samples = self.rows[index]
        states = self.states.of(samples[0])
        audio_tokens = [len(state) for state in states["audio"]]
        row = join([encode(self.processor, sample, audio_tokens) for sample in samples])
        return {**row, "states": states, "answer": samples[0].answer}


class Collator:
    """Pads items to a batch, right side, and joins the states of each kind in the order of their placeholders.

    `words` adds what the objective of that name compares, see `imod_train.words.word_table`. Rows of several
    branches get position ids and a mask in `dtype`, the model's own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, words: bool = False, dtype: torch.dtype = torch.float32):
        self.tokenizer, self.words, self.dtype = tokenizer, words, dtype

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask`, `labels` (B, L) and, for each kind present, `{kind}_states (1, tokens, C)`.

        With branches also `position_ids` (B, L), and the mask is (B, 1, L, L).
        """
        ids = pad_sequence([i["input_ids"] for i in items], batch_first=True, padding_value=self.tokenizer.pad_token_id)
        labels = pad_sequence([i["labels"] for i in items], batch_first=True, padding_value=IGNORED_LABEL)
        lengths = torch.tensor([len(i["input_ids"]) for i in items])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if any(int(item["branches"][-1]) > 1 for item in items):
            branches = pad_sequence([i["branches"] for i in items], batch_first=True, padding_value=PADDING)
            batch["attention_mask"] = branch_mask(branches, self.dtype)
            # padding stands at 1: only the first token of a row may stand at 0, where packed sequences begin
            batch["position_ids"] = pad_sequence([i["positions"] for i in items], batch_first=True, padding_value=1)
        for kind in KINDS:
            states = [state for item in items for state in item["states"][kind]]
            if states:
                batch[f"{kind}_states"] = torch.cat(states).float().unsqueeze(0)
        return batch | word_table([item["answer"] for item in items], self.tokenizer) if self.words else batch


def add_noise(batch: dict[str, torch.Tensor], noise: float) -> None:
    """Add Gaussian noise of `noise` standard deviations of each channel to the states of a batch, in place.

    Drawn in the training step, not while collating: loaders collate ahead, and a resumed run must draw the same.
    """
    for kind in KINDS:
        name = f"{kind}_states"
        if noise and name in batch:
            states = batch[name]
            deviation = states.flatten(0, 1).std(0)
            batch[name] = states + noise * deviation * torch.randn_like(states)
