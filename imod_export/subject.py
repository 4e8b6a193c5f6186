"""A model under comparison: loaded with its processor, asked probes, one at a time in memory."""

import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

import imod_core.avt  # noqa: F401  (registers AVT with the Auto classes)
from imod_core import modality
from imod_core.artifacts import read_json
from imod_core.avt.prompts import conversation
from imod_core.console import console
from imod_core.errors import InputError, first_line
from imod_core.families.load import mend, trained_class
from imod_core.media import SAMPLE_RATE
from imod_core.sampling import FrameSampling, video_arguments
from imod_export.probes import FRAMES, Probe

NEW_TOKENS = 12
"""Greedy tokens a probe."""
WEAVE = "use_audio_in_video"
"""The option of Qwen omni's processors and models that weaves a video's own sound between its frames."""
POSITIONS = 32
"""Logits are compared at this many last positions: the end of the question, and the answer teacher-forced."""


@dataclass(frozen=True)
class Prompt:
    """A probe as the model's forward takes it."""

    inputs: dict[str, torch.Tensor]
    """`input_ids (1, L)` among them."""
    text: str
    """As the chat template renders it, placeholders not yet expanded."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the forward that are no tensors."""

    @property
    def ids(self) -> list[int]:
        return self.inputs["input_ids"][0].tolist()


class Subject:
    """A model with its processor.

    Args:
        model: any transformers or PEFT model that generates.
        processor: of the folder it came from.
    """

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model.eval(), processor

    def prompt(self, probe: Probe) -> Prompt:
        """Template, tokens and media tensors of a probe."""
        plain = [{"role": m.role, "content": m.content} for m in probe.messages]
        turns = conversation(probe.messages) if hasattr(self.processor, "tokenizer") else plain
        text = self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        names = {"image": "images", "audio": "audio", "video": "videos"}
        media = {names[kind]: items for kind, items in probe.media.items() if items}
        if "videos" in media:
            media |= video_arguments(self.processor, media["videos"])
        options = {WEAVE: True} if probe.woven else {}
        batch = self.processor(text=[text], return_tensors="pt", **media, **options)
        device, dtype = self.model.device, self.model.dtype
        tensors = {k: v.to(device) for k, v in batch.items() if isinstance(v, torch.Tensor)}
        inputs = {k: v.to(dtype) if v.is_floating_point() and v.dim() > 1 else v for k, v in tensors.items()}
        return Prompt(inputs, text, options)

    @torch.inference_mode()
    def greedy(self, prompt: Prompt) -> list[int]:
        """At most `NEW_TOKENS` tokens, placeholders excepted: a model that emits one is asked for a medium it lacks."""
        output = self.model.generate(
            **prompt.inputs,
            **prompt.options,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            repetition_penalty=1.0,
            suppress_tokens=placeholder_ids(self.model.config.to_dict()),
        )
        return output[0, len(prompt.ids) :].tolist()

    def text(self, ids: list[int]) -> str:
        """Token ids as text."""
        return getattr(self.processor, "tokenizer", self.processor).decode(ids, skip_special_tokens=True)

    @torch.inference_mode()
    def logits(self, prompt: Prompt, continuation: list[int]) -> torch.Tensor:
        """Float32 logits `(positions, vocabulary)` at the end of the prompt followed by `continuation`."""
        inputs = self.continued(prompt, continuation)
        output = self.model(**inputs, **prompt.options, use_cache=False, logits_to_keep=POSITIONS)
        return output.logits[0, -POSITIONS:].float().cpu()

    @staticmethod
    def continued(prompt: Prompt, continuation: list[int]) -> dict[str, torch.Tensor]:
        """The prompt's inputs with further text tokens behind them."""
        inputs = dict(prompt.inputs)
        for key, value in (("input_ids", continuation), ("attention_mask", [1] * len(continuation))):
            tail = torch.tensor([value], dtype=inputs[key].dtype, device=inputs[key].device)
            inputs[key] = torch.cat([inputs[key], tail], dim=1)
        for key in ("token_type_ids", "mm_token_type_ids"):
            if key in inputs:
                inputs[key] = torch.nn.functional.pad(inputs[key], (0, len(continuation)))
        return inputs


def read_config(folder: Path) -> dict[str, Any]:
    """config.json."""
    return read_json(folder / "config.json")


def modalities(folder: Path) -> set[str]:
    """Media that the model takes, as its configuration's placeholders tell."""
    return set(modality.modalities(read_config(folder)))


def placeholder_ids(config: dict[str, Any]) -> list[int] | None:
    """Token ids that stand for media or frame them."""
    media = modality.media_token_ids(config).values() if modality.modalities(config) else ()
    return sorted({*(i for ids in media for i in ids), *modality.boundary_token_ids(config)}) or None


def sampling(processor: Any) -> tuple[FrameSampling, int]:
    """Which frames of a video and how many samples a second, as the processor was made for."""
    videos, sounds = getattr(processor, "video_processor", None), getattr(processor, "feature_extractor", None)
    frames = FrameSampling.of(videos) if videos else FrameSampling(FRAMES)
    return frames, getattr(sounds, "sampling_rate", None) or SAMPLE_RATE


def weaves(processor: Any) -> bool:
    """Whether a processor can weave a video's own sound between its frames."""
    known = getattr(type(processor), "valid_processor_kwargs", None)
    return WEAVE in getattr(known, "_defaults", {}).get("videos_kwargs", {})


def load_model(folder: Path, stored: str, arithmetic: str) -> Any:
    """The model of a folder, or its thinker, weights as `stored` holds them, computing in `arithmetic` (torch's names).

    Raises:
        InputError: transformers does not load it.
    """
    if not console.is_terminal:
        logging.disable_progress_bar()
    try:
        kind, config = trained_class(folder)
        model: Any = kind.from_pretrained(folder, config=config, dtype=getattr(torch, stored))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(
            f"{folder} does not load in transformers ({first_line(error)}): to merge all the same, give --no-parity."
        ) from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mend(model)
    if arithmetic != stored:  # a cast to the dtype it was loaded in would round its float32 buffers
        model = model.to(getattr(torch, arithmetic))
    return model.to(device).eval()


def release_memory() -> None:
    """Give back the memory of models that nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
