"""What of a project and of its Dagster home is finished, and by which digest each file is known."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from srlm_pipeline.files import replacing_file
from srlm_pipeline.models.integrity import MARKER
from srlm_pipeline.store import ProjectStore

# Of what is named otherwise by its path in the project's folder.
RECORDS = "home"
# SQLite files of Dagster and MLflow, and MLflow's artefacts; other stores belong to no home.
_DATABASES = ("mlflow.db", "history/**/*.db", "schedules/*.db")
_ARTIFACTS = "mlartifacts"
_WORK = "work"
# What a folder has that is whole, by the folder above it.
_MARKS = {"models": MARKER, "assessments": "assessment.json"}
# Seconds, while another process writes.
_PATIENCE = 60.0
# Of each file: size and time of change, of a database with its log.
Signature = list[int]


def unit_of(name: str) -> str | None:
    """Return the folder that a file is part of and that counts only as a whole; None for a file by itself."""
    first, *rest = name.split("/")
    depth = 3 if first == "models" and rest[:1] == ["kept"] else 2
    return "/".join([first, *rest][:depth]) if first in _MARKS and len(rest) >= depth else None


def mark_of(unit: str) -> str:
    """Return the name of the file that makes a folder whole, and is written last."""
    return f"{unit}/{_MARKS[unit.split('/')[0]]}"


def is_database(name: str) -> bool:
    """Whether a file is a database in the home, which may be written to at any time."""
    return name.startswith(f"{RECORDS}/") and name.endswith(".db")


def is_appended_to(name: str) -> bool:
    """Whether a file grows line by line; a copy that is newer than it is said to be holds all that was there."""
    return name.endswith(".jsonl")


def place(name: str, store: ProjectStore, home: Path) -> Path:
    """Return where a file is in the project or the home."""
    return home / name.removeprefix(f"{RECORDS}/") if name.startswith(f"{RECORDS}/") else store.root / name


def finished(store: ProjectStore) -> Iterator[str]:
    """Yield what the project has finished: everything but trainings in progress and what is half-written."""
    for path in sorted(store.root.rglob("*")):
        parts = path.relative_to(store.root).parts
        if parts[0] == _WORK or any(part.startswith(".") for part in parts) or not path.is_file():
            continue
        name = "/".join(parts)
        unit = unit_of(name)
        if unit is None or (store.root / mark_of(unit)).is_file():
            yield name


def records(home: Path) -> Iterator[str]:
    """Yield what Dagster and MLflow know, as far as they keep it in the home."""
    artifacts = (path for path in sorted((home / _ARTIFACTS).rglob("*")) if path.is_file())
    databases = (path for pattern in _DATABASES for path in sorted(home.glob(pattern)))
    for path in (*databases, *artifacts):
        yield f"{RECORDS}/{path.relative_to(home).as_posix()}"


def signature(path: Path) -> Signature:
    """Return what differs when a file, or a database's log beside it, has changed."""
    log = path.with_name(f"{path.name}-wal")
    stats = [file.stat() for file in (path, log) if file.is_file()]
    return [number for stat in stats for number in (stat.st_size, stat.st_mtime_ns)]


def digest(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def snapshot(database: Path, target: Path) -> None:
    """Copy a database as it is between two transactions."""
    opened = sqlite3.connect(f"{database.as_uri()}?mode=ro", timeout=_PATIENCE, uri=True)
    with closing(opened) as source, closing(sqlite3.connect(target)) as to:
        source.backup(to)


def restore(copy: Path, target: Path) -> None:
    """Put a file in place; a database gets its content in one transaction, for others may have it open."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".db":
        with closing(sqlite3.connect(copy)) as source, closing(sqlite3.connect(target, timeout=_PATIENCE)) as to:
            source.backup(to)
    else:
        with replacing_file(target) as temporary:
            shutil.copyfile(copy, temporary)
