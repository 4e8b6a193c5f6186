"""`imod demo`."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from imod_core.console import console
from imod_core.errors import ImodError, InputError

if TYPE_CHECKING:
    from imod_core.sampling import FrameSampling
    from imod_demo.examples import Example
    from imod_demo.talk import Target

LOOPBACK = ("127.0.0.1", "localhost", "::1")
FOLDER = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", metavar="[DIR]", type=FOLDER, required=False)
@click.option("--url", help="A server that speaks OpenAI's chat protocol, as `imod serve` starts it.")
@click.option("--model", help="Name of the model to ask; by default the first that the server lists.")
@click.option("--compare", metavar="URL|NAME", help="Ask another server, or another model of this one, the same thing.")
@click.option("--examples", type=FOLDER, help="A folder of `imod data scenes`; by default a few are rendered once.")
@click.option("--no-examples", is_flag=True, help="Offer none.")
@click.option("--frames", type=click.IntRange(1, 64), help="Frames that the model takes of a clip, if you know it.")
@click.option("--max-tokens", default=64, show_default=True, type=click.IntRange(1, 1024), help="Of an answer.")
@click.option("--api-key-file", type=FOLDER, help="The servers' key; or set IMOD_API_KEY.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where the page listens.")
@click.option("--port", default=7860, show_default=True, type=click.IntRange(1, 65535))
@click.option("--root-path", help="Path under which a reverse proxy shows the page, as /imod.")
def demo(
    folder: Path | None, url: str | None, model: str | None, compare: str | None, examples: Path | None,
    no_examples: bool, frames: int | None, max_tokens: int, api_key_file: Path | None, host: str, port: int,
    root_path: str | None,
) -> None:  # fmt: skip
    """A page on which anyone asks the model about pictures, sounds and clips.

    Give the address of a running server, or a merged model folder DIR, for which one is started and stopped.
    """
    from imod_core.sampling import FrameSampling
    from imod_demo.desk import Desk
    from imod_serve.key import read_api_key

    if (folder is None) == (url is None):
        raise InputError("Give either --url with a server's address or a model folder DIR.")
    key, shown = read_api_key(api_key_file), FrameSampling(frames) if frames else None
    signal.signal(signal.SIGTERM, _interrupt)
    with ExitStack() as stack:
        desk = Desk((), max_tokens=max_tokens)
        stack.callback(desk.shelf.clear)
        found, whose = ((), "") if no_examples else _examples(examples, desk.shelf.root / "examples")
        if folder is not None:
            targets = stack.enter_context(_served(folder, key, shown))
        else:
            targets = _targets(str(url), model, key, shown)
        targets, beside = _compared(targets, compare, key, shown)
        desk = replace(desk, targets=targets, beside=beside, examples=tuple(found), credits=whose)
        from imod_demo.app import launch  # gradio takes seconds to import: mistakes are told before

        page = launch(desk, host=host, port=port, root_path=root_path)
        stack.callback(page.close, verbose=False)
        if host not in LOOPBACK:
            console.print("The page has no password: whoever reaches this machine can ask and send files.")
        click.echo(f"The page is at http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}{root_path or ''}")
        _wait()


@contextmanager
def _served(folder: Path, key: str | None, frames: "FrameSampling | None") -> Iterator[tuple["Target", ...]]:
    """A server of our own for a model folder, and what its files tell of the model."""
    import json

    from imod_core.modality import media_token_ids
    from imod_demo.talk import Target
    from imod_serve.client import Client
    from imod_serve.launcher import Server

    with Server(folder, api_key=key) as server:
        config = json.loads((server.artifact.folder / "config.json").read_text(encoding="utf-8"))
        placeholders = media_token_ids(config) if server.artifact.modalities else None
        client = Client(server.url, server.name, server.api_key)
        yield (Target(server.name, client, frames or server.artifact.frames, placeholders),)


def _targets(url: str, model: str | None, key: str | None, frames: "FrameSampling | None") -> tuple["Target", ...]:
    """The models that a server lists, `model` first; the server may be down for now."""
    from imod_demo.talk import Target
    from imod_serve.client import Client

    first = Client(url, model, key)
    try:
        listed = list(first.models)
    except InputError:
        raise
    except ImodError as error:
        console.print(f"{error} The page asks as soon as there is one.")
        return (Target(model or url, first, frames),)
    if model is not None and model not in listed:
        raise InputError(f"The server at {url} has no model {model}: it lists {', '.join(listed) or 'none'}.")
    names = [*([model] if model else []), *(name for name in listed if name != model)]
    if not names:
        raise InputError(f"The server at {url} lists no model.")
    return tuple(Target(name, Client(url, name, key), frames) for name in names)


def _compared(
    targets: tuple["Target", ...], compare: str | None, key: str | None, frames: "FrameSampling | None"
) -> tuple[tuple["Target", ...], "Target | None"]:
    """All models on offer, and the one that is asked beside the first."""
    if compare is None:
        return targets, None
    if compare.startswith(("http://", "https://")):
        theirs = _targets(compare, None, key, frames)
        taken = {target.label for target in targets}
        there = compare.split("://", 1)[1].rstrip("/")
        theirs = tuple(
            replace(target, label=f"{target.label} at {there}") if target.label in taken else target
            for target in theirs
        )
        return (*targets, *theirs), theirs[0]
    beside = next((target for target in targets if target.label == compare), None)
    if beside is None:
        names = ", ".join(target.label for target in targets)
        raise InputError(f"--compare is {compare}: expected an address or one of the models {names}.")
    return targets, beside


def _examples(folder: Path | None, shelf: Path) -> "tuple[Sequence[Example], str]":
    """Examples, and whose work they are."""
    from imod_demo.examples import credits_of, examples_from, rendered

    found = folder or rendered()
    return (examples_from(found, shelf), credits_of(found)) if found else ((), "")


def _wait() -> None:
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print("Stopped.")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
