"""`imod serve` and `imod ask`."""

import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from imod_core.errors import ImodError, InputError, MissingFileError
from imod_serve.key import read_api_key

if TYPE_CHECKING:
    from imod_serve.local import LocalModel
    from imod_serve.local_onnx import OnnxLocal

URL = "http://127.0.0.1:8000"
"""Where `imod serve` listens and `imod ask` asks if nothing else is said."""
DTYPES = ("float32", "bfloat16", "float16")
FILE = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[DIR] [-- VLLM FLAGS]")
@click.option("--lora", type=FILE, metavar="RUN|ADAPTER", help="Serve this unmerged; DIR is its base, if not recorded.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Other than loopback needs an API key.")
@click.option("--port", default=8000, show_default=True, help="0 chooses a free one.")
@click.option("--name", help="The model's name in requests; by default the folder's.")
@click.option("--api-key-file", type=FILE, help="Or set IMOD_API_KEY.")
@click.option("--dtype", type=click.Choice(DTYPES), help="Instead of the folder's.")
@click.option("--max-model-len", type=click.IntRange(min=1), help="Tokens of prompt and answer together.")
@click.option("--limit", "limits", multiple=True, metavar="NAME=N", help="Of a request: video_seconds=60.")
@click.option("--allow-media-domain", "domains", multiple=True, help="Fetch media from there; repeatable.")
@click.option("--log", type=FILE, help="Where vLLM's output goes; - passes it on to stderr.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--timeout", default=1800.0, show_default=True, help="Seconds to wait until it is ready.")
@click.option("--probe/--no-probe", default=True, show_default=True, help="Ask test questions before ready.")
@click.option("--restart", default=0, show_default=True, type=click.IntRange(min=0), help="Times in a row if it dies.")
def serve(
    words: tuple[str, ...], lora: Path | None, api_key_file: Path | None, limits: tuple[str, ...], log_format: str,
    restart: int, **options: Any,
) -> None:  # fmt: skip
    """Serve a merged model folder, or an adapter beside its base, with vLLM.

    vLLM gets the flags that the folder calls for; flags after -- are added and win over those. With --headless among
    them this is a further host of a server over several. The names that --limit takes are listed in
    docs/threat-model.md and in the sentence that refuses another.
    """
    from imod_serve.notes import fail, use_json

    use_json(log_format == "json")
    try:
        _serve(words, api_key_file, limits, json_logs=log_format == "json", adapter=lora, restarts=restart, **options)
    except ImodError as error:
        if log_format != "json":
            raise
        fail(str(error))
        sys.exit(error.exit_code)


def _serve(words: tuple[str, ...], api_key_file: Path | None, limits: tuple[str, ...], **options: Any) -> None:
    from imod_serve.flags import HEADLESS
    from imod_serve.launcher import Server
    from imod_serve.limits import Limits
    from imod_serve.notes import note

    folder = words[0] if words and not words[0].startswith("-") else None
    key, limited, extra = read_api_key(api_key_file), Limits().changed(limits), words[1:] if folder else words
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        server = Server(folder, api_key=key, limits=limited, extra=extra, **options)
        note("vllm serve " + " ".join(server.flags), flags=server.flags)
        if HEADLESS in extra:
            server.become_engines()
        with server:
            click.echo(f"{server.name} is ready at {server.url}")
            server.wait()
    except KeyboardInterrupt:
        note("Stopped.")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("question")
@click.option("--image", "images", multiple=True, type=FILE, help="A picture; repeatable.")
@click.option("--audio", "audios", multiple=True, type=FILE, help="A sound; repeatable.")
@click.option("--video", "videos", multiple=True, type=FILE, help="A video; repeatable.")
@click.option("--url", help=f"The server to ask, by default {URL}.")
@click.option("--model", type=FILE, help="Answer from this model or onnx folder, without a server.")
@click.option("--variant", type=click.Choice(["fp32", "fp16", "int8", "q4"]), help="Form of the ONNX graphs to use.")
@click.option("--mute", is_flag=True, help="Leave out the videos' sound tracks.")
@click.option("--max-tokens", default=64, show_default=True, type=click.IntRange(min=1))
@click.option("--api-key-file", type=FILE, help="Or set IMOD_API_KEY.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer with its token counts as JSON.")
def ask(
    question: str,
    images: tuple[Path, ...],
    audios: tuple[Path, ...],
    videos: tuple[Path, ...],
    url: str | None,
    model: Path | None,
    variant: str | None,
    mute: bool,
    max_tokens: int,
    api_key_file: Path | None,
    as_json: bool,
) -> None:
    """Ask a running server, or a model folder, about pictures, sounds and videos.

    <image>, <audio> and <video> in the question say where the media belong; without them they come first.
    """
    from imod_serve.client import Client

    if url and model:
        raise InputError("--url and --model were both given: ask either a server or a folder.")
    target = _local(model, variant) if model else Client(url or URL, api_key=read_api_key(api_key_file))
    answer = target.ask(question, images, audios, videos, mute=mute, max_tokens=max_tokens)
    if not as_json:
        click.echo(answer.text.strip())
        return
    counts = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
    click.echo(json.dumps({"answer": answer.text, **counts}, ensure_ascii=False))


def _local(folder: Path, variant: str | None) -> "LocalModel | OnnxLocal":
    """The folder's ONNX graphs if it is an onnx folder or a variant of them is named, else its weights."""
    from imod_serve.local_onnx import OnnxLocal, find_onnx

    graphs = find_onnx(folder, variant)
    if graphs:
        return OnnxLocal(graphs, variant)
    if variant:
        raise MissingFileError(f"{folder} holds no ONNX graphs: write them with `imod export --model {folder} --onnx`.")
    from imod_serve.local import LocalModel

    return LocalModel(folder)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
