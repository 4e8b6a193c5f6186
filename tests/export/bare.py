"""A base of a few named tensors, and an adapter on its one linear: what a merge needs, and no model."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def write_bare(root: Path, tensors: dict[str, torch.Tensor]) -> tuple[Path, Path]:
    """Folders of an adapter, which adds 1 to the diagonal of `q_proj.weight` (8, 8), and of a base of `tensors`."""
    factors = {f"base_model.model.q_proj.lora_{side}.weight": torch.eye(8) for side in "AB"}
    for name, kept, file in (("base", tensors, "model"), ("adapter", factors, "adapter_model")):
        (root / name).mkdir()
        save_file(kept, root / name / f"{file}.safetensors")
    (root / "base" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (root / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return root / "adapter", root / "base"
