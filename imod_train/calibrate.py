"""Data-dependent start of untrained projectors: every channel of their normalised input gets mean 0 and deviation 1.

Tower channels differ in spread by a factor of a hundred (measured on Whisper's first layer and EfficientNet), and a
layer norm scales them together, so the few loud channels would be learned long before the telling quiet ones. The
affine part of the projector's own first layer norm takes the correction: no parameter is added.
"""

from collections.abc import Sequence

import torch
from peft import PeftModel
from torch import nn

from imod_core.avt.modeling_avt import AvtProjector
from imod_core.avt.states import TowerStates
from imod_core.samples import Sample

KINDS_OF = {"vision_projector": ("image", "video"), "audio_projector": ("audio",)}
SAMPLES = 256
"""Samples looked at: some thousand tokens of each kind."""
LEAST_DEVIATION = 0.1
"""Of the median deviation: channels with less are nearly constant and are not blown up further."""


@torch.no_grad()
def calibrate(model: PeftModel, samples: Sequence[Sample], states: TowerStates) -> None:
    """Calibrate the trainable projectors of `model` that no training has touched, from evenly chosen `samples`."""
    chosen = [samples[i * len(samples) // SAMPLES] for i in range(SAMPLES)] if len(samples) > SAMPLES else samples
    for name, module in model.named_modules():
        if isinstance(module, AvtProjector) and ".modules_to_save." in name and _is_untouched(module.norm_in):
            kinds = KINDS_OF[name.split(".modules_to_save.")[0].rsplit(".", 1)[1]]
            found = [state for sample in chosen for kind in kinds for state in states.of(sample)[kind]]
            if found:
                _standardise(module.norm_in, torch.cat(found).float())


def _standardise(norm: nn.LayerNorm, tokens: torch.Tensor) -> None:
    """Set the affine part of `norm` from tower states `(tokens, C)`."""
    normalised = nn.functional.layer_norm(tokens, norm.normalized_shape, eps=norm.eps)
    mean, deviation = normalised.mean(0), normalised.std(0)
    deviation = deviation.clamp(min=max(LEAST_DEVIATION * deviation.median().item(), 1e-3))
    norm.weight.copy_(1 / deviation)
    norm.bias.copy_(-mean / deviation)


def _is_untouched(norm: nn.LayerNorm) -> bool:
    return bool((norm.weight == 1).all() and (norm.bias == 0).all())
