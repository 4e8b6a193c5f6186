"""The tokens of the batch that is being trained on: their modality, their weights, the scale of their loss.

One `TokenBatch` is made for each forward pass and is shared by every adapted module of the model; each
module's backward keeps the one its forward saw. Letters: `B` batch, `L` tokens, `S` packed sequences in a
row (1 unless packed).
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from imod_core.errors import InputError
from imod_core.modality import NON_TEXT, TEXT, token_modality
from imod_train.config import ImodConfig

IGNORED_LABEL = -100
PENDING = 64
"""Forward passes that one loss may join; older ones that saw no backward are forgotten."""


class TokenWeights(NamedTuple):
    """Weights of the tokens of one batch, on one device in one floating dtype; λ and the scale of the loss included."""

    foreign: torch.Tensor
    """(B, L, 2, 1) weight of a token's rows in MSDC, twice λ1 and what the reduction makes of one token: on the text
    block for non-text tokens, on the non-text block for text tokens; else 0."""
    member: torch.Tensor
    """(2, B, L) 1 where a token is text, and where it is non-text; else 0."""
    means: torch.Tensor
    """(B, 2S, L) row 2s averages the text tokens of sequence s, row 2s+1 its non-text tokens."""
    pairs: torch.Tensor
    """(B, S, 1, 1) weight of a sequence in MAAC: λ2/number of sequences that hold both modalities; else 0."""
    lambda1: torch.Tensor
    """0-dim λ1 times the scale of the loss; without that scale where the reduction is `relative`."""


@dataclass(eq=False)
class TokenBatch:
    """What one forward pass must leave behind for its backward pass."""

    modality: torch.Tensor
    """(B, L) uint8, codes of `imod_core.modality`."""
    segment: torch.Tensor | None = None
    """(B, L) int64 number of the packed sequence within its row; None when a row is one sequence."""
    segments: int = 1
    """S, the largest number of sequences in a row."""
    share: torch.Tensor | None = None
    """0-dim share of this micro-batch in the step's loss, where the loss is a sum over tokens divided by the
    step's count."""
    sample: bool = False
    """Whether the backward of this batch also measures the signals."""
    strength: float = 1.0
    """Factor on λ1 and λ2: below 1 while they warm up."""
    assumed: float = 1.0
    """The scale where no loss tells it."""
    scale: torch.Tensor | None = None
    """0-dim d(total loss)/d(loss of this batch), known from the start of its backward on."""
    hook: Any = field(default=None, repr=False)
    """The handle of the hook that waits for the scale."""
    _counted: dict = field(default_factory=dict, repr=False)
    _weights: dict = field(default_factory=dict, repr=False)

    def set_scale(self, scale: torch.Tensor) -> None:
        """Note the scale of a backward pass that begins."""
        self.scale = scale
        self._weights.clear()

    def weights(self, config: ImodConfig, rank: int, device: torch.device, dtype: torch.dtype) -> TokenWeights:
        """The weights of the tokens in one backward pass, made once for all modules of a rank, device and dtype."""
        key = (rank, device, dtype)
        if key not in self._weights:
            self._weights[key] = self._make_weights(config, rank, device, dtype)
        return self._weights[key]

    def multiplier(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """0-dim factor on everything that is injected, so that λ means the same whatever scales the loss."""
        if self.scale is None:
            warnings.warn(
                f"IMoD saw no loss in the model's output and assumes that it is scaled by {self.assumed:g}; "
                "pass your own loss through `handle.scale(loss)` before backward.",
                stacklevel=2,
            )
            self.scale = torch.full((), self.assumed, device=device)
        factor = self.scale.to(device, dtype)
        return factor if self.share is None else factor * self.share.to(device, dtype)

    def counted(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Membership (2, B, L), means (B, 2S, L) and pairs (B, S, 1, 1) as in `TokenWeights`, λ and scale left out."""
        key = (device, dtype)
        if key not in self._counted:
            self._counted[key] = self._count(device, dtype)
        return self._counted[key]

    def _make_weights(self, config: ImodConfig, rank: int, device: torch.device, dtype: torch.dtype) -> TokenWeights:
        member, means, pairs = self.counted(device, dtype)
        scale = self.multiplier(device, dtype)
        lambda1, lambda2 = (self.strength * weight for weight in config.weights)
        relative = config.reduction == "relative"
        strength = torch.full_like(scale, lambda1) if relative else scale * lambda1
        each = 2 * member if relative else 2 * strength * member
        if config.reduction in ("mean", "elements", "relative"):
            each = each / member.sum((1, 2), keepdim=True).clamp(min=1)
        if config.reduction == "elements":
            each = each / rank
        foreign = each.flip(0).permute(1, 2, 0).unsqueeze(-1)  # the text block is foreign to the second, non-text
        return TokenWeights(foreign.contiguous(), member, means, pairs * (scale * lambda2), strength)

    def _count(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        modality = self.modality.to(device)
        inside = torch.stack([modality == TEXT, modality == NON_TEXT], dim=1)  # (B, 2, L)
        member = inside.transpose(0, 1).to(dtype)
        if self.segment is not None:
            numbers = torch.arange(self.segments, device=device)[:, None]
            here = self.segment.to(device)[:, None, :] == numbers  # (B, S, L)
            inside = (here[:, :, None] & inside[:, None]).flatten(1, 2)
        counts = inside.sum(-1, dtype=dtype)  # (B, 2S)
        both = counts.unflatten(1, (-1, 2)).amin(-1) > 0
        pairs = both / both.sum().clamp(min=1).to(dtype)
        return member, inside / counts.clamp(min=1).unsqueeze(-1), pairs[:, :, None, None]


class TokenHolder:
    """The one place where the adapted modules find the batch in flight. It keeps the last one until the next
    training forward, so that the recomputation of gradient checkpointing sees it too."""

    def __init__(self, media_ids: tuple[int, ...], ignored_ids: tuple[int, ...]):
        self.media_ids = media_ids
        self.ignored_ids = ignored_ids
        self.current: TokenBatch | None = None
        self.pending: list[TokenBatch] = []
        """Batches whose backward has not begun, the last one in flight."""
        self.saw_media: torch.Tensor | None = None
        """0-dim, whether any batch so far held a non-text token; on its device, so that nobody waits."""
        self.assumed = 1.0
        """Scale of a loss that is not seen."""
        self.sample_next = False
        self.strength: float | None = 1.0
        """Factor on λ1 and λ2; None while it is not known."""

    def fill(self, inputs: Mapping[str, Any]) -> None:
        """Read the modality, packing and loss share of a batch from the arguments of the model's forward."""
        input_ids = inputs.get("input_ids")
        if input_ids is None:
            raise InputError(
                "The model was called without input_ids, from which IMoD reads each token's modality; "
                "pass input_ids (beside inputs_embeds if need be) while training."
            )
        modality = token_modality(input_ids, inputs.get("attention_mask"), self.media_ids, self.ignored_ids)
        segment, segments = packed_segments(inputs.get("position_ids"), inputs.get("attention_mask"), modality)
        strength = 1.0 if self.strength is None else self.strength
        batch = TokenBatch(
            modality, segment, segments, loss_share(inputs), self.sample_next, strength, assumed=self.assumed
        )
        saw = (modality == NON_TEXT).any()
        self.saw_media = saw if self.saw_media is None else self.saw_media.to(saw.device) | saw
        waiting = [earlier for earlier in self.pending if earlier.scale is None]
        self.current, self.pending = batch, [*waiting, batch][-PENDING:]
        self.sample_next = False

    def follow(self, loss: torch.Tensor, batches: Sequence[TokenBatch]) -> None:
        """Note the gradient that arrives at `loss` in backward as the scale of `batches`."""
        if not loss.requires_grad:
            return
        for batch in batches:
            if batch.hook is not None:
                batch.hook.remove()

        def note(gradient: torch.Tensor) -> None:
            for batch in batches:
                batch.set_scale(gradient.detach())
            self.current = batches[-1]  # after several forwards, checkpointing recomputes this one now

        hook = loss.register_hook(note)
        for batch in batches:
            batch.hook = hook


def packed_segments(positions: Any, attention_mask: Any, modality: torch.Tensor) -> tuple[torch.Tensor | None, int]:
    """Number of each token's sequence within its row, (B, L), and the largest number of sequences in a row.

    A sequence of a packed row starts where all components of its position (one, or several with M-RoPE) are
    0 and the mask, if it is (B, L), shows no padding. `positions` is (B, L), (1, L) or (C, B, L); None, or a
    shape that fits no token, means one sequence a row. Reading the number of sequences waits for the device once a
    forward pass, and only where position_ids are given, with which transformers waits too when it makes its mask.
    """
    if not isinstance(positions, torch.Tensor) or positions.shape[-1] != modality.shape[-1]:
        return None, 1
    starts = ((positions == 0) if positions.dim() == 2 else (positions == 0).all(0)).expand_as(modality)
    if isinstance(attention_mask, torch.Tensor) and attention_mask.shape == modality.shape:
        starts = starts & (attention_mask != 0)
    number = (starts.cumsum(-1) - 1).clamp(min=0)
    segments = int(number.max()) + 1
    return (number, segments) if segments > 1 else (None, 1)


def loss_share(inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """Share of a micro-batch in its step's loss, or None when its loss is already its own mean.

    transformers' Trainer hands `num_items_in_batch`, the number of target tokens in the whole step, to the
    model, which then returns its *sum* divided by that. Such a loss carries its share of the step inside,
    invisible to the gradient that arrives at it.
    """
    total = inputs.get("num_items_in_batch")
    if total is None:
        return None
    targets = inputs.get("shift_labels")
    if targets is None:
        labels = inputs.get("labels")
        if labels is None:
            return None
        targets = labels[..., 1:]
    count = (targets != IGNORED_LABEL).sum()
    return count / (total.to(count.device) if isinstance(total, torch.Tensor) else total)
