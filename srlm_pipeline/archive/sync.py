"""What is missing or older on either side is copied to the other.

Three lists decide, each with a digest by file: what is here, what the manifest at the address says, and what both were
when they were last the same. The manifest has a serial number that changes with it, so that it is noticed when another
machine was at work.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from srlm_pipeline.archive.contents import (
    RECORDS,
    Signature,
    digest,
    finished,
    is_appended_to,
    is_database,
    mark_of,
    place,
    records,
    restore,
    signature,
    snapshot,
    unit_of,
)
from srlm_pipeline.archive.remote import Remote
from srlm_pipeline.config import Settings
from srlm_pipeline.errors import ArchiveConflictError, ArchiveError, RecordError
from srlm_pipeline.files import replacing_file, replacing_folder, scratch_folder
from srlm_pipeline.models.integrity import is_emptied
from srlm_pipeline.store import ProjectStore, open_store

URL_VARIABLE = "SRLM_ARCHIVE_URL"
_MANIFEST = "manifest.json"
_SHOWN = 3
Digests = Mapping[str, str]


@dataclass(frozen=True)
class Manifest:
    """What counts at the address.

    Attributes:
        serial: Another one with every change; blank where nothing was written yet.
        by: Machine that wrote it.
        at: When, in UTC, as ISO 8601 has it.
        files: SHA-256 of each file.
    """

    serial: str = ""
    by: str = ""
    at: str = ""
    files: Digests = field(default_factory=dict)


@dataclass(frozen=True)
class _Known:
    """What this home remembers of the last time that it was at the address.

    Attributes:
        url: Of the address.
        serial: Of the manifest.
        files: What both sides had.
        here: Of each file here: signature and digest, so that what has not changed is not read again.
    """

    url: str = ""
    serial: str = ""
    files: Digests = field(default_factory=dict)
    here: Mapping[str, tuple[Signature, str]] = field(default_factory=dict)


class Archive:
    """A project's durable copy.

    Args:
        remote: Where it is.
        store: The project's folders.
        home: The Dagster home.
    """

    def __init__(self, remote: Remote, store: ProjectStore, home: Path) -> None:
        self.remote, self._store, self._home = remote, store, home
        self._path = home / f".archive-{store.root.name}.json"
        # Within the folder that is tidied and not copied.
        self._scratch = store.root / "work" / "archive"

    def fetch(self, warn: Callable[[str], None], with_records: bool) -> list[str]:
        """Take what is missing or older here; what is damaged there is left, and made again.

        Args:
            warn: Called with what could not be taken. Where the address does not answer and this home was there
                before, the work goes on with what is here.
            with_records: Whether Dagster's and MLflow's records are taken too, where they are missing here, or another
                machine, or a home that is lost, was the last to write there. Not while a run is in progress.

        Returns:
            The files that were taken.

        Raises:
            ArchiveConflictError: If both sides have gone on; or the other one, and its records are not to be taken.
            ArchiveError: If the address does not answer, and nothing is known of it.
        """
        with self._alone():
            known = self._known()
            try:
                manifest = self._manifest()
                if not manifest.serial and not known.serial:
                    # A wrong address would look empty, and everything would be computed again.
                    self.remote.probe()
                    return []
                return self._fetch(manifest, known, warn, with_records)
            except ArchiveConflictError:
                raise
            except ArchiveError as error:
                if not known.serial:
                    raise
                warn(f"{error}. The work goes on with what is here, and is copied there later")
                return []

    def standing(self) -> str:
        """Return who wrote there last, in words.

        Raises:
            ArchiveError: If the address does not answer.
        """
        manifest = self._manifest()
        if not manifest.serial:
            return "nothing is there yet"
        mine = "this home's last" if manifest.serial == self._known().serial else "not this home's"
        return f"{len(manifest.files)} files, the last written {manifest.at} by {manifest.by}, {mine}"

    def push(self, with_records: bool = False, removed: Iterable[Path] = ()) -> list[str]:
        """Copy what is new or different here; the manifest is written last.

        Args:
            with_records: Whether Dagster's and MLflow's records are copied too.
            removed: Files and folders of the project that were deleted on purpose, to be deleted there.

        Returns:
            The files that were copied.

        Raises:
            ArchiveConflictError: If another machine has written there meanwhile.
            ArchiveError: If the address does not answer; what was copied so far does not count there yet.
        """
        with self._alone():
            known, manifest = self._known(), self._manifest()
            if manifest.serial != known.serial:
                raise self._conflict(manifest, [])
            return self._push(manifest, known, with_records, removed)

    def _fetch(self, manifest: Manifest, known: _Known, warn: Callable[[str], None], with_records: bool) -> list[str]:
        moved_on = manifest.serial != known.serial
        here = self._here(known, finished(self._store))
        mine = {name: sha for name, (_, sha) in here.items()}
        both = [
            name
            for name, sha in mine.items()
            if name in manifest.files
            and sha not in (manifest.files[name], known.files.get(name))
            and manifest.files[name] != known.files.get(name)
        ]
        if moved_on and (both or not with_records):
            raise self._conflict(manifest, both)
        wanted = {
            name
            for name in manifest.files
            if (
                with_records and (moved_on or not self._place(name).exists())
                if name.startswith(f"{RECORDS}/")
                else self._is_wanted(name, mine, manifest.files, known.files)
            )
        }
        # A folder that is another one is taken as a whole.
        wanted |= {name for name in manifest.files if (unit := unit_of(name)) and mark_of(unit) in wanted}
        taken: list[str] = []
        here |= {name: of for name, of in known.here.items() if name.startswith(f"{RECORDS}/")}
        with scratch_folder(self._scratch) as scratch:
            for unit, names in _by_unit(wanted):
                got = self._get(manifest, unit, list(names), scratch, warn)
                taken += got
                here |= {name: (signature(self._place(name)), manifest.files[name]) for name in got}
        # What is damaged there is as good as not there: once it is made again, it is copied again.
        lost = wanted.difference(taken)
        files = {name: sha for name, sha in manifest.files.items() if name not in lost}
        self._remember(_Known(self.remote.address, manifest.serial, files, here))
        return taken

    def _is_wanted(self, name: str, mine: Digests, theirs: Digests, before: Digests) -> bool:
        if mine.get(name) == theirs[name]:
            return False
        unit = unit_of(name)
        if unit is not None and name != mark_of(unit) and mark_of(unit) in mine:
            if is_emptied(self._place(unit)):
                return False
            if self._is_damaged(name, mine, theirs):
                return True
        return name not in mine or mine[name] == before.get(name)

    @staticmethod
    def _is_damaged(name: str, mine: Digests, theirs: Digests) -> bool:
        """Whether a model that is the same by its marker has another file here."""
        unit = unit_of(name)
        if unit is None or not unit.startswith("models/") or name not in theirs:
            return False
        return mine[mark_of(unit)] == theirs.get(mark_of(unit)) and mine.get(name) != theirs[name]

    def _get(
        self, manifest: Manifest, unit: str | None, names: list[str], scratch: Path, warn: Callable[[str], None]
    ) -> list[str]:
        """Take some files of one folder, or one file; nothing of them if one is damaged."""
        fetched: dict[str, Path] = {}
        for number, name in enumerate(names):
            copy = scratch / f"{number}-{Path(name).name}"
            there = self.remote.get(name, copy)
            if not there or (digest(copy) != manifest.files[name] and not is_appended_to(name)):
                what = "was copied only in part" if there else "is not there"
                warn(f"{self.remote.address}: {name} {what}, and is not taken")
                return []
            fetched[name] = copy
        if unit is not None and mark_of(unit) in fetched:
            mark = mark_of(unit).rpartition("/")[2]
            with replacing_folder(self._place(unit), mark) as folder:
                for name, copy in fetched.items():
                    target = folder / name.removeprefix(f"{unit}/")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    copy.replace(target)
            return names
        for name, copy in fetched.items():
            restore(copy, self._place(name))
            copy.unlink()
        return names

    def _push(self, manifest: Manifest, known: _Known, with_records: bool, removed: Iterable[Path]) -> list[str]:
        project = list(finished(self._store))
        here = self._here(known, project)
        mine = {name: sha for name, (_, sha) in here.items()}
        gone = set(_gone(mine, known.files, [path.relative_to(self._store.root).as_posix() for path in removed]))
        files, copied = {name: sha for name, sha in known.files.items() if name not in gone}, list[str]()
        changed = [n for n in project if files.get(n) != mine[n] and not self._is_damaged(n, mine, known.files)]
        for unit, names in _by_unit(changed):
            if unit is not None and mark_of(unit) in manifest.files:
                # Whoever looks there takes no folder for whole that is half the old and half the new one.
                self.remote.remove(mark_of(unit))
            for name in sorted(names, key=lambda name: name == (unit and mark_of(unit))):
                here[name] = self._put(name, here[name])
                files[name] = here[name][1]
                copied.append(name)
        here |= {name: of for name, of in known.here.items() if name.startswith(f"{RECORDS}/")}
        for name, of in self._put_records(known).items() if with_records else ():
            here[name], files[name] = of, of[1]
            copied.append(name)
        serial = manifest.serial
        if files != manifest.files:
            serial, at = uuid.uuid4().hex, datetime.now(UTC).isoformat(timespec="seconds")
            now = Manifest(serial, socket.gethostname(), at, files)
            self.remote.write(_MANIFEST, json.dumps(asdict(now), indent=0).encode())
            for name in manifest.files.keys() - files.keys():
                self.remote.remove(name)
        self._remember(_Known(self.remote.address, serial, files, here))
        return copied

    def _put(self, name: str, of: tuple[Signature, str]) -> tuple[Signature, str]:
        """Copy a file; once more if it was appended to meanwhile."""
        path = self._place(name)
        while True:
            self.remote.put(path, name)
            now = signature(path)
            if now == of[0]:
                return of
            of = (now, digest(path))

    def _put_records(self, known: _Known) -> dict[str, tuple[Signature, str]]:
        """Copy what of Dagster's and MLflow's records has changed."""
        copied = {}
        with scratch_folder(self._scratch) as scratch:
            for name in records(self._home):
                path, before = self._place(name), known.here.get(name)
                now, content = signature(path), path
                if before is not None and before[0] == now and name in known.files:
                    continue
                if is_database(name):
                    content = scratch / "snapshot.db"
                    content.unlink(missing_ok=True)
                    snapshot(path, content)
                self.remote.put(content, name)
                copied[name] = (now, digest(content))
        return copied

    def _here(self, known: _Known, names: Iterable[str]) -> dict[str, tuple[Signature, str]]:
        """Return signature and digest of files of the project."""
        found = {}
        for name in names:
            now, before = signature(self._place(name)), known.here.get(name)
            same = before is not None and before[0] == now
            found[name] = before if before is not None and same else (now, digest(self._place(name)))
        return found

    def _place(self, name: str) -> Path:
        return place(name, self._store, self._home)

    def _manifest(self) -> Manifest:
        written = self.remote.read(_MANIFEST)
        if written is None:
            return Manifest()
        try:
            return Manifest(**json.loads(written))
        except (ValueError, TypeError) as error:
            raise ArchiveError(
                self.remote.address,
                f"{_MANIFEST} cannot be read ({error}): restore it, or delete it, and what is here is copied anew",
            ) from error

    def _known(self) -> _Known:
        if not self._path.is_file():
            return _Known()
        try:
            facts = json.loads(self._path.read_text(encoding="utf-8"))
            here = {name: (list(of), sha) for name, (of, sha) in facts.pop("here").items()}
            known = _Known(**facts, here=here)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RecordError(self._path, error, "delete it, and both sides are compared file by file") from error
        return known if known.url == self.remote.address else _Known(here=known.here)

    def _remember(self, known: _Known) -> None:
        with replacing_file(self._path) as temporary:
            temporary.write_text(json.dumps(asdict(known)), encoding="utf-8")

    def _conflict(self, manifest: Manifest, names: list[str]) -> ArchiveConflictError:
        shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        return ArchiveConflictError(self.remote.address, manifest.by, manifest.at, shown, self._store.root)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait for another step of this home that is copying."""
        with self._path.with_suffix(".lock").open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def open_archive(settings: Settings) -> Archive | None:
    """Return the project's durable copy; None where no address is named.

    Raises:
        ArchiveError: If the address cannot be used.
    """
    url = os.environ.get(URL_VARIABLE) or settings.archive.url
    if not url:
        return None
    home = Path(os.environ.get("DAGSTER_HOME") or "dagster_home").resolve()
    home.mkdir(parents=True, exist_ok=True)
    remote = Remote(f"{url.rstrip('/')}/{settings.project}", settings.archive.max_retries)
    return Archive(remote, open_store(settings), home)


def _gone(mine: Digests, before: Digests, deleted: Iterable[str]) -> Iterator[str]:
    """Yield what is not here any more: parts of folders that are others now, and what was deleted on purpose."""
    paths = list(deleted)
    for name in before.keys() - mine.keys():
        unit = unit_of(name)
        mark = mark_of(unit) if unit else ""
        replaced = mark in mine and mine[mark] != before.get(mark)
        if replaced or any(name == path or name.startswith(f"{path}/") for path in paths):
            yield name


def _by_unit(names: Iterable[str]) -> Iterator[tuple[str | None, Iterator[str]]]:
    """Part names into folders that count as a whole, and files by themselves."""
    for (unit, _), group in groupby(sorted(names), key=lambda name: (unit_of(name), unit_of(name) or name)):
        yield unit, group
