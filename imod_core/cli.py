"""The `imod` command: a lazy click group, so that `imod --help` imports neither torch nor transformers.

Each subcommand lives in the package that owns its noun; this file only knows where, and one line about it.
"""

import importlib
import logging
import sys

import click

from imod_core import __version__
from imod_core.errors import ImodError, MissingExtraError

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # tells on CPUs, whenever PEFT is imported, of faster kernels

COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("imod_core.quickstart:quickstart", "Run the whole road on the embedded data."),
    "base": ("imod_core.base_cli:base", "Build a composed audio-visual-text base model."),
    "data": ("imod_core.data_cli:data", "Render the embedded scenes, convert other datasets."),
    "train": ("imod_train.cli:train", "Train a LoRA or IMoD adapter from a recipe."),
    "export": ("imod_export.cli:export", "Merge an adapter into its base, as ONNX too, with a parity report."),
    "parity": ("imod_export.cli:parity", "Compare a merged folder with its adapter, ONNX graphs and vLLM."),
    "doctor": ("imod_export.doctor.cli:doctor", "Look over a model or adapter folder before it is served."),
    "serve": ("imod_serve.cli:serve", "Serve a merged folder with vLLM."),
    "ask": ("imod_serve.cli:ask", "Ask a server or a folder about a picture, a sound or a clip."),
    "demo": ("imod_demo.cli:demo", "Open a page that asks about pictures, sounds and clips."),
    "eval": ("imod_eval.cli:evaluate", "Predict on a sample file and score the answers."),
    "families": ("imod_eval.families.table:families", "Every model family down the whole road, on shrunken models."),
}

EXTRA_OF = {
    "torch": "train",
    "transformers": "train",
    "peft": "train",
    "timm": "train",
    "accelerate": "train",
    "bitsandbytes": "qlora",
    "matplotlib": "export",
    "gguf": "train",
    "vllm": "serve",
    "openai": "client",
    "gradio": "demo",
    "starlette": "demo",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "onnx",
    "tokenizers": "onnx",
    "jinja2": "onnx",
    "resvg_py": "scenes",
    "midirenderer": "scenes",
}
"""Which extra brings a package that a command may miss."""


class LazyGroup(click.Group):
    """A click group that imports a subcommand only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name][0].split(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="imod")
def imod() -> None:
    """Fine-tune a multimodal LLM with IMoD, merge it, prove it, serve it, ask it."""


def main() -> None:
    """Run the command; a user's mistake ends in one sentence and exit code 1 or 2, never in a traceback."""
    try:
        imod(standalone_mode=False)
    except click.exceptions.Abort:
        print("Interrupted; what was finished is kept.", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print("Interrupted; what was finished is kept.", file=sys.stderr)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if error.name not in EXTRA_OF:
            raise
        print(f"imod: {MissingExtraError(error.name, EXTRA_OF[error.name])}", file=sys.stderr)
        sys.exit(2)
    except ImodError as error:
        print(f"imod: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"imod: {error.filename} cannot be used ({error.strerror}): give another path.", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
