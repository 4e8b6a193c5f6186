"""`imod train`: a recipe to a run folder with a plain LoRA adapter."""

from pathlib import Path

import click

from imod_core.console import console


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder to write.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a key, e.g. stages.tune.steps=20.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run in --out.")
def train(recipe: Path, out: Path, changes: tuple[str, ...], resume: bool) -> None:
    """Train a LoRA or IMoD adapter from a recipe."""
    from imod_train.recipe import read_recipe

    settings = read_recipe(recipe, changes)
    from imod_train.run import train as run

    try:
        run(settings, out, resume)
    except KeyboardInterrupt:
        console.print(f"Interrupted: the same command with --resume goes on from the last checkpoint in {out}.")
        raise
