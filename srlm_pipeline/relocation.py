"""MLflow's store keeps absolute addresses; where a Dagster home was moved or copied, they follow it.

An experiment's artefacts are under `mlartifacts` in the home, by its name or number, so that its address tells which
home the store was in. MLflow has no call that changes addresses: its SQLite file is written to, in one transaction.
Until that is done nothing may be written, for it would be written into the home of before.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from srlm_pipeline.errors import RecordError

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
# Tables and columns of MLflow's schema that hold addresses under the home.
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
# Seconds, while another process writes.
_PATIENCE = 60.0


def former_homes(home: Path) -> list[str]:
    """Return the addresses of other homes that the store in this one still names; nothing if it is where it was.

    Raises:
        RecordError: If MLflow's file cannot be read.
    """
    with _opened(home) as store:
        return _former(store, home) if store else []


def follow(home: Path) -> list[str]:
    """Let all addresses under a former home lead into this one.

    Returns:
        The addresses of the former homes.

    Raises:
        RecordError: If MLflow's file cannot be read or written.
    """
    if not former_homes(home):
        return []
    with _opened(home) as store:
        assert store is not None, "it was there just now"
        store.execute("BEGIN IMMEDIATE")
        # Another process may have been first.
        former = _former(store, home)
        for old in former:
            for table, column in _ADDRESSES:
                store.execute(
                    f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) "  # noqa: S608
                    f"WHERE substr({column}, 1, length(:old) + 1) = :old || '/'",
                    {"old": old, "new": home.as_uri()},
                )
        store.commit()
    return former


def _former(store: sqlite3.Connection, home: Path) -> list[str]:
    if not store.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
        return []
    found = set()
    for name, number, address in store.execute("SELECT name, experiment_id, artifact_location FROM experiments"):
        before, _, last = str(address).rpartition(f"/{ARTIFACTS}/")
        if before.startswith("file:") and last in (name, str(number)):
            found.add(before)
    return sorted(found - {home.as_uri()})


@contextmanager
def _opened(home: Path) -> Iterator[sqlite3.Connection | None]:
    path = home / DATABASE
    if not path.is_file():
        yield None
        return
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", timeout=_PATIENCE, uri=True)) as store:
            yield store
    except sqlite3.Error as error:
        raise RecordError(
            path,
            error,
            "it is MLflow's store. Restore it from a copy, or move it away: the next run begins another one and "
            "registers again what the project's folder has",
        ) from error
