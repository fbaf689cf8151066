"""Progress with rate and time left, for whoever watches: a terminal bar or log lines.

Core stages take a `ProgressReporter` and never know where their progress is shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol


class Task(Protocol):
    """One running piece of long work."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Report that so many units are done; `note` is shown beside them."""
        ...


class ProgressReporter(Protocol):
    """Opens tasks; each is closed when its ``with`` block ends."""

    def task(self, description: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Task]:
        """Start showing a task of `total` units, `done` of which were finished before."""
        ...


@dataclass
class Meter:
    """Counts units and computes rate and time left.

    Attributes:
        total: Units in all.
        done: Units finished, those of an earlier run included.
    """

    total: int
    done: int = 0
    clock: Callable[[], float] = time.monotonic
    _started: float = field(init=False)
    _done_before: int = field(init=False)

    def __post_init__(self) -> None:
        self._started = self.clock()
        self._done_before = self.done

    def advance(self, amount: int) -> None:
        """Count finished units."""
        self.done += amount

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.clock() - self._started

    @property
    def rate(self) -> float:
        """Units per second of this run."""
        return self.done_now / max(self.elapsed, 1e-9)

    @property
    def done_now(self) -> int:
        """Units finished by this run."""
        return self.done - self._done_before

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds to the end; None before the first unit."""
        return (self.total - self.done) / self.rate if self.done_now else None


class LogProgress:
    """Writes a line at the start, at the end, and every few seconds between.

    Args:
        write: Takes one line, e.g. ``context.log.info``.
        every: Seconds between lines.
    """

    def __init__(self, write: Callable[[str], None], every: float = 15.0) -> None:
        self._write = write
        self._every = every

    @contextmanager
    def task(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        """Start a task; see `ProgressReporter.task`."""
        running = _LoggedTask(description, unit, Meter(total, done), self._write, self._every)
        if done:
            self._write(f"{description}: continuing, {done} of {total} {unit} were finished before")
        yield running
        running.close()


class _LoggedTask:
    def __init__(self, description: str, unit: str, meter: Meter, write: Callable[[str], None], every: float) -> None:
        self._description, self._unit, self._meter = description, unit, meter
        self._write, self._every = write, every
        self._last = 0.0

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._meter.advance(amount)
        if self._meter.elapsed - self._last >= self._every:
            self._last = self._meter.elapsed
            left = self._meter.seconds_left
            eta = f", {_duration(left)} left" if left is not None else ""
            self._line(f"{self._meter.done}/{self._meter.total} {self._unit}, {self._rate()}{eta}{_suffix(note)}")

    def close(self) -> None:
        meter = self._meter
        if meter.done and not meter.done_now:
            return  # that all was finished before has been said
        resumed = f", {meter.done_now} of them now" if meter.done_now < meter.done else ""
        self._line(f"{meter.done} {self._unit}{resumed} in {_duration(meter.elapsed)}, {self._rate()}")

    def _rate(self) -> str:
        return f"{self._meter.rate:.2f} {self._unit}/s"

    def _line(self, text: str) -> None:
        self._write(f"{self._description}: {text}")


class NullProgress:
    """Shows nothing; for tests and notebooks."""

    @contextmanager
    def task(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        """Start a task that nobody sees."""
        yield _NullTask()


class _NullTask:
    def advance(self, amount: int = 1, note: str = "") -> None:
        pass


def _suffix(note: str) -> str:
    return f" ({note})" if note else ""


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


class TeeProgress:
    """Shows the same work in several places.

    Args:
        reporters: Where.
    """

    def __init__(self, *reporters: ProgressReporter) -> None:
        self._reporters = reporters

    @contextmanager
    def task(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        """Start the task everywhere; see `ProgressReporter.task`."""
        with ExitStack() as stack:
            yield _TeeTask([stack.enter_context(r.task(description, total, unit, done)) for r in self._reporters])


class _TeeTask:
    def __init__(self, tasks: list[Task]) -> None:
        self._tasks = tasks

    def advance(self, amount: int = 1, note: str = "") -> None:
        for task in self._tasks:
            task.advance(amount, note)


_terminal: ProgressReporter | None = None


def show_in_terminal(reporter: ProgressReporter | None) -> None:
    """Name the terminal's reporter: work that the command line starts in its own process shows bars there."""
    global _terminal
    _terminal = reporter


def terminal_progress() -> ProgressReporter | None:
    """Return the terminal's reporter, if the command line has named one."""
    return _terminal
