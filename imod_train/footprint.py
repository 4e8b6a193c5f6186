"""What a training step holds in memory and computes, found by running it on tensors without data.

PyTorch's fake tensors have shapes, dtypes and a device but no values. The real model, with its adapter, constraints and
autocast, runs forward and backward on them in seconds whatever its size, and every storage that an operation makes is
counted while it lives. Only what asks for values is left out: the towers, whose outputs a frozen model does not keep,
and the selection of the answers' positions, which is done by number.
"""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from imod_core.modality import NON_TEXT, TEXT
from imod_train.attachment import ImodHandle, attach
from imod_train.base import decoder_name, skeleton
from imod_train.model import PROJECTORS, add_adapter, set_trainable
from imod_train.recipe import Recipe, Stage
from imod_train.tokens import TokenBatch


@dataclass(frozen=True)
class Shape:
    """A micro-batch by its sizes."""

    rows: int
    length: int
    """Tokens of the longest row, to which the others are padded."""
    media: int
    """Tokens of a row that stand for media."""
    answers: int
    """Tokens of a row that are learned."""


@dataclass(frozen=True)
class Footprint:
    """Bytes, but for the counts."""

    parameters: int
    trainable: int
    weights: int
    """Frozen weights and buffers, in the precision or the codes that they are kept in."""
    adapter: int
    """What learns."""
    optimizer: int
    gradients: int
    activations: int
    """The most that lives at once beside all else here."""
    logits: int
    """What the head and the loss keep for backward."""
    small: int
    """Of activations and logits, what lies in blocks of less than `HEAP_BLOCK`."""
    flops: int
    """Of a forward and backward pass of one micro-batch through the language model."""

    @property
    def total(self) -> int:
        """All of it at the peak of a step."""
        parts = (self.weights, self.adapter, self.optimizer, self.gradients, self.activations, self.logits)
        return sum(parts)


def footprint(config: Any, recipe: Recipe, stage: Stage, shape: Shape, attention: str) -> Footprint:
    """The footprint of one micro-batch of a stage.

    Args:
        config: of the part of the base that is trained.
        recipe, stage: adapter, precision, what learns and how.
        shape: the micro-batch.
        attention: transformers' name of the implementation that will run.
    """
    model = _model(config, recipe, stage, attention)
    handle = attach(model, recipe.imod) if recipe.method == "imod" and "adapter" in stage.train else None
    with FakeTensorMode(allow_non_fake_inputs=True):
        _without_data(model)
        learns = [p for p in model.parameters() if p.requires_grad]
        with FlopCounterMode(display=False) as flops, LiveStorages() as storages:
            logits = _step(model, handle, recipe, stage, shape, storages)
        gradients = sum(p.grad.nbytes for p in learns if p.grad is not None)
    adapter = sum(p.nbytes for p in learns)
    weights = _weights(model, recipe) - adapter
    spare = _dequantised(model) if recipe.base_quantization else 0
    return Footprint(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in learns),
        weights=weights,
        adapter=adapter,
        optimizer=2 * adapter,
        gradients=gradients,
        activations=max(0, storages.most - gradients - logits) + spare,
        logits=logits,
        small=storages.most_small,
        flops=flops.get_total_flops(),
    )


def _model(config: Any, recipe: Recipe, stage: Stage, attention: str) -> PeftModel:
    """The model of a stage as training has it, on the meta device."""
    base = skeleton(config, getattr(torch, recipe.precision), attention)
    base.config.get_text_config().use_cache = False
    if recipe.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model = add_adapter(base, recipe.lora, recipe.seed)
    set_trainable(model, stage.train)
    return model.train()


def _without_data(model: nn.Module) -> None:
    """Make every parameter and buffer a fake tensor on the CPU, tied ones together."""
    made: dict[int, torch.Tensor] = {}
    old = [*model.parameters(), *model.buffers()]  # held, so that an id stays one tensor's

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
        return made[id(tensor)]

    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = fake(tensor)  # type: ignore[assignment]
    del old


def _step(
    model: PeftModel,
    handle: ImodHandle | None,
    recipe: Recipe,
    stage: Stage,
    shape: Shape,
    storages: "LiveStorages",
) -> int:
    """Forward and backward of a micro-batch; returns the bytes that head and loss keep in between."""
    base: Any = model.get_base_model()
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
        embedded = _embedded(base, shape)
        if stage.objective == "words":
            embedded.float().square().sum().backward()
            return 0
        if handle:
            handle._holder.current = _tokens(shape)
        mask = torch.ones(shape.rows, shape.length, dtype=torch.long)
        hidden = base.get_submodule(decoder_name(base))(inputs_embeds=embedded, attention_mask=mask)[0]
        before = storages.live_bytes
        chosen = hidden.flatten(0, 1).index_select(0, torch.zeros(shape.rows * shape.answers, dtype=torch.long))
        scores = base.get_output_embeddings()(chosen).float()
        targets = torch.zeros(len(scores), dtype=torch.long)
        loss = nn.functional.cross_entropy(scores, targets)
        del scores, chosen
        logits = storages.live_bytes - before
    if handle:
        handle.scale(loss)
    loss.backward()
    return logits


def _embedded(base: Any, shape: Shape) -> torch.Tensor:
    """Embeddings (B, L, D) of a micro-batch, media from the projectors where there are some."""
    embedded = base.get_input_embeddings()(torch.zeros(shape.rows, shape.length, dtype=torch.long))
    inner = getattr(base, "model", base)
    for name in PROJECTORS:
        projector = getattr(inner, name, None)
        if projector is not None:
            count = max(1, shape.rows * shape.media // len(PROJECTORS))
            width = next(projector.parameters()).shape[0]
            made = projector(torch.zeros(1, count, width)).flatten(0, 1).to(embedded.dtype)
            flat = embedded.flatten(0, 1)
            embedded = flat.index_copy(0, torch.zeros(count, dtype=torch.long), made).view_as(embedded)
    return embedded


def _tokens(shape: Shape) -> TokenBatch:
    """Media first, then text."""
    modality = torch.full((shape.rows, shape.length), TEXT, dtype=torch.uint8)
    modality[:, : shape.media] = NON_TEXT
    return TokenBatch(modality)


def _weights(model: PeftModel, recipe: Recipe) -> int:
    """Bytes of all parameters and buffers, those in 4 bits with their scales; tied ones once."""
    coded = {id(p) for p in _coded(model)} if recipe.base_quantization else set()
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(int(t.numel() * NF4_BYTES) if id(t) in coded else t.nbytes for t in tensors.values())


def _coded(model: PeftModel) -> Iterator[torch.Tensor]:
    """The weights that are kept in 4 bits: of the frozen linear layers of the language model."""
    base: Any = model.get_base_model()
    for name, module in base.get_submodule(decoder_name(base)).named_modules():
        if isinstance(module, nn.Linear) and "lora_" not in name:
            yield module.weight


def _dequantised(model: PeftModel) -> int:
    """Bytes of the largest of them in the precision of the products, as it is made for each use."""
    return max(weight.nbytes for weight in _coded(model))


HEAP_BLOCK = 32 << 20
"""Bytes from which glibc gives a block pages of its own, which go back when it is freed; smaller ones share a heap."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A weight: 4 bits, a scale of 8 bits for 64 of them, a float32 for 256 scales (QLoRA, double quantisation)."""


class LiveStorages(TorchDispatchMode):
    """Bytes of the storages that operations made and that still live, and the most at any time; those of less than
    `HEAP_BLOCK` by themselves too."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.live_bytes = self.live_small = self.most = self.most_small = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(found):
            key = storage._cdata
            if key not in given and key not in self.live:
                self.live[key] = storage.nbytes()
                self._count(storage.nbytes(), 1)
                weakref.finalize(storage, self._forget, key)
        self.most = max(self.most, self.live_bytes)
        self.most_small = max(self.most_small, self.live_small)
        return found

    def _forget(self, key: int) -> None:
        self._count(self.live.pop(key, 0), -1)

    def _count(self, size: int, sign: int) -> None:
        self.live_bytes += sign * size
        self.live_small += sign * size if size < HEAP_BLOCK else 0


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
