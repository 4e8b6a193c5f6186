"""The model card of a merge: what it was made from, how, on which data, and what the comparison found.

It names no path of the machine that made it: folders and files go by their last name.
"""

from pathlib import Path
from typing import Any

from imod_core import __version__
from imod_core.artifacts import read_json, write_text
from imod_core.errors import InputError
from imod_export.rounding import WARN_LOST
from imod_export.source import Source, Sources

CARD = "README.md"


def write_card(
    folder: Path, sources: Sources, facts: dict[str, Any], costs: list[dict[str, Any]], report: Any = None
) -> None:
    """Write `README.md` into a merged folder.

    Args:
        folder: the merge.
        sources: its adapters and base.
        facts: as in its manifest: `base`, `merged`.
        costs: of rounding, by low-rank update.
        report: of the comparison, if there was one.
    """
    import yaml

    header = {**_inherited(sources.base), "library_name": "transformers", "tags": ["merge", "lora", *_methods(sources)]}
    if sources.base.name:
        header.setdefault("base_model", sources.base.name)
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {sources.base.name} with {' and '.join(_name(source) for source in sources.adapters)} merged",
        _how(sources, facts),
        "## Training",
        *map(_training, sources.adapters),
        "## Rounding",
        _rounding(costs, facts["merged"]["dtype"]),
        "## Parity",
        _parity(report),
    ]
    write_text(folder / CARD, "\n\n".join(part for part in parts if part) + "\n")


def _how(sources: Sources, facts: dict[str, Any]) -> str:
    merged = facts["merged"]
    weights = [source.weight for source in sources.adapters]
    shares = f" with the weights {', '.join(f'{w:g}' for w in weights)}" if set(weights) != {1.0} else ""
    untouched = f"{merged['untouched']} left {'as' if merged.get('cast') else 'byte for byte as'} in the base"
    return (
        f"Made with imod-lora {__version__}: {merged['lora']} low-rank updates `W + s·BA` added{shares} in float32, "
        f"{merged['saved']} tensors replaced, {untouched} "
        f"({_digest(facts['base'])}). Weights are stored as {merged['dtype']}."
    )


def _digest(base: dict[str, Any]) -> str:
    whole = base["blake3"]
    return f"blake3 {whole[:16]}…" if whole else f"blake3 of its headers {base['headers_blake3'][:16]}…"


def _training(source: Source) -> str:
    run, lines = source.run, []
    if not run:
        config = read_json(source.adapter / "adapter_config.json")
        return f"`{_name(source)}`: a PEFT LoRA adapter, rank {config.get('r')}, alpha {config.get('lora_alpha')}."
    lines.append(f"`{_name(source)}`: method {source.method}.")
    settings = (run.get("imod") or {}).get("config") or {}
    if settings:
        told = ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)
        lines.append(f"Settings: {told}.")
    if data := _data(source.adapter.parent):
        lines.append("Data:\n\n" + "\n".join(f"- `{Path(name).name}` (blake3 {digest[:16]}…)" for name, digest in data))
    return "\n".join(lines)


def _data(run: Path) -> list[tuple[str, str]]:
    try:
        found = read_json(run / "inputs.json").get("data")
    except (InputError, OSError):
        return []
    return [(name, str(digest)) for name, digest in found.items()] if isinstance(found, dict) else []


def _rounding(costs: list[dict[str, Any]], dtype: str) -> str:
    if not costs:
        return "No low-rank update was merged."
    worst = max(costs, key=lambda cost: cost["lost"])
    strengths = [cost["strength"] for cost in costs]
    verdict = "more than" if worst["lost"] > WARN_LOST else "within"
    return (
        f"The updates are {min(strengths):.1e} to {max(strengths):.1e} of their weights. Storing them as {dtype} lost "
        f"at most {max(worst['lost'], 0):.1%} of one (`{worst['name']}`), {verdict} the {WARN_LOST:.0%} that warn."
    )


def _parity(report: Any) -> str:
    if report is None:
        return "The merge was not compared with its base and adapter."
    rows = [
        f"| {p.name} | {p.link} | {p.arithmetic} | {p.distance.relative:.1e} | {p.distance.kl:.1e} | "
        f"{p.greedy_prefix}/{p.greedy} |"
        for p in report.probes
    ]
    table = [
        "| probe | compared | computed in | relative logit error | KL (nats) | greedy tokens |",
        "|" + " --- |" * 6,
    ]
    told = sum(control.told_apart for control in report.controls)
    verdict = "Passed" if report.passed else f"Failed ({len(report.faults)} faults)"
    return f"{verdict}; {told} of {len(report.controls)} negative controls were told apart.\n\n" + "\n".join(
        table + rows
    )


def _inherited(base: Path) -> dict[str, Any]:
    """Licence, languages and task from the base's own card, and its hub name."""
    import yaml

    path = base / CARD
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not text.startswith("---"):
        return {}
    try:
        found = yaml.safe_load(text.split("---", 2)[1])
    except yaml.YAMLError:
        return {}
    keys = ("license", "license_name", "license_link", "language", "pipeline_tag")
    return {key: found[key] for key in keys if key in found} if isinstance(found, dict) else {}


def _methods(sources: Sources) -> list[str]:
    return sorted({source.method for source in sources.adapters if source.method} - {"lora"})


def _name(source: Source) -> str:
    return source.adapter.parent.name if source.run else source.adapter.name
