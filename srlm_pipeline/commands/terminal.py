"""Progress bars with rate and time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from srlm_pipeline.progress import LogProgress, Meter, ProgressReporter, Task

console = Console()


def terminal_reporter() -> ProgressReporter:
    """Return bars for a terminal; plain lines where output goes to a file."""
    return RichProgress(console) if console.is_terminal else LogProgress(lambda line: console.print("  " + line))


class RichProgress:
    """Shows each task as a bar that stays, finished, above the next one.

    Args:
        console: Where.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def task(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        """Start a bar; see `ProgressReporter.task`."""
        columns = (
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", justify="left"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}  {task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console) as progress:
            bar = progress.add_task(description, total=total, completed=done, unit=unit, rate="", note="")
            yield _Bar(progress, bar, Meter(total, done), unit)


class _Bar:
    def __init__(self, progress: Progress, bar: object, meter: Meter, unit: str) -> None:
        self._progress, self._bar, self._meter, self._unit = progress, bar, meter, unit

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._meter.advance(amount)
        rate = f"{self._meter.rate:.2f} {self._unit}/s"
        self._progress.update(self._bar, advance=amount, rate=rate, note=note)  # type: ignore[arg-type]
