"""Who owns A's gradient after training: the non-text dominance rate of a finished run on samples of one's own.

Fisher information of an element of A: the mean over samples of its squared task gradient, split by the positions that
text and non-text tokens hold (`G_A = Σ_tokens g_i x_iᵀ`). The rate is the share of elements whose information is
larger at non-text tokens. The running estimate of `imod_train.signals` forgets, and follows the training's own batches,
in which one clip may have many questions; here a sample is one. Letters: `L` tokens, `d` in-features, `r` rank.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn

from imod_core.modality import NON_TEXT, TEXT, boundary_token_ids, media_token_ids, token_modality
from imod_core.samples import Sample
from imod_train.base import load_base
from imod_train.feed import make_feed
from imod_train.model import add_adapter, set_trainable
from imod_train.recipe import TRAINABLE, read_recipe


@dataclass(frozen=True)
class Dominance:
    """The rate, and the counts without which it cannot be compared."""

    rate: float
    """Share of all elements of all A."""
    samples: int
    text_tokens: int
    non_text_tokens: int


def run_dominance(run: Path, samples: list[Sample]) -> Dominance:
    """The rate of the adapter that the run folder `run` holds, on `samples` with their true answers, one a row.

    Raises:
        InputError: the run's base is gone, or a sample has no answer.
    """
    last = read_recipe(run / "recipe.yaml").stages[-1].name
    recipe = read_recipe(run / "recipe.yaml", ("precision=float32", f"stages.{last}.questions_per_row=1"))
    model, processor = load_base(recipe)
    feed = make_feed(recipe, model, processor, run.parent / "states")
    by_stage = {stage.name: samples for stage in recipe.stages}
    rows, collate = feed.datasets(by_stage)[last], feed.collator(recipe.stages[-1])
    peft_model = add_adapter(model, recipe.lora, recipe.seed)
    feed.prepare(peft_model, by_stage)
    set_peft_model_state_dict(peft_model, load_file(run / "adapter" / "adapter_model.safetensors"))
    set_trainable(peft_model, TRAINABLE)
    return dominance(peft_model, (collate([rows[i]]) for i in range(len(rows))))  # type: ignore[arg-type]


def dominance(model: PeftModel, batches: Iterable[dict[str, Any]]) -> Dominance:
    """The rate of the plain LoRA adapters of `model`, over batches of one sample each with its loss."""
    config = model.get_base_model().config
    media = tuple(token for ids in media_token_ids(config).values() for token in ids)
    ignored = boundary_token_ids(config)
    fisher: dict[str, list[torch.Tensor]] = {}
    counts, samples = torch.zeros(2, dtype=torch.long), 0
    model.eval()
    for batch in batches:
        codes = token_modality(batch["input_ids"], batch.get("attention_mask"), media, ignored)
        members = torch.stack([codes == TEXT, codes == NON_TEXT]).flatten(1)  # (2, L)
        counts += members.sum(1)
        samples += 1
        with _watched(model) as seen:
            model(**batch).loss.backward()
        model.zero_grad(set_to_none=True)
        for name, (x, gradient) in seen.items():
            squares = [(gradient[member].T @ x[member]).square() for member in members]
            known = fisher.setdefault(name, [torch.zeros_like(square) for square in squares])
            for total, square in zip(known, squares, strict=True):
                total += square
    ahead = sum(int((other > text).sum()) for text, other in fisher.values())
    return Dominance(ahead / sum(text.numel() for text, _ in fisher.values()), samples, *counts.tolist())


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, list[torch.Tensor]]]:
    """By name of an A: its input (L, d) and the gradient at its output (L, r), float32, of the passes within."""
    seen: dict[str, list[torch.Tensor]] = {}
    with ExitStack() as stack:
        for name, module in model.named_modules():
            for key, a in module.lora_A.items() if isinstance(module, LoraLayer) else ():
                stack.callback(a.register_forward_hook(_note(f"{name}.{key}", seen)).remove)
        yield seen


def _note(name: str, seen: dict[str, list[torch.Tensor]]) -> Any:
    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen[name] = [inputs[0].detach().flatten(0, -2).float()]
        output.register_hook(lambda gradient: seen[name].append(gradient.detach().flatten(0, -2).float()))

    return note
