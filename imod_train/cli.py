"""`imod train`: a recipe to a run folder with a plain LoRA adapter; or what it will take; or a trial of its road."""

import re
from pathlib import Path

import click

from imod_core.console import console
from imod_core.errors import InputError

SERVING = ("vllm", "http", "none")


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Run folder to write.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a key, e.g. lora.rank=8.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run in --out.")
@click.option("--plan", is_flag=True, help="Train nothing: tell memory, tokens, steps and time.")
@click.option("--memory", metavar="SIZE", help="With --plan: exit code 1 if so much, as 24GB, does not suffice.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), help="With --plan: where it will run; default here.")
@click.option(
    "--smoke", is_flag=True, help="Try the whole road in minutes, on a shrunken model of the family and drawn scenes."
)
@click.option(
    "--serving", type=click.Choice(SERVING), default="vllm", show_default=True,
    help="With --smoke: ask vLLM in a process of its own, a server over HTTP, or neither.",
)  # fmt: skip
def train(
    recipe: Path, out: Path | None, changes: tuple[str, ...], resume: bool, plan: bool, memory: str | None,
    device: str | None, smoke: bool, serving: str,
) -> None:  # fmt: skip
    """Train a LoRA or IMoD adapter from a recipe."""
    from imod_train.recipe import read_recipe

    if (memory or device) and not plan:
        raise InputError("--memory and --device belong to --plan: add it.")
    settings = read_recipe(recipe, changes)
    if plan:
        from imod_train.plan import make_plan, show_plan

        show_plan(make_plan(settings, device), _bytes(memory) if memory else None)
        return
    if out is None:
        raise InputError("No --out was given: say where the run goes, or ask for the --plan alone.")
    if smoke:
        from imod_train.smoke import try_road

        try_road(settings, out, serving)
        return
    from imod_train.run import train as run

    try:
        run(settings, out, resume)
    except KeyboardInterrupt:
        console.print(f"Interrupted: the same command with --resume goes on from the last checkpoint in {out}.")
        raise


def _bytes(text: str) -> int:
    """A size as people write it, 24GB or 80GiB, in bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MGT])(i?)B?", text.strip(), re.IGNORECASE)
    if not match:
        raise InputError(f"--memory is '{text}': expected a number and MB, GB or GiB, as 24GB.")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper()))
