"""Layer by layer: does each merged weight show the update that the adapter makes, and each saved module its values?

Logits can hide a small layer's absence, above all in bfloat16; a layer asked directly cannot. Letters: `P` probe rows,
`x (P, in)` random inputs, `u = s·BAx` the update that PEFT's layer adds, `d` what the merged layer adds to the base's.
"""

import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from imod_export.tolerances import SAVED_MODULE, TRANSFER

ROWS = 8


@dataclass(frozen=True)
class Trace:
    """What the attached model's adapted parts do."""

    layers: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """Module name to the base's output and the adapted output `(P, out)` for its random inputs."""
    saved: dict[str, torch.Tensor]
    """Parameter name to value, of saved modules."""
    skipped: tuple[str, ...]
    """Adapted modules that are no plain linears: only the logits cover them."""
    rows: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Name of an embedding's weight to trained token ids and their rows."""

    @property
    def faintest(self) -> str | None:
        """The layer whose update does least to its output: the one whose absence is hardest to see."""
        strengths = {name: ((u - b).norm() / b.norm()).item() for name, (b, u) in self.layers.items()}
        return min((name for name, s in strengths.items() if s > 0), key=lambda name: strengths[name], default=None)

    def with_scale(self, factor: float, only: str | None = None) -> "Trace":
        """As it would be with the updates of all layers, or of one, times `factor`."""
        layers = {
            name: (base, base + factor * (adapted - base)) if only in (None, name) else (base, adapted)
            for name, (base, adapted) in self.layers.items()
        }
        return replace(self, layers=layers)


@dataclass(frozen=True)
class LayerError:
    """One adapted module or saved parameter."""

    name: str
    kind: str
    """`lora` or `saved`."""
    transfer: float | None
    """`<d, u> / <u, u>`: 1 where the whole update arrived, 0 where none; None for an update that is zero."""
    error: float
    """`|d - u| / |u|` of a LoRA layer; largest difference over largest value of a saved tensor."""
    passed: bool


@torch.inference_mode()
def trace(attached: Any) -> Trace:
    """Ask every adapted linear of a PEFT model, and copy its saved modules."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    layers, saved, skipped, rows = {}, {}, [], {}
    for name, module in attached.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            base, adapted = module.get_base_layer(), attached.get_base_model().get_submodule(name)
            if isinstance(base, nn.Linear):
                x = _inputs(name, base)
                layers[name] = (base(x).cpu(), adapted(x).cpu())
            else:
                skipped.append(name)
        elif isinstance(module, TrainableTokensWrapper):
            rows[f"{name}.weight"] = _token_rows(module.token_adapter)
        elif isinstance(module, ModulesToSaveWrapper) and module.active_adapters:
            own = module.modules_to_save[module.active_adapters[0]]
            saved.update({f"{name}.{key}": value.detach().float().cpu() for key, value in own.named_parameters()})
    return Trace(layers, saved, tuple(skipped), rows)


@torch.inference_mode()
def compare_layers(reference: Trace, merged: Any, stored: str) -> list[LayerError]:
    """Each traced part against the merged model's; `stored` names the dtype of its weights on disk."""
    modules, parameters = dict(merged.named_modules()), dict(merged.named_parameters())
    errors = [_lora(name, *pair, modules[name], stored) for name, pair in reference.layers.items()]
    for name, value in reference.saved.items():
        errors.append(_saved(name, value, parameters[name].float().cpu(), stored))
    for name, (ids, value) in reference.rows.items():
        module, _, key = name.rpartition(".")
        errors.append(
            _saved(f"{name}[{len(ids)} rows]", value, getattr(modules[module], key)[ids].float().cpu(), stored)
        )
    return errors


def _lora(name: str, base: torch.Tensor, adapted: torch.Tensor, module: nn.Linear, stored: str) -> LayerError:
    u = adapted - base
    d = module(_inputs(name, module)).cpu() - base
    strength = u.pow(2).sum().item()
    if strength == 0:
        return LayerError(name, "lora", None, d.norm().item(), bool(d.norm() <= 1e-5 * base.norm()))
    transfer = (d * u).sum().item() / strength
    error = ((d - u).norm() / u.norm()).item()
    return LayerError(name, "lora", transfer, error, abs(transfer - 1) <= TRANSFER[stored])


def _saved(name: str, value: torch.Tensor, found: torch.Tensor, stored: str) -> LayerError:
    error = ((found - value).abs().max() / value.abs().max().clamp(min=1e-30)).item()
    return LayerError(name, "saved", None, error, error <= SAVED_MODULE[stored])


def _token_rows(adapter: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Trained token ids and what their rows are with all active adapters."""
    ids = torch.tensor(sorted({i for name in adapter.active_adapters for i in adapter.token_indices[name]}))
    return ids, adapter.get_merged_weights(adapter.active_adapters)[ids].float().cpu()


def _inputs(name: str, layer: nn.Linear) -> torch.Tensor:
    """`x (P, in)`, normal, from a seed that follows from the name: the same for both sides."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(ROWS, layer.in_features, generator=generator).to(layer.weight)
