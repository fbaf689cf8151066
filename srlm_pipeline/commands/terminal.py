"""What is printed to a terminal: never the control sequences of others, and progress bars with rate and time left.

What models, servers and data files say may hold escape sequences, which a terminal obeys: they move the cursor, change
the title, write to the clipboard.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment

from srlm_pipeline.progress import LogProgress, Meter, ProgressReporter, Task

# ECMA-48: control sequences (CSI ... final byte), control strings (OSC, DCS, SOS, PM, APC ... ST, or BEL as xterm has
# it), other escape sequences; each also with its introducer as one character of C1.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
_CONTROLS = dict.fromkeys([*(c for c in range(32) if chr(c) not in "\n\t"), *range(127, 160)])


def without_controls(text: str) -> str:
    """Return a text without escape sequences, and without any control character but line ends and tabs."""
    return _SEQUENCES.sub("", text).translate(_CONTROLS)


class PlainTextConsole(Console):
    """A console that obeys nobody but the program: whatever is printed loses the control sequences in its text."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as `Console` does; its own control codes are kept apart from texts, and stay."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            if control is None:
                link = style.link if style is not None else None
                if style is not None and link is not None and link != without_controls(link):
                    style = style.update_link(None)
                yield Segment(without_controls(text), style)
            else:
                yield segment


console = PlainTextConsole()


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

    def advance(self, amount: int = 1, note: str = "", found: int = 0) -> None:
        self._meter.advance(amount, found)
        if found:
            # The bar's own speed, and with it the time left, begin anew.
            self._progress.reset(self._bar, completed=self._meter.done)  # type: ignore[arg-type]
            amount = 0
        rate = f"{self._meter.rate:.2f} {self._unit}/s" if self._meter.done_now else ""
        self._progress.update(self._bar, advance=amount, rate=rate, note=note)  # type: ignore[arg-type]

    def within(self, note: str) -> None:
        self._progress.update(self._bar, note=note)  # type: ignore[arg-type]
