"""Who may compute in a Dagster home: one `srlm run` alone, or the steps of runs that Dagster started.

The lock is the operating system's, on one file. It ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from srlm_pipeline.errors import HomeInUseError

_FILE = "srlm.lock"
# Homes that this process has to itself.
_own: set[Path] = set()


@contextmanager
def sole_use(home: Path) -> Iterator[None]:
    """Hold a home for this process alone, from before its runs are created until after the last has ended.

    Raises:
        HomeInUseError: If another process holds it, naming that one.
    """
    with _locked(home, fcntl.LOCK_EX) as stream:
        facts = {"process": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
        stream.write(json.dumps(facts).encode())
        stream.flush()
        _own.add(home)
        try:
            yield
        finally:
            _own.discard(home)
            stream.truncate(0)


@contextmanager
def shared_use(home: Path) -> Iterator[None]:
    """Hold a home together with other steps; which of them run at a time is Dagster's business.

    Raises:
        HomeInUseError: If an `srlm run` in another process has it to itself.
    """
    if home in _own:
        yield
        return
    with _locked(home, fcntl.LOCK_SH):
        yield


def if_nobody_is_at_work(home: Path, do: Callable[[], object]) -> None:
    """Do something quick while nobody else can begin; nothing if somebody is at work."""
    with suppress(HomeInUseError), _locked(home, fcntl.LOCK_EX, patience=0):
        do()


@contextmanager
def _locked(home: Path, kind: int, patience: float = 10.0) -> Iterator[BinaryIO]:
    """Hold the lock; wait some seconds for whoever gives no name, as what is quick does not."""
    home.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + patience
    with (home / _FILE).open("ab+") as stream:
        while True:
            try:
                fcntl.flock(stream, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                process, since = _holder(stream)
                if process is not None or time.monotonic() >= end:
                    raise HomeInUseError(home, process, since) from None
                time.sleep(0.05)
        if kind == fcntl.LOCK_EX:
            # What a killed process had written of itself.
            stream.truncate(0)
        yield stream


def _holder(stream: BinaryIO) -> tuple[int | None, str | None]:
    """Return process id and time of who has a home to itself; None where it is shared, or not written yet."""
    stream.seek(0)
    try:
        facts = json.loads(stream.read())
        return int(facts["process"]), str(facts["since"])
    except (ValueError, KeyError, TypeError):
        return None, None
