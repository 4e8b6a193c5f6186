"""IMoD training: partition masks, the two constraints, and their attachment to a PEFT LoRA model.

    from imod_train import ImodConfig, attach
    handle = attach(get_peft_model(base, LoraConfig(...)), ImodConfig())

With someone else's trainer: `callbacks=[ImodCallback(ImodConfig())]`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from imod_train.config import ImodConfig

if TYPE_CHECKING:
    from imod_train.attachment import ImodHandle, attach
    from imod_train.callback import ImodCallback

__all__ = ["ImodCallback", "ImodConfig", "ImodHandle", "attach"]

_LAZY = {
    "attach": "imod_train.attachment",
    "ImodHandle": "imod_train.attachment",
    "ImodCallback": "imod_train.callback",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'imod_train' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)
