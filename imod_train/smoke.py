"""`imod train RECIPE --smoke`: the recipe's whole road in minutes, on a shrunken model of its family and drawn scenes.

Everything but size is the recipe's: method, adapter, targets, stages and what they train, precision, quantisation. The
steps are the commands that a user runs, one after the other in this process:

    base, scenes -> imod train -> imod export --merge (with parity) -> imod doctor -> vLLM, in a process or over HTTP
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from imod_core.artifacts import write_text
from imod_core.console import console
from imod_core.errors import CheckFailed, InputError
from imod_core.modality import modalities
from imod_core.samples import KINDS, MEDIA_KEYS, Message, Sample, read_samples, write_samples
from imod_train.recipe import MediaSettings, Recipe, Stage

STEPS = 4
BATCH, MICRO_BATCH = 4, 2
FRAMES = 4
PIXELS = 56 * 56
SAMPLES = 12
SCENES = ("--parts=drawn", "--clips=5", "--val-clips=1", "--test-clips=1", "--unseen-clips=1", "--workers=1")
READY = " is ready at "
"""What `imod serve` prints between the model's name and the URL."""


def try_road(recipe: Recipe, out: Path, serving: str = "vllm") -> None:
    """Take a recipe through all steps in the new folder `out`, a printed line each.

    Args:
        recipe: any with a `family`.
        out: keeps what the steps made.
        serving: `vllm` in a process of its own, `http` for a server, or `none`.

    Raises:
        ImodError: the first step that fails, with its exit code.
    """
    family = _family(recipe)
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} exists and is not empty: give another --out for a trial.")
    out.mkdir(parents=True, exist_ok=True)
    run, merged = out / "run", out / "merged"
    _step("base", lambda: _build(family, out / "base"))
    _step("scenes", lambda: _scenes(out))
    _step("recipe", lambda: _small(recipe, out))
    _step("train", lambda: _train(out / "recipe.yaml", run))
    _step("export and parity", lambda: _export(run, merged))
    _step("doctor", lambda: _imod("doctor", merged))
    if serving == "vllm":
        _step("vLLM", lambda: _compare(merged, "vllm", out / "parity-vllm"))
    if serving == "http":
        _step("server", lambda: _ask_server(merged, out))
    print(f"The recipe's road is whole: {out}")


def _step(name: str, work: Callable[[], str | None]) -> None:
    started = time.monotonic()
    found = work()
    print(f"{name}: {found or 'done'} ({time.monotonic() - started:.0f} s)", flush=True)


def _family(recipe: Recipe) -> str:
    from imod_core.families import FAMILIES

    if recipe.family not in FAMILIES:
        names = ", ".join(FAMILIES)
        raise InputError(f"The recipe's 'family' is {recipe.family!r}; for --smoke it must be one of {names}.")
    return recipe.family


def _build(family: str, out: Path) -> str:
    """A random model of the family's architecture, a few megabytes."""
    _imod("base", "build", "--shrunken", family, "--out", out)
    return f"a shrunken {family}"


def _scenes(out: Path) -> str:
    """Drawn scenes, with those media alone that the model takes."""
    _imod("data", "scenes", "--out", out / "scenes", *SCENES)
    taken = set(modalities(json.loads((out / "base/config.json").read_text())))
    for name in ("train", "captions"):
        samples = [_limited(sample, taken) for sample in read_samples(out / f"scenes/{name}.jsonl")]
        write_samples(out / f"{name}.jsonl", [s for s in samples if s.images or s.audios or s.videos][:SAMPLES])
    return f"questions with {', '.join(sorted(taken))}"


def _limited(sample: Sample, taken: set[str]) -> Sample:
    """A sample without the media that a model does not take."""
    dropped = [tag for tag, kind in KINDS.items() if kind not in taken]
    messages = sample.messages
    for tag in dropped:
        messages = tuple(Message(m.role, m.content.replace(tag, "")) for m in messages)
    emptied: dict[str, Any] = {MEDIA_KEYS[tag]: () for tag in dropped}
    return replace(sample, messages=messages, **emptied)


def _small(recipe: Recipe, out: Path) -> str:
    """The recipe for the shrunken model and a few steps."""
    native = all("projectors" not in stage.train for stage in recipe.stages)
    small = replace(
        recipe,
        base=str(out / "base"),
        stages=tuple(_small_stage(stage, out) for stage in recipe.stages),
        media=_small_media(recipe.media) if native else recipe.media,
        state_cache=None,
        workers=0,
    )
    write_text(out / "recipe.yaml", small.to_yaml())
    return f"{STEPS} steps a stage"


def _small_stage(stage: Stage, out: Path) -> Stage:
    data = "train" if "adapter" in stage.train else "captions"
    return replace(
        stage, data=(str(out / f"{data}.jsonl"),), steps=STEPS, epochs=None, batch_size=BATCH,
        micro_batch_size=MICRO_BATCH, log_steps=1, save_steps=STEPS,
    )  # fmt: skip


def _small_media(media: MediaSettings) -> MediaSettings:
    """Limits where the recipe sets some."""
    return replace(
        media,
        video_frames=FRAMES,
        image_pixels=media.image_pixels and PIXELS,
        video_pixels=media.video_pixels and PIXELS,
    )


def _train(recipe: Path, run: Path) -> str:
    _imod("train", recipe, "--out", run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    if not all(abs(loss) < float("inf") for loss in losses):
        raise CheckFailed(f"The loss of {run} is not finite: {losses}.")
    return f"loss {losses[0]:.3g} at first, {losses[-1]:.3g} at last"


def _export(run: Path, merged: Path) -> str:
    _imod("export", "--merge", run, "--out", merged)
    report = json.loads((merged / "parity/parity.json").read_text())
    return f"merged equals attached: {report['passed']}"


def _compare(merged: Path, link: str, out: Path) -> str:
    _imod("parity", merged, "--against", link, "--out", out)
    report = json.loads((out / "parity.json").read_text())
    return f"equal: {report['passed']}"


def _ask_server(merged: Path, out: Path) -> str:
    """Start the server, compare its answers, stop it."""
    words = ["serve", str(merged), "--port", "0", "--log", str(out / "server.log")]
    # The comparison sends IMOD_API_KEY alone.
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_API_KEY"}
    server = subprocess.Popen(
        [sys.executable, "-m", "imod_core.cli", *words], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert server.stdout is not None
        line = next((line for line in server.stdout if READY in line), None)
        if line is None:
            raise CheckFailed(f"The server of {merged} ended before it was ready, see {out / 'server.log'}.")
        return _compare(merged, line.rsplit(READY, 1)[1].strip(), out / "parity-server")
    finally:
        server.terminate()
        server.wait()


def _imod(*words: Any) -> None:
    """Run an `imod` command in this process; its errors are this command's."""
    from imod_core.cli import imod

    console.print(f"$ imod {' '.join(map(str, words))}", style="bold")
    imod([str(word) for word in words], standalone_mode=False)
