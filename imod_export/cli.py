"""`imod export`: an adapter merged into its base, compared with the adapter attached to it."""

from pathlib import Path

import click

from imod_core.errors import InputError, MissingExtraError


@click.command()
@click.option(
    "--merge",
    "source",
    type=click.Path(path_type=Path),
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
@click.option("--onnx", is_flag=True, help="Write OUT/onnx too, in transformers.js' layout.")
@click.option("--onnx-variants", metavar="fp16,int8,q4", help="Smaller forms of the graphs beside float32.")
@click.option("--model", type=click.Path(path_type=Path), help="In place of --merge: a model folder, for --onnx alone.")
def export(
    source: Path | None,
    out: Path,
    base: Path | None,
    dtype: str | None,
    probes: Path | None,
    no_parity: bool,
    onnx: bool,
    onnx_variants: str | None,
    model: Path | None,
) -> None:
    """Merge an adapter into its base as a complete model folder, proven equal on real probes.

    Exit code 1 if merged and adapter-attached model differ: the folder is then kept as OUT.rejected, with its report.
    """
    variants = tuple(name.strip() for name in onnx_variants.split(",")) if onnx_variants else ()
    _check_words(source, model, onnx, variants, base, dtype)
    _need("torch")
    if onnx:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            _need(package)
    if not no_parity:
        _need("transformers")
        _need("peft")
    from imod_export.export import ExportSettings, export_onnx_only
    from imod_export.export import export as run

    settings = ExportSettings(dtype=dtype, probes=probes, parity=not no_parity, onnx=variants if onnx else None)
    if model is not None:
        export_onnx_only(model, out, settings)
    elif source is not None:
        run(source, out, base, settings)


def _check_words(
    source: Path | None, model: Path | None, onnx: bool, variants: tuple[str, ...], base: Path | None, dtype: str | None
) -> None:
    if (source is None) == (model is None):
        raise InputError("Give one of --merge RUN|ADAPTER and --model DIR.")
    if model is not None and (not onnx or base or dtype):
        raise InputError("--model takes a merged folder: use it with --onnx, and without --base and --dtype.")
    if variants and not onnx:
        raise InputError("--onnx-variants names forms of ONNX graphs: add --onnx.")


def _need(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingExtraError(package, "export")
