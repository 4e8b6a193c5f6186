"""Bases whose weights are codes and scales: an update added to those would be noise."""

from typing import Any

from imod_core.errors import InputError
from imod_export.tensors import DTYPES, Checkpoint

COMPANIONS = (
    "weight_scale", "weight_scale_inv", "weight_zero_point", "input_scale", "qweight", "qzeros", "g_idx", "absmax",
    "quant_map", "SCB", "weight_format", "weight_packed", "weight_shape",
)  # fmt: skip
"""Last part of tensor names that FP8, GPTQ, AWQ, bitsandbytes and compressed-tensors write beside or for a weight."""
PACKED = ("_blocks", "_scales")
"""Ends of MXFP4's names."""


def quantisation(config: dict[str, Any]) -> str | None:
    """The method that a configuration or a part of it names, None for one of plain weights."""
    if found := config.get("quantization_config") or config.get("compression_config"):
        return str(found.get("quant_method", "unnamed")) if isinstance(found, dict) else "unnamed"
    parts = (value for value in config.values() if isinstance(value, dict))
    return next((method for part in parts if (method := quantisation(part))), None)


def quantised_tensors(checkpoint: Checkpoint) -> list[str]:
    """Names of tensors that only quantised weights have."""
    names = checkpoint.tensors
    return [name for name in names if name.rpartition(".")[2] in COMPANIONS or name.endswith(PACKED)]


def refuse_quantised(config: dict[str, Any], checkpoint: Checkpoint) -> None:
    """Raise InputError if the base is quantised, by its configuration or by its tensors."""
    method = quantisation(config)
    hit = next(iter(quantised_tensors(checkpoint)), None)
    if method or hit:
        shown = f"quantization_config in config.json, {method}" if method else f"'{hit}'"
        raise InputError(
            f"{checkpoint.folder} is quantised ({shown}): give the 16-bit or 32-bit model that it was made from with "
            f"--base, in {', '.join(DTYPES)}."
        )
