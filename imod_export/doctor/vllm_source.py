"""What the installed vLLM knows, read from its source: importing it takes half a minute, parsing two files none.

Only literal tables are read: the registry's `NAME: (module, class)`, and a class's `orig_to_new_prefix`.
"""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

MODELS = "model_executor/models"


@cache
def architectures() -> dict[str, tuple[str, str]]:
    """Architecture to vLLM's module and class; empty where vLLM is not installed."""
    tree = _parse("registry")
    found: dict[str, tuple[str, str]] = {}
    for node in tree.body if tree else []:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Dict) and not _target(node).startswith(("_PREVIOUSLY", "_OOT")):
            found |= dict(_entries(value))
    return found


def prefixes(architecture: str) -> tuple[str, ...]:
    """Beginnings of tensor names that the architecture's mapper takes, old and new; empty where it maps none."""
    module, name = architectures().get(architecture, ("", ""))
    tree = _parse(module) if module else None
    body = next((n.body for n in (tree.body if tree else []) if isinstance(n, ast.ClassDef) and n.name == name), [])
    for node in body:
        if isinstance(node, ast.Assign) and _target(node) == "hf_to_vllm_mapper" and isinstance(node.value, ast.Call):
            tables = [k.value for k in node.value.keywords if k.arg == "orig_to_new_prefix"]
            if len(node.value.keywords) == len(tables) == 1 and isinstance(tables[0], ast.Dict):
                return tuple(sorted({*_strings(tables[0].keys), *_strings(tables[0].values)} - {""}))
    return ()


def _parse(module: str) -> ast.Module | None:
    spec = find_spec("vllm")
    path = Path(spec.origin).parent / MODELS / f"{module}.py" if spec and spec.origin else None
    return ast.parse(path.read_text(encoding="utf-8")) if path and path.is_file() else None


def _entries(table: ast.Dict) -> list[tuple[str, tuple[str, str]]]:
    entries = []
    for key, value in zip(table.keys, table.values, strict=True):
        parts = _strings(value.elts) if isinstance(value, ast.Tuple) else []
        if isinstance(key, ast.Constant) and isinstance(key.value, str) and len(parts) == 2:
            entries.append((key.value, (parts[0], parts[1])))
    return entries


def _target(node: ast.stmt) -> str:
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    return target.id if isinstance(target, ast.Name) else ""


def _strings(nodes: list) -> list[str]:
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
