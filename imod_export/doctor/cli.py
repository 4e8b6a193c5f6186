"""`imod doctor DIR`: every check, and what it found."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from imod_core.errors import CheckFailed, InputError, MissingFileError


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--base", type=click.Path(path_type=Path), help="Of an adapter, if it no longer lies where it says.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(folder: Path, base: Path | None, as_json: bool) -> None:
    """Look over a model or adapter folder before it is served: what is wrong, why it hurts, how to mend it.

    No weights are loaded. Exit code 1 if something is wrong; notes alone leave it 0.
    """
    findings = examine(folder, base)
    wrong = [finding for finding in findings if finding.level == "wrong"]
    if as_json:
        click.echo(json.dumps({"passed": not wrong, "findings": [asdict(f) for f in findings]}, indent=2))
    else:
        for finding in findings:
            click.echo(
                f"[{finding.level}] {finding.check}: {finding.what}.\n  why:  {finding.why}\n  mend: {finding.mend}"
            )
    if wrong:
        raise CheckFailed(f"{len(wrong)} things are wrong with {folder}, see above.")
    if not as_json:
        click.echo(f"{folder}: nothing is wrong{f', {len(findings)} notes' if findings else ''}.")


def examine(folder: Path, base: Path | None = None) -> list:
    """All findings about a folder, the worst first.

    Raises:
        MissingFileError: there is no such folder.
        InputError: it holds neither a model nor an adapter.
    """
    from imod_export.doctor import adapter, architecture, companions, embeddings, keys, storage, versions, weights
    from imod_export.doctor.finding import Patient

    if not folder.is_dir():
        raise MissingFileError(f"{folder} is no folder: expected a model folder or an adapter folder.")
    if (folder / "adapter" / "adapter_config.json").is_file():
        folder = folder / "adapter"
    if (folder / "adapter_config.json").is_file():
        found = list(adapter.check(folder, base))
    elif any(folder.glob("*.json")) or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
        patient = Patient(folder)
        checks = (weights, storage, architecture, keys, embeddings, companions, versions)
        found = [finding for check in checks for finding in check.check(patient)]
    else:
        raise InputError(f"{folder} holds neither a model nor an adapter: expected config.json or adapter_config.json.")
    return sorted(found, key=lambda finding: finding.level != "wrong")
