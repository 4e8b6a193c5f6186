"""An adapter as vLLM finds it beside its base: by the hub's names where vLLM maps no others.

vLLM looks a served adapter's tensors up by name and says nothing of those that it does not find: the base answers.
"""

import re
from pathlib import Path
from typing import Any

from imod_core.families import family_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_LANGUAGE = re.compile(r"^(base_model\.model\.)model\.(?:language_model\.)?(?=layers\.)")


def adapter_for_vllm(adapter: Path, config: dict[str, Any], folder: Path) -> Path:
    """`adapter` itself, or a copy of it in `folder` with names that vLLM takes; `config` is the base's config.json."""
    family = family_of(config)
    if family is None or family.vllm_owner is None:
        return adapter
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / WEIGHTS)
    folder.mkdir(parents=True, exist_ok=True)
    renamed = {_LANGUAGE.sub(rf"\g<1>{family.vllm_owner}model.", name): value for name, value in tensors.items()}
    save_file(renamed, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text((adapter / CONFIG).read_text())
    return folder
