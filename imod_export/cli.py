"""`imod export`: adapters merged into their base and compared. `imod parity`: the comparison on its own."""

import gc
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from imod_core.errors import InputError, MissingExtraError

FOLDER = click.Path(path_type=Path)
BASE = click.option("--base", type=FOLDER, help="The base, if it no longer lies where the run says.")
PROBES = click.option("--probes", type=FOLDER, help="Sample file to compare on; default built-in probes.")
AGAINST = click.option(
    "--against",
    multiple=True,
    metavar="LINK",
    help="Further link to compare with: vllm, vllm:lora (unmerged), onnx[:VARIANT], another model folder, or a "
    "server's URL. Repeatable.",
)
STRICT = click.option(
    "--strict/--no-strict", default=True, help="Exit with 1 when a gate fails (default), or only say so."
)


@click.command()
@click.option(
    "--merge",
    "sources",
    type=FOLDER,
    multiple=True,
    metavar="RUN|ADAPTER",
    help="Run folder of imod train, or a PEFT LoRA adapter folder. Repeatable: updates are added.",
)
@click.option("--weight", "weights", type=float, multiple=True, help="Of each --merge, in their order; default 1.")
@click.option("--out", type=FOLDER, help="Model folder to write.")
@BASE
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Of all weights; default the base's."
)
@click.option("--rounding", type=click.Choice(["nearest", "stochastic"]), default="nearest", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of stochastic rounding.")
@click.option("--max-shard-size", metavar="SIZE", help="Of a weight file, as 5GB; default the base's files.")
@click.option("--untie", is_flag=True, help="Give the head its own tensor if one of two tied embeddings changes.")
@click.option(
    "--unmerge", type=FOLDER, metavar="DIR", help="Write nothing: take the adapter out of DIR again, compare."
)
@PROBES
@AGAINST
@click.option("--no-parity", is_flag=True, help="Merge without the comparison.")
@click.option("--onnx", is_flag=True, help="Write OUT/onnx too, in transformers.js' layout.")
@click.option("--onnx-variants", metavar="fp16,int8,q4", help="Smaller forms of the graphs beside float32.")
@click.option("--model", type=FOLDER, help="In place of --merge: a model folder, for --onnx alone.")
@STRICT
@click.option("--push-to-hub", "push", metavar="OWNER/NAME", help="Upload the result to this model repository.")
def export(
    sources: tuple[Path, ...], weights: tuple[float, ...], out: Path | None, base: Path | None, unmerge: Path | None,
    max_shard_size: str | None, no_parity: bool, onnx: bool, onnx_variants: str | None, model: Path | None, **options,
) -> None:  # fmt: skip
    """Merge adapters into their base as a complete model folder, proven equal on real probes.

    Exit code 1 if merged and adapter-attached model differ: the folder is then kept as OUT.rejected, with its report.
    An interrupted merge goes on when the same command is run again.
    """
    variants = tuple(name.strip() for name in onnx_variants.split(",")) if onnx_variants else ()
    _check_words(sources, model, onnx, variants, bool(base or unmerge or options["dtype"]))
    _need("torch")
    if onnx:
        _need("onnx", "onnxscript", "onnxruntime")
    if not no_parity and not unmerge:
        _need("transformers", "peft", "matplotlib")
    with _loading():
        from imod_export.export import ExportSettings
        from imod_export.export import export as run

    settings = ExportSettings(
        parity=not no_parity, weights=weights, max_shard=_bytes(max_shard_size), onnx=variants if onnx else None,
        **options,
    )  # fmt: skip
    if unmerge:
        from imod_export.unmerge import unmerge as check

        check(sources, unmerge, base, settings)
    elif out is None:
        raise InputError("Neither --out nor --unmerge was given: say where the merged model goes.")
    elif model is not None:
        from imod_export.graphs import export_onnx_only

        export_onnx_only(model, out, settings)
    else:
        run(sources, out, base, settings)


def _check_words(
    sources: tuple[Path, ...], model: Path | None, onnx: bool, variants: tuple[str, ...], beside: bool
) -> None:
    if bool(sources) == (model is not None):
        raise InputError("Give one of --merge RUN|ADAPTER and --model DIR.")
    if model is not None and (not onnx or beside):
        raise InputError("--model takes a merged folder: use it with --onnx, without --base, --dtype and --unmerge.")
    if variants and not onnx:
        raise InputError("--onnx-variants names forms of ONNX graphs: add --onnx.")


@click.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option(
    "--merge", "sources", type=FOLDER, multiple=True, metavar="RUN|ADAPTER",
    help="Adapter in DIR; default what DIR's manifest names. Repeatable.",
)  # fmt: skip
@click.option("--weight", "weights", type=float, multiple=True, help="Of each --merge, in their order; default 1.")
@BASE
@AGAINST
@PROBES
@click.option("--out", type=FOLDER, help="Folder for parity.json and parity.html; default DIR/parity.")
@STRICT
def parity(folder: Path, strict: bool, **options) -> None:
    """Compare a merged folder with its adapter attached to its base, and with other ways to run it.

    Without --against: the ONNX graphs in DIR, and vLLM where it is installed.
    """
    _need("torch", "transformers", "peft", "matplotlib")
    from imod_export.standalone import compare

    compare(folder, strict=strict, **options)


@contextmanager
def _loading() -> Iterator[None]:
    """Load torch without looking for garbage: what is imported stays, and looking through it, while it is loaded and at
    the end once more, takes a third as long as loading it."""
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    yield
    gc.freeze()
    gc.enable()


def _need(*packages: str) -> None:
    from importlib.util import find_spec

    for package in packages:
        if find_spec(package) is None:
            raise MissingExtraError(package, "export")


def _bytes(size: str | None) -> int | None:
    """A size as people write it, in bytes.

    Raises:
        InputError: it is none.
    """
    if size is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", size.strip(), re.IGNORECASE)
    if not match or not float(match[1]):
        raise InputError(f"--max-shard-size is '{size}': expected a number and KB, MB or GB, as 5GB.")
    factor = (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " ")
    return max(1, int(float(match[1]) * factor))
