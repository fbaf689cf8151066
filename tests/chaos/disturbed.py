"""`srlm`, disturbed at a chosen moment: killed, stopped, without disk, without permission, with another time.

A moment is something that a process does to the files below its Dagster home: opening one to write, renaming, removing,
making a folder, committing to a database. Python reports the first of these to audit hooks, whichever library does
them; connections to SQLite are opened through a class that reports commits. What follows from a moment on at once is
hit too, where the disturbance comes some milliseconds late.

Run as a program, with a configuration's file, it reads orders from its standard input, one a line, and carries each out
in a fork of itself: libraries and definitions, which take longest, are loaded once.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import re
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from srlm_pipeline import cli
from srlm_pipeline.generation.journal import Journal

_LEFTOVER = re.compile(r"/\.([^/]+)\.[0-9a-f]{8}\.(tmp|old)(?=/|$)")
_RANDOM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}|tmp[a-z0-9_]{8}")
_PATHS = {"os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.rename": 1, "os.link": 1, "shutil.rmtree": 0}
_SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}
_ERRORS = {"ENOSPC": errno.ENOSPC, "EROFS": errno.EROFS}


@dataclass(frozen=True)
class Order:
    """What one process is to do, and what is to happen to it.

    Attributes:
        home: The Dagster home.
        words: Of the command line.
        output: File for what it prints.
        notes: File for the moments that it came by, the disturbance, and the journals' new keys, one JSON a line.
        act: KILL, TERM, INT, ENOSPC, EROFS, FILL (the file system that the home is on) or CLOCK (jumps by `clock`);
            None: nothing happens.
        moments: All that an undisturbed process comes by, in order; it happens at the first that is `after` or later.
        after: Place among the moments.
        delay: Seconds from the moment on; for signals only.
        clock: Seconds by which this process's time is wrong, from its beginning on; for CLOCK, from the moment on.
    """

    home: str
    words: Sequence[str]
    output: str
    notes: str
    act: str | None = None
    moments: Sequence[str] = ()
    after: int = 0
    delay: float = 0.0
    clock: float = 0.0


@dataclass
class Disturbance:
    """Watches a process and does to it what was ordered."""

    order: Order
    happened: bool = False
    _places: Mapping[str, int] = field(init=False)
    _notes: int = field(init=False)
    _commits: int = 0
    _last: str = ""

    def __post_init__(self) -> None:
        self._places = {moment: place for place, moment in enumerate(self.order.moments)}
        assert len(self._places) == len(self.order.moments), "each moment once"
        self._notes = os.open(self.order.notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def install(self) -> None:
        """Watch from now on."""
        connect, watch = sqlite3.connect, self

        class Watched(sqlite3.Connection):
            file = ""

            def commit(self) -> None:
                watch.come_by("commit", self.file)
                super().commit()

        def watched_connect(database: Any, *rest: Any, **named: Any) -> sqlite3.Connection:
            opened = connect(database, *rest, factory=Watched, **named)
            opened.file = str(database).removeprefix("file:").partition("?")[0]
            return opened

        sqlite3.connect = sqlite3.dbapi2.connect = watched_connect
        sys.addaudithook(self._hear)
        append = Journal.append

        def noted(journal: Journal, items: Mapping[str, dict[str, Any]]) -> None:
            append(journal, items)
            where = str(journal.path.relative_to(self.order.home))
            self.note(appended=[f"{where} {key}" for key in items])

        Journal.append = noted  # type: ignore[method-assign]

    def note(self, **facts: Any) -> None:
        """Write something down where no disturbance reaches it."""
        os.write(self._notes, json.dumps(facts).encode() + b"\n")

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = given
            writes = set(mode) & set("wxa+") if mode else (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and isinstance(path, str | os.PathLike):
                self.come_by("open", os.fspath(path))
        elif event in _PATHS and isinstance(given[_PATHS[event]], str | os.PathLike):
            self.come_by(event.partition(".")[2], os.fspath(given[_PATHS[event]]))

    def come_by(self, kind: str, path: str) -> None:
        """See whether this is the moment, and disturb."""
        if not path.startswith(self.order.home + "/"):
            return
        name = _RANDOM.sub("*", _LEFTOVER.sub(r"/\1~\2", path.removeprefix(self.order.home)))
        if kind == "commit":
            self._commits += 1
            moment = f"commit {name} {self._commits} after {self._last}"
        elif not name.startswith("/srlm/"):
            # Dagster's logs of what steps print, with names of their own each time.
            return
        else:
            self._commits, self._last = 0, f"{kind} {name}"
            moment = self._last
        if self.order.act is None:
            self.note(moment=moment)
            return
        if not self.happened and self._places.get(moment, -1) >= self.order.after:
            self.happened = True
            self.note(disturbed=moment, act=self.order.act)
            self._begin()
        if self.happened and self.order.act in _ERRORS and kind not in ("remove", "rmdir", "rmtree"):
            if kind == "commit":
                raise sqlite3.OperationalError(
                    "database or disk is full" if self.order.act == "ENOSPC" else "attempt to write a readonly database"
                )
            number = _ERRORS[self.order.act]
            raise OSError(number, os.strerror(number), path)

    def _begin(self) -> None:
        act = self.order.act
        if act in _SIGNALS:
            if self.order.delay:
                threading.Timer(self.order.delay, os.kill, (os.getpid(), _SIGNALS[act])).start()
            else:
                os.kill(os.getpid(), _SIGNALS[act])
        elif act == "FILL":
            with open(filler(Path(self.order.home)), "wb") as stream:  # noqa: PTH123 - heard like any other
                try:
                    while True:
                        stream.write(b"\0" * 2**16)
                        stream.flush()
                except OSError:
                    pass
        elif act == "CLOCK":
            _move_clock(self.order.clock)


def _move_clock(seconds: float) -> None:
    now = time.time
    time.time = lambda: now() + seconds
    time.time_ns = lambda: int((now() + seconds) * 1e9)


def filler(home: Path) -> Path:
    """Return the file that takes all the room there is on the home's file system; beside the home."""
    return home.parent / "filler"


def carry_out(order: Order) -> None:
    """Do what `srlm` does, in this process, which ends with it."""
    stream = os.open(order.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.environ["DAGSTER_HOME"] = order.home
    os.chdir(Path(order.home).parent)
    sys.argv = ["srlm", *order.words]
    if order.act != "CLOCK" and order.clock:
        _move_clock(order.clock)
    Disturbance(order).install()
    cli.main()


def main() -> None:
    """Carry out orders from the standard input; answer each with the exit status, negative for a signal."""
    for name in [name for name in os.environ if name.startswith(("SRLM_", "MLFLOW_TRACKING", "DAGSTER_"))]:
        del os.environ[name]
    os.environ |= {"SRLM_CONFIG": sys.argv[1], "COLUMNS": "200"}
    cli.quiet_libraries()
    # What stages import when they first need it.
    for module in ("mlflow", "peft", "transformers", "trl", "matplotlib.pyplot", "srlm_pipeline.definitions"):
        importlib.import_module(module)
    for module in ("launch", "overview"):
        importlib.import_module(f"srlm_pipeline.commands.{module}")
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setsid()
                carry_out(Order(**json.loads(line)))
                status = 0
            except SystemExit as end:
                status = int(end.code or 0)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(ended), flush=True)


def as_line(order: Order) -> str:
    """Return an order as `main` reads it."""
    return json.dumps(asdict(order)) + "\n"


if __name__ == "__main__":
    main()
