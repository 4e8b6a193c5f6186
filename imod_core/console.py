"""What a user sees on the terminal: one console on stderr for progress and notes, results on stdout."""

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")

console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


class RateColumn(ProgressColumn):
    """Items a second, as rich has it only for bytes."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="progress.data.speed")


def progress() -> Progress:
    """A progress display with count, rate and remaining time; silent lines only when stderr is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `items` with a progress bar; without a terminal, a line at the start and at each tenth."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if not console.is_terminal:
        yield from _announce(items, label, total)
        return
    with progress() as bar:
        yield from bar.track(items, total=total, description=label)


def _announce(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    console.print(f"{label}: {total if total is not None else '?'} to do")
    tenth = max(1, (total or 0) // 10)
    for done, item in enumerate(items, start=1):
        yield item
        if total and done % tenth == 0:
            console.print(f"{label}: {done} of {total}")
