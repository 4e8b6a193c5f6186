"""`imod export`: an adapter merged into its base, compared with the adapter attached to it."""

from pathlib import Path

import click

from imod_core.errors import MissingExtraError


@click.command()
@click.option(
    "--merge",
    "source",
    type=click.Path(path_type=Path),
    required=True,
    metavar="RUN|ADAPTER",
    help="Run folder of imod train, or a PEFT LoRA adapter folder.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Model folder to write.")
@click.option("--base", type=click.Path(path_type=Path), help="The base, if it no longer lies where the run says.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Cast all weights; default as in the base.",
)
@click.option("--probes", type=click.Path(path_type=Path), help="Sample file to compare on; default built-in probes.")
@click.option("--no-parity", is_flag=True, help="Merge without the comparison.")
def export(source: Path, out: Path, base: Path | None, dtype: str | None, probes: Path | None, no_parity: bool) -> None:
    """Merge an adapter into its base as a complete model folder, proven equal on real probes.

    Exit code 1 if merged and adapter-attached model differ: the folder is then kept as OUT.rejected, with its report.
    """
    _need("torch")
    if not no_parity:
        _need("transformers")
        _need("peft")
    from imod_export.export import ExportSettings
    from imod_export.export import export as run

    run(source, out, base, ExportSettings(dtype=dtype, probes=probes, parity=not no_parity))


def _need(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingExtraError(package, "export")
