"""Writing without ever leaving half a file: a temporary name first, then a rename."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from srlm_pipeline.errors import DiskSpaceError, ForeignFolderError

# The names that `_temporary` gives, and those of what is moved aside.
_LEFTOVER = re.compile(r"\.(.+)\.[0-9a-f]{8}\.(tmp|old)")

_OTHER = "make it writable for this user, or set `storage` in the configuration, or DAGSTER_HOME, to another place"
_TROUBLE = {
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG), _OTHER),
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT), "free some disk, or set `storage` in the configuration to a larger one"
    ),
}
# What SQLite says; its own numbers are known of some of its errors only.
_DATABASE_TROUBLE = {
    **dict.fromkeys(("database or disk is full", "disk I/O error"), "free some disk, or move the home to a larger one"),
    **dict.fromkeys(("attempt to write a readonly database", "unable to open database file"), _OTHER),
}


@contextmanager
def replacing_file(target: Path) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes `target` only if the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(target)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path, mark: str) -> Iterator[Path]:
    """Give a temporary folder to fill; it becomes `target` only if the block succeeds.

    A folder that was there before is moved aside first and deleted after, so that at every moment one whole
    folder exists under one of the two names.

    Args:
        target: The folder.
        mark: Name of a file that every such folder has; a folder without it is someone else's and is left alone.

    Raises:
        ForeignFolderError: If another folder, or a file, lies where this one belongs.
    """
    _refuse_foreign(target, mark)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(target)
    aside = temporary.with_suffix(".old")
    temporary.mkdir()
    try:
        yield temporary
        _refuse_foreign(target, mark)
        if target.exists():
            target.replace(aside)
        try:
            temporary.replace(target)
        except OSError:
            if aside.exists():
                aside.replace(target)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def tidy(folder: Path, everywhere: bool = True, older_than: float = 0.0) -> None:
    """Remove what a killed process had begun to write, and put back what it had moved aside.

    Only for folders that nobody writes to meanwhile.

    Args:
        folder: Need not exist.
        everywhere: Whether to look into the folders below it, too.
        older_than: Seconds; what is younger is left alone.
    """
    newest = time.time() - older_than
    for path, target in _leftovers(folder, everywhere):
        if not path.exists() or path.stat().st_mtime > newest:
            continue
        if path.suffix == ".old" and not target.exists():
            path.replace(target)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """Return what `tidy` would remove from a folder and those below it."""
    return [p for p, target in _leftovers(folder, True) if p.suffix == ".tmp" or target.exists()]


def _leftovers(folder: Path, everywhere: bool) -> list[tuple[Path, Path]]:
    """Return what killed processes left, each with the path that it was to have or had."""
    found = folder.rglob(".*") if everywhere else folder.glob(".*")
    return [(path, path.with_name(name[1])) for path in found if (name := _LEFTOVER.fullmatch(path.name))]


def remove_folder(folder: Path) -> None:
    """Remove a folder, which is gone at once: where the process is killed meanwhile, `tidy` removes the rest."""
    going = _temporary(folder)
    folder.replace(going)
    shutil.rmtree(going, ignore_errors=True)


def _refuse_foreign(target: Path, mark: str) -> None:
    if target.exists() and not (target / mark).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise ForeignFolderError(target)


@contextmanager
def scratch_folder(like: Path) -> Iterator[Path]:
    """Give a folder that is removed when the block ends, or by `tidy` where the process was killed in it.

    Args:
        like: Path from which its name is made.
    """
    folder = _temporary(like)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")


def require_disk(folder: Path, needed: int) -> None:
    """Refuse to start work whose result will not fit.

    Args:
        folder: Where it will be written; need not exist yet.
        needed: Bytes.

    Raises:
        DiskSpaceError: With what is free and what is needed.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DiskSpaceError(folder, needed, free)


def disk_trouble(error: BaseException) -> str | None:
    """Return in a sentence what a person can mend about a file, folder or database; None for other errors.

    Args:
        error: It, or one of its causes, is what the operating system or SQLite said.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _TROUBLE:
            where = cause.filename or "a file or folder of the project"
            return f"{where}: {os.strerror(cause.errno)}: {_TROUBLE[cause.errno]}"
        if isinstance(cause, sqlite3.OperationalError) and str(cause) in _DATABASE_TROUBLE:
            return f"a database in the Dagster home: {cause}: {_DATABASE_TROUBLE[str(cause)]}"
        cause = cause.__cause__
    return None


def digest_files(paths: list[Path]) -> str:
    """Return sixteen hex digits over names and contents of files, in the given order."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.name.encode())
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]


def digest_existing(paths: Iterable[str]) -> str:
    """Return sixteen hex digits over the files that exist; the empty text if none does."""
    existing = [path for path in map(Path, paths) if path.is_file()]
    return digest_files(existing) if existing else ""
