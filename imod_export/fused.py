"""Projections that one side keeps as one matrix and the other as several: where their rows lie.

Only layouts that put the parts one after the other are known here. Where heads alternate (`query_key_value` and the
like) rows do not stay together, and a name that is not listed matches nothing.
"""

from collections.abc import Container

FUSED = {
    "qkv_proj": (("q_proj", "k_proj", "v_proj"),),
    "qkv": (("q_proj", "k_proj", "v_proj"), ("q", "k", "v")),
    "gate_up_proj": (("gate_proj", "up_proj"),),
}
"""Name of the one matrix to the names of its parts, in the order of their rows."""


def parts_of(weight: str, spellings: Container[str]) -> list[str]:
    """Names of the parts of the fused `weight` (`….qkv_proj.weight`) if all of them are there, else nothing."""
    parent, name, end = _split(weight)
    for parts in FUSED.get(name, ()):
        names = [f"{parent}{part}{end}" for part in parts]
        if all(part in spellings for part in names):
            return names
    return []


def whole_of(weight: str, spellings: Container[str]) -> tuple[str, int, int] | None:
    """The fused weight that holds `weight`'s rows, this part's place in it and the number of parts."""
    parent, name, end = _split(weight)
    for whole, kinds in FUSED.items():
        for parts in kinds:
            if name in parts and f"{parent}{whole}{end}" in spellings:
                return f"{parent}{whole}{end}", parts.index(name), len(parts)
    return None


def first_row(place: int, parts: int, rows: int, total: int) -> int | None:
    """Where a part of `rows` rows begins in a matrix of `total`; None if it cannot be such a part.

    Gate and up have the same height, as have keys and values, so one part's height gives all others.
    """
    if parts == 2:
        return place * rows if 2 * rows == total else None
    if place == 0:
        return 0 if rows < total and (total - rows) % 2 == 0 else None
    first = total - (parts - place) * rows
    return first if first >= (place - 1) * rows + 1 else None


def _split(weight: str) -> tuple[str, str, str]:
    module, dot, end = weight.rpartition(".")
    parent, parent_dot, name = module.rpartition(".")
    return parent + parent_dot, name, dot + end
