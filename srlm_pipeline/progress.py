"""Progress with rate and time left, for whoever watches: a terminal bar or log lines.

Core stages take a `ProgressReporter` and never know where their progress is shown. What takes long before a unit is
done says meanwhile how far it is: a stage by `Task.within`, an engine by `say`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol


class Task(Protocol):
    """One running piece of long work."""

    def advance(self, amount: int = 1, note: str = "", found: int = 0) -> None:
        """Report that so many units are done; `note` is shown beside them.

        Of the units `found` had been finished before: they say nothing of the speed.
        """
        ...

    def within(self, note: str) -> None:
        """Report how far the work on the next units is."""
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

    def advance(self, amount: int, found: int = 0) -> None:
        """Count finished units, some of which an earlier run may have finished."""
        self.done += amount
        self._done_before += found

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
    def done_before(self) -> int:
        """Units finished by earlier runs."""
        return self._done_before

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
        self._said_before = meter.done

    def advance(self, amount: int = 1, note: str = "", found: int = 0) -> None:
        self._meter.advance(amount, found)
        self._show(note)

    def within(self, note: str) -> None:
        self._show(note)

    def close(self) -> None:
        meter = self._meter
        if meter.done and not meter.done_now:
            if meter.done_before > self._said_before:
                self._line(f"all {meter.done} {self._unit} were finished before")
            return
        resumed = f", {meter.done_now} of them now" if meter.done_now < meter.done else ""
        self._line(f"{meter.done} {self._unit}{resumed} in {_duration(meter.elapsed)}, {self._rate()}")

    def _show(self, note: str) -> None:
        if self._meter.elapsed - self._last < self._every:
            return
        self._last = self._meter.elapsed
        before = self._meter.done_before
        facts = [f"{self._meter.done}/{self._meter.total} {self._unit}"]
        if before > self._said_before:
            facts.append(f"{before} of them finished before")
        left = self._meter.seconds_left
        # Before the first unit is done there is no speed to tell.
        if left is not None:
            facts += [self._rate(), f"{_duration(left)} left"]
        self._line(", ".join(facts) + _suffix(note))

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
    def advance(self, amount: int = 1, note: str = "", found: int = 0) -> None:
        pass

    def within(self, note: str) -> None:
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

    def advance(self, amount: int = 1, note: str = "", found: int = 0) -> None:
        for task in self._tasks:
            task.advance(amount, note, found)

    def within(self, note: str) -> None:
        for task in self._tasks:
            task.within(note)


class PartOf:
    """Shows work on the next units of a task as notes beside it.

    Args:
        task: To which the work belongs.

    Attributes:
        found_all: Whether all of the latest work had been finished before.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self.found_all = False

    @contextmanager
    def task(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        """Start a piece of work; see `ProgressReporter.task`."""
        self.found_all = done == total
        yield _Part(self._task, Meter(total, done), unit)


class _Part:
    def __init__(self, task: Task, meter: Meter, unit: str) -> None:
        self._task, self._meter, self._unit = task, meter, unit

    def advance(self, amount: int = 1, note: str = "", found: int = 0) -> None:
        self._meter.advance(amount, found)
        self.within(note)

    def within(self, note: str) -> None:
        self._task.within(f"next: {self._meter.done}/{self._meter.total} {self._unit}" + (f", {note}" if note else ""))


_listener: ContextVar[Task | None] = ContextVar("listener", default=None)


@contextmanager
def listening(task: Task) -> Iterator[None]:
    """Let a task hear what is said, in this thread, within the block."""
    before = _listener.set(task)
    try:
        yield
    finally:
        _listener.reset(before)


def say(note: str) -> None:
    """Say how far the work is, to the task that listens; for what knows no task, as engines do."""
    task = _listener.get()
    if task is not None:
        task.within(note)


_terminal: ProgressReporter | None = None


def show_in_terminal(reporter: ProgressReporter | None) -> None:
    """Name the terminal's reporter: work that the command line starts in its own process shows bars there."""
    global _terminal
    _terminal = reporter


def terminal_progress() -> ProgressReporter | None:
    """Return the terminal's reporter, if the command line has named one."""
    return _terminal
