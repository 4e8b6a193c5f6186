"""A base with adapters attached by PEFT itself: what a merge has to equal. Its scales can be changed, for controls."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imod_core.errors import InputError, first_line


def attach_adapters(model: Any, adapters: Sequence[tuple[Path, float]]) -> Any:
    """`model` with all adapters active, each update times the adapter's weight.

    Raises:
        InputError: PEFT refuses one or finds weights of it missing.
    """
    from peft import PeftModel

    attached = None
    for number, (folder, _) in enumerate(adapters):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                if attached is None:
                    attached = PeftModel.from_pretrained(model, folder, adapter_name="adapter0")
                else:
                    attached.load_adapter(folder, f"adapter{number}")
            except (ValueError, RuntimeError, KeyError, TypeError) as error:
                raise InputError(f"PEFT cannot attach {folder} to its base ({first_line(error)}).") from None
        if any("missing adapter keys" in str(w.message) for w in caught):
            raise InputError(
                f"PEFT finds none or not all of {folder} by the names of this transformers version: "
                "compare under the version it was trained with, or merge with --no-parity."
            )
    _activate(attached, [weight for _, weight in adapters])
    assert attached is not None
    return attached.eval()


@contextmanager
def scaled(attached: Any, factor: float, only: str | None = None) -> Iterator[None]:
    """All low-rank updates, or those of the module `only`, times `factor` for as long as this lasts."""
    layers = [layer for name, layer in lora_layers(attached) if only in (None, name)]
    before = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        layer.scaling = {adapter: value * factor for adapter, value in layer.scaling.items()}
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling = scaling


def lora_layers(attached: Any) -> list[tuple[str, Any]]:
    """Name in the base model and layer, of every module with a low-rank update."""
    from peft.tuners.lora import LoraLayer

    return [
        (name, module) for name, module in attached.get_base_model().named_modules() if isinstance(module, LoraLayer)
    ]


def _activate(attached: Any, weights: list[float]) -> None:
    """Sum all adapters. PEFT's own switch takes one at a time where whole modules are saved."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    if len(weights) == 1 and weights[0] == 1:
        return
    names = [f"adapter{number}" for number in range(len(weights))]
    for _, layer in lora_layers(attached):
        held = [name for name in names if name in layer.scaling]
        layer.set_adapter(held)
        for name in held:
            layer.scaling[name] *= weights[names.index(name)]
    for module in attached.get_base_model().modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            own = module.check_set_adapter(names)
            module.set_adapter([own] if own else [])
