"""`imod data`: render the embedded scenes, convert other datasets to sample files."""

import os
from pathlib import Path

import click

from imod_core.console import console


@click.group()
def data() -> None:
    """Render the embedded scenes, convert other datasets."""


@data.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option("--clips", default=1500, show_default=True, help="Clips of the training split.")
@click.option("--val-clips", default=40, show_default=True, help="Clips of the validation split.")
@click.option("--test-clips", default=190, show_default=True, help="Clips of the test split.")
@click.option("--unseen-clips", default=190, show_default=True, help="Clips of the split in an unseen style.")
@click.option("--questions", default=3, show_default=True, help="Questions a clip, training apart.")
@click.option("--train-questions", default=6, show_default=True, help="Questions a training clip.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same bytes.")
@click.option(
    "--parts",
    type=click.Choice(["real", "drawn"]),
    default="real",
    show_default=True,
    help="real: drawings and sampled instruments from package registries; drawn: shapes and tones, offline.",
)
@click.option("--workers", default=os.cpu_count() or 1, show_default="one a core", help="Rendering processes.")
def scenes(
    out: Path, clips: int, val_clips: int, test_clips: int, unseen_clips: int,
    questions: int, train_questions: int, seed: int, parts: str, workers: int,
) -> None:  # fmt: skip
    """Make the embedded audio-visual question set: clips, questions of nine types, captions."""
    from imod_core.scenes.dataset import build_scenes
    from imod_core.scenes.plan import ScenesSettings

    settings = ScenesSettings(clips, val_clips, test_clips, unseen_clips, questions, train_questions, seed, parts)
    print(build_scenes(out, settings, workers))


@data.command()
@click.argument("format_name", metavar="FORMAT", type=click.Choice(["music-avqa", "llava"]))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--media", type=click.Path(path_type=Path), required=True, help="Folder of the media files.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Sample file (JSONL) to write.")
@click.option("--skip-missing", is_flag=True, help="Leave out rows whose media is not there.")
def convert(format_name: str, file: Path, media: Path, out: Path, skip_missing: bool) -> None:
    """Convert FILE, in its official FORMAT (music-avqa or llava), to a sample file."""
    from imod_core.convert import convert_llava, convert_music_avqa

    convert_format = {"music-avqa": convert_music_avqa, "llava": convert_llava}[format_name]
    result = convert_format(file, media, out, skip_missing)
    if result.skipped:
        console.print(f"Skipped {result.skipped} of {result.skipped + result.written} rows without media.")
    print(f"{result.written} samples in {out}")
