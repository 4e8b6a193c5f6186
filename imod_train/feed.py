"""What differs between training AVT and training a native model: how samples become batches, and which stages fit.

AVT       tower states are computed once and kept on disk; projectors learn too, by two objectives
native    the model's own processor reads the media each time; adapters alone learn
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from imod_core.avt.states import TowerStates
from imod_core.errors import InputError
from imod_core.hub import model_folder
from imod_core.samples import Sample
from imod_train.answer_head import supervise_answers_only
from imod_train.base import is_avt
from imod_train.calibrate import calibrate
from imod_train.dataset import Collator, SampleDataset
from imod_train.native import NativeCollator, NativeDataset, SampleEncoder
from imod_train.recipe import MediaSettings, Recipe, Stage

Samples = dict[str, list[Sample]]
"""By the name of the stage that trains on them."""


class AvtFeed:
    """Cached tower states for an AVT base; `states` is the cache where the recipe names none."""

    def __init__(self, recipe: Recipe, model: PreTrainedModel, processor: Any, states: Path):
        if recipe.media != MediaSettings():
            raise InputError("The recipe's 'media' is for native models: how an AVT reads media is part of its base.")
        self.recipe, self.processor = recipe, processor
        self.states = TowerStates(model_folder(recipe.base, "base"), processor, Path(recipe.state_cache or states))

    def datasets(self, samples: Samples) -> dict[str, Dataset]:
        """The stages' items; computes what is missing of the states."""
        self.states.prepare(sample for stage in samples.values() for sample in stage)
        rows = {stage.name: stage.questions_per_row for stage in self.recipe.stages}
        return {name: SampleDataset(s, self.processor, self.states, rows[name]) for name, s in samples.items()}

    def collator(self, stage: Stage) -> Callable:
        """What pads the items of a stage."""
        dtype = getattr(torch, self.recipe.precision)
        return Collator(self.processor.tokenizer, stage.objective == "words", dtype)

    def prepare(self, model: PeftModel, samples: Samples) -> None:
        """Whatever the model needs before its first step."""
        calibrate(model, samples[self.recipe.stages[0].name], self.states)


class NativeFeed:
    """Media read by the model's own processor."""

    def __init__(self, recipe: Recipe, model: PreTrainedModel, processor: Any):
        for stage in recipe.stages:
            _check_native(stage, model)
        self.recipe, self.processor = recipe, processor
        self.encoder = SampleEncoder(processor, recipe.media, model)

    def datasets(self, samples: Samples) -> dict[str, Dataset]:
        """The stages' items; each stage's first is made, so that a model that they do not suit is known of."""
        found: dict[str, Dataset] = {name: NativeDataset(s, self.encoder) for name, s in samples.items()}
        for dataset in found.values():
            dataset[0]
        return found

    def collator(self, stage: Stage) -> Callable:
        """What pads the items of a stage."""
        tokenizer = self.processor.tokenizer
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return NativeCollator(padding, getattr(torch, self.recipe.precision))

    def prepare(self, model: PeftModel, samples: Samples) -> None:
        """Whatever the model needs before its first step."""
        supervise_answers_only(model.get_base_model())


Feed = AvtFeed | NativeFeed


def make_feed(recipe: Recipe, model: PreTrainedModel, processor: Any, states: Path) -> Feed:
    """The feed of a base; raises InputError for settings that it does not know."""
    return AvtFeed(recipe, model, processor, states) if is_avt(model) else NativeFeed(recipe, model, processor)


def _check_native(stage: Stage, model: PreTrainedModel) -> None:
    """Refuse what only AVT has."""
    wrong = {
        "objective": (stage.objective, "answers"),
        "train": (list(stage.train), ["adapter"]),
        "questions_per_row": (stage.questions_per_row, 1),
        "state_noise": (stage.state_noise, 0.0),
    }
    for name, (found, allowed) in wrong.items():
        if found != allowed:
            raise InputError(
                f"The recipe's 'stages.{stage.name}.{name}' is {found!r}; it must be {allowed!r} for a "
                f"{model.config.model_type} base: the rest is for projectors of AVT bases."
            )
