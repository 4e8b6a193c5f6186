"""Model families that are trained, merged and served: what cannot be read from their folders, one file each."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imod_core.families import avt, gemma4, qwen2_5_omni, qwen2_5_vl, qwen3_omni, qwen3_vl
from imod_core.families.avt import BACKBONES
from imod_core.families.family import LANGUAGE_LINEARS, Blueprint, Family

NATIVE = tuple(module.FAMILY for module in (qwen2_5_vl, qwen3_vl, qwen2_5_omni, qwen3_omni, gemma4))
FAMILIES: dict[str, Family] = {family.name: family for family in (*avt.FAMILIES, *NATIVE)}
"""By name, in the order of the table."""

__all__ = ["BACKBONES", "FAMILIES", "NATIVE", "Blueprint", "Family", "family_of", "lora_modules"]


def lora_modules(folder: Path) -> dict[str, Any]:
    """PEFT's `target_modules` and `exclude_modules` for a model folder: the linears of its language model that take an
    adapter, and nothing else."""
    family = family_of(json.loads((folder / "config.json").read_text()))
    return {
        "target_modules": family.linears if family else LANGUAGE_LINEARS,
        "exclude_modules": family.exclude if family else None,
    }


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The family of a config.json, by its `model_type`; None for one that is not known here."""
    found = config.get("model_type")
    return next((family for family in FAMILIES.values() if family.model_type == found), None)
