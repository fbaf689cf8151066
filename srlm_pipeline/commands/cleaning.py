"""`srlm gc`: what a project's folder holds that nothing needs any more."""

from __future__ import annotations

import os
from pathlib import Path

from rich.markup import escape
from rich.table import Column, Table

from srlm_pipeline.archive import open_archive
from srlm_pipeline.assets.registry import is_lost
from srlm_pipeline.collecting import Item, freed, remove, survey
from srlm_pipeline.commands.terminal import console
from srlm_pipeline.config import Settings
from srlm_pipeline.lock import sole_use
from srlm_pipeline.store import ProjectStore, open_store


def clean(settings: Settings, delete: bool) -> None:
    """Print what is needed and what is not, with sizes and reasons; delete the latter if asked.

    Args:
        settings: Of the project.
        delete: Whether to.

    Raises:
        HomeInUseError: If something is to be deleted while somebody is at work.
        ArchiveError: If the durable copy cannot be read or written; it is cleaned too.
    """
    store = open_store(settings)
    if not store.root.is_dir():
        console.print(f"there is nothing yet at {escape(str(store.root))}")
        return
    if not delete:
        found = survey(store, settings, _registered(store, settings))
        _show(store, found)
        room = freed([item for item in found if not item.needed])
        console.print(f"`srlm gc --delete` would free {_size(room)}" if room else "nothing to delete")
        return
    archive = open_archive(settings)
    with sole_use(Path(os.environ["DAGSTER_HOME"])):
        if archive is not None:
            archive.fetch(_say, with_records=True)
        found = survey(store, settings, _registered(store, settings))
        unneeded = [item for item in found if not item.needed]
        room = freed(unneeded)
        _show(store, unneeded)
        for item in unneeded:
            remove(item)
        if archive is not None:
            archive.push(with_records=True, removed=[item.path for item in unneeded])
    console.print(f"{len(unneeded)} deleted, {_size(room)} freed")


def _say(line: str) -> None:
    console.print(line, markup=False)


def _registered(store: ProjectStore, settings: Settings) -> set[Path] | None:
    from srlm_pipeline.tracking import Tracker

    tracker = Tracker(settings)
    return None if is_lost(store, tracker.registered(settings.project)) else tracker.sources(settings.project)


def _show(store: ProjectStore, found: list[Item]) -> None:
    table = Table("", Column("what", overflow="fold"), Column("size", justify="right", no_wrap=True), "why")
    for item in sorted(found, key=lambda item: (item.needed, -item.size)):
        verdict = "keep" if item.needed else "[bold]delete[/]"
        table.add_row(verdict, escape(str(item.path.relative_to(store.root))), _size(item.size), escape(item.reason))
    console.print(table)


def _size(n_bytes: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes} B"
