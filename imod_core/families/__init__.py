"""Model families that are trained, merged and served: what cannot be read from their folders, one file each."""

from collections.abc import Mapping
from typing import Any

from imod_core.families import gemma4, qwen2_5_omni, qwen2_5_vl, qwen3_omni, qwen3_vl
from imod_core.families.family import Blueprint, Family

FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in (qwen2_5_vl, qwen3_vl, qwen2_5_omni, qwen3_omni, gemma4)}

__all__ = ["FAMILIES", "Blueprint", "Family", "family_of"]


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The family of a config.json, by its `model_type`; None for one that is not known here."""
    found = config.get("model_type")
    return next((family for family in FAMILIES.values() if family.model_type == found), None)
