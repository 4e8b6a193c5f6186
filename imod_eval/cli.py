"""`imod eval`: answers of a model folder or a server on a sample file, and their accuracy by question type."""

import sys
from pathlib import Path

import click

from imod_core.errors import InputError, MissingFileError
from imod_eval.prediction import CONDITIONS

FILE = click.Path(path_type=Path)


@click.command("eval")
@click.argument("samples", type=FILE)
@click.option("--model", type=FILE, help="Merged model folder to ask, in this process.")
@click.option("--url", help="Server to ask, in place of a folder.")
@click.option(
    "--media", "conditions", type=click.Choice(CONDITIONS), multiple=True, help="Repeatable; as_is if not given."
)
@click.option("--out", type=FILE, help="Folder for predictions and scores.json; repeated, the command goes on there.")
@click.option("--train", "training", type=FILE, help="Training samples, for the accuracy of guessing the majority.")
@click.option("--limit", type=click.IntRange(min=1), help="Ask only this many, spread evenly over the file.")
@click.option("--states", type=FILE, help="Folder of AVT's cached tower states; beside SAMPLES if not given.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="bfloat16", show_default=True)
def evaluate(
    samples: Path,
    model: Path | None,
    url: str | None,
    conditions: tuple[str, ...],
    out: Path | None,
    training: Path | None,
    limit: int | None,
    states: Path | None,
    dtype: str,
) -> None:
    """Answer the questions of SAMPLES and score the answers, with the media as they are or taken away.

    AVT answers in batches from cached tower states, other models one question after the other. An answer is right if it
    is the same words as the true one, case and a closing full stop aside.
    """
    from imod_core.artifacts import ready_folder
    from imod_core.samples import read_samples
    from imod_serve.artifact import read_artifact

    conditions = conditions or ("as_is",)
    if (model is None) == (url is None):
        raise InputError("Give one of --model DIR and --url URL to ask.")
    if url and conditions != ("as_is",):
        raise InputError("--media takes media away in this process: use it with --model, not with --url.")
    questions = read_samples(samples)
    if limit and limit < len(questions):
        questions = [questions[i * len(questions) // limit] for i in range(limit)]
    unanswered = next((s.id for s in questions if s.answer is None), None)
    if unanswered is not None:
        raise InputError(
            f"The sample '{unanswered}' of {samples} has no true answer: the assistant's turn must come last."
        )
    if model and not (model / "config.json").is_file():
        raise MissingFileError(f"{model} is no model folder (no config.json): give the folder that imod export wrote.")
    towers = model is not None and read_artifact(model).model_type == "avt"
    states = (states or samples.parent / "states") if towers else None
    if states and not states.is_dir():
        ready_folder(states, "--states")
    if out:
        ready_folder(out, "--out")
    from imod_eval.evaluation import Evaluation

    evaluation = Evaluation(questions, read_samples(training) if training else [], out, samples.stem)
    try:
        if url:
            evaluation.ask_server(url)
        else:
            assert model
            evaluation.ask_folder(model, states, dtype, conditions)
    except KeyboardInterrupt:
        if out:
            raise
        print("Interrupted; without --out no answer is kept.", file=sys.stderr)
        sys.exit(130)
    evaluation.write()
    evaluation.print(samples.name)
