"""`imod base build`: write a composed audio-visual-text base model."""

from pathlib import Path

import click

from imod_core.console import console
from imod_core.errors import InputError
from imod_core.families import BACKBONES, FAMILIES

PRESETS = ("smol", "tiny")


@click.group()
def base() -> None:
    """Build a base model: a composed audio-visual-text one, or a shrunken one of a family."""


@base.command()
@click.option("--preset", type=click.Choice(PRESETS), help="smol: real small parts; tiny: random, for tests.")
@click.option(
    "--shrunken", type=click.Choice([*FAMILIES, *BACKBONES]), metavar="FAMILY",
    help=f"A random model of a megabyte with a family's architecture and layout on the hub: "
    f"{', '.join(FAMILIES)}; or a language model alone for --llm: {', '.join(BACKBONES)}.",
)  # fmt: skip
@click.option("--llm", help="Hub id or folder of a causal LLM, in place of a preset's.")
@click.option("--vision", help="Hub id or folder of a vision encoder, in place of a preset's.")
@click.option("--audio", help="Hub id or folder of an audio encoder, in place of a preset's.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write; must not exist.")
@click.option("--seed", default=0, show_default=True, help="Of the projectors, and of all of tiny.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
def build(
    preset: str | None,
    shrunken: str | None,
    llm: str | None,
    vision: str | None,
    audio: str | None,
    out: Path,
    seed: int,
    dtype: str,
) -> None:
    """Compose an LLM, a vision tower and an audio tower into one model folder, or write a shrunken one."""
    if shrunken:
        if preset or llm or vision or audio:
            raise InputError("--shrunken is random throughout: use it without --preset, --llm, --vision and --audio.")
        from imod_core.families.shrunken import build_shrunken, write_shrunken

        if shrunken in BACKBONES:
            write_shrunken(BACKBONES[shrunken], out, seed)
        else:
            build_shrunken(FAMILIES[shrunken], out, seed)
        console.print(f"Shrunken {shrunken} written to {out}")
        return
    from imod_core.avt.build import build_base

    build_base(out, preset=preset, llm=llm, vision=vision, audio=audio, seed=seed, dtype=dtype)
    console.print(f"Base model written to {out}")
