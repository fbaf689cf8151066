"""What a stage and the processes that train it tell each other, in files of one folder.

Files, because they can be read and written from wherever the folder is seen, whatever has started the processes; and
because, unlike Dagster's Pipes, they go both ways: DPO's early stopping asks the stage.
"""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from srlm_pipeline.files import replacing_file
from srlm_pipeline.generation.opening import release_engines
from srlm_pipeline.models.checkpoint import Checkpoint, read_checkpoint
from srlm_pipeline.models.memory import free_memory
from srlm_pipeline.progress import ProgressReporter, Task
from srlm_pipeline.training.early_stopping import Compare, EarlyStopping, Outcome

log = logging.getLogger(__name__)
_EVENTS, _ORDER, _RESULT, _MODEL = "events.jsonl", "order.pickle", "result.json", "model"
# Seconds between two looks for an answer.
_PAUSE = 0.2


@dataclass(frozen=True)
class Order:
    """What is to be done.

    Attributes:
        stage: A stage's function.
        arguments: Of it, the job being the first.
    """

    stage: Callable[..., Any]
    arguments: tuple[Any, ...]


class Exchange:
    """The folder, from either side.

    Args:
        folder: Exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def give(self, order: Order) -> None:
        """Write the order."""
        (self.folder / _ORDER).write_bytes(pickle.dumps(order))

    def order(self) -> Order:
        """Read the order."""
        order: Order = pickle.loads((self.folder / _ORDER).read_bytes())  # noqa: S301
        return order

    @property
    def model(self) -> Path:
        """Folder of the trained model."""
        return self.folder / _MODEL

    def tell(self, event: str, **facts: Any) -> None:
        """Add an event, from the first process alone."""
        with (self.folder / _EVENTS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"event": event, **facts}) + "\n")

    def events(self, stream: BinaryIO) -> Iterator[dict[str, Any]]:
        """Return the events that have come since the last call, whole ones only."""
        while True:
            start = stream.tell()
            line = stream.readline()
            if not line.endswith(b"\n"):
                stream.seek(start)
                return
            yield json.loads(line)

    @contextmanager
    def listening(self) -> Iterator[BinaryIO]:
        """Open the events for reading."""
        path = self.folder / _EVENTS
        path.touch()
        with path.open("rb") as stream:
            yield stream

    def ask(self, question: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Ask the stage something, and wait for its answer; whoever asks is ended with it."""
        self.tell("question", question=question, **facts)
        path = self._answer(question)
        while not path.is_file():
            time.sleep(_PAUSE)
        answer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return answer

    def answer(self, question: str, facts: Mapping[str, Any]) -> None:
        """Answer a question."""
        self._write(self._answer(question), facts)

    def fail(self, rank: int, sentence: str | None, detail: str) -> None:
        """Say why a process ends.

        Args:
            rank: Its number.
            sentence: What a person can mend; None: nothing.
            detail: The traceback.
        """
        self._write(self._failure(rank), {"sentence": sentence, "detail": detail})

    def failures(self) -> list[dict[str, Any]]:
        """Return why processes ended, what a person can mend first, and the earliest: one draws the others along."""
        paths = sorted(self.folder.glob("failure-*.json"), key=lambda path: path.stat().st_mtime_ns)
        found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        return sorted(found, key=lambda failure: failure["sentence"] is None)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Say how the training went; last, when the model is whole."""
        self._write(self.folder / _RESULT, facts)

    def result(self) -> dict[str, Any] | None:
        """Return how the training went; None if it has not come to its end."""
        path = self.folder / _RESULT
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def _answer(self, question: str) -> Path:
        return self.folder / f"answer-{question}.json"

    def _failure(self, rank: int) -> Path:
        return self.folder / f"failure-{rank}.json"

    @staticmethod
    def _write(path: Path, facts: Mapping[str, Any]) -> None:
        with replacing_file(path) as temporary:
            temporary.write_text(json.dumps(facts), encoding="utf-8")


class ToldProgress:
    """Shows progress at the other end.

    Args:
        exchange: Where it is told.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    @contextmanager
    def task(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        """Start a task; see `ProgressReporter.task`."""
        self._exchange.tell("task", description=description, total=total, unit=unit, done=done)
        yield _ToldTask(self._exchange)
        self._exchange.tell("done")


class _ToldTask:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def advance(self, amount: int = 1, note: str = "", found: int = 0) -> None:
        self._exchange.tell("advance", amount=amount, note=note, found=found)

    def within(self, note: str) -> None:
        self._exchange.tell("within", note=note)


class ToldWarnings(logging.Handler):
    """Hands warnings on to the other end.

    Args:
        exchange: Where they are told.
    """

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(logging.WARNING)
        self._exchange = exchange

    def emit(self, record: logging.LogRecord) -> None:
        """Tell one."""
        self._exchange.tell("warning", text=record.getMessage())


@dataclass
class Listener:
    """Does at a stage's end what the events say.

    Attributes:
        exchange: The folder.
        progress: Where progress is shown.
        early_stopping: Answers what DPO asks at its looks; None where nothing is asked.
    """

    exchange: Exchange
    progress: ProgressReporter
    early_stopping: EarlyStopping | None = None
    _tasks: list[tuple[ExitStack, Task]] = field(default_factory=list)

    def hear(self, event: dict[str, Any]) -> None:
        """Show, log or answer."""
        kind = event.pop("event")
        if kind == "task":
            stack = ExitStack()
            self._tasks.append((stack, stack.enter_context(self.progress.task(**event))))
        elif kind == "done":
            self._tasks.pop()[0].close()
        elif kind == "warning":
            log.warning("%s", event["text"])
        elif kind == "question":
            outcome = self._look(event["now"], event["before"])
            give_back_memory()
            self.exchange.answer(event["question"], {"lost": outcome.lost, "figures": dict(outcome.figures)})
        else:
            getattr(self._tasks[-1][1], kind)(**event)

    def close(self) -> None:
        """End what is shown, where the training has not come to its end."""
        while self._tasks:
            self._tasks.pop()[0].close()

    def _look(self, now: str, before: str) -> Outcome:
        stopping = self.early_stopping
        assert stopping is not None, "nobody else asks"
        entering = stopping.entering
        held_against = entering if str(entering.path) == before else read_checkpoint(Path(before))
        return stopping.compare(read_checkpoint(Path(now)), held_against)


def give_back_memory() -> None:
    """Give back what this process holds of devices that other processes train on."""
    release_engines()
    free_memory()


def asking(exchange: Exchange) -> Compare:
    """Return what holds two models against each other by asking the stage."""

    def compare(now: Checkpoint, before: Checkpoint) -> Outcome:
        answer = exchange.ask(now.name, {"now": str(now.path), "before": str(before.path)})
        return Outcome(bool(answer["lost"]), answer["figures"])

    return compare
