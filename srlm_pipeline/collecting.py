"""What of a project's folder nothing needs any more, and why the rest is needed.

Needed is what a champion, a baseline, the latest iteration or a registered version needs, and what the next run would
otherwise make again. Of an earlier iteration's model the marker stays when its weights go, so that it is still known
what was trained from what, and nothing is out of date.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srlm_pipeline.config import Settings
from srlm_pipeline.errors import ModelError
from srlm_pipeline.evaluation.champion import champion_before
from srlm_pipeline.files import remove_folder
from srlm_pipeline.models.checkpoint import is_checkpoint
from srlm_pipeline.models.integrity import MARKER, empty, is_emptied
from srlm_pipeline.store import (
    HUMAN_DPO_MODEL,
    REWARD_MODEL,
    RLHF_MODEL,
    SFT_BASELINE,
    ProjectStore,
    iteration_number,
    iteration_of,
    model_name,
)

_PARTITION = re.compile(r"iter_\d+")


@dataclass(frozen=True)
class Item:
    """Something that may be deleted.

    Attributes:
        path: Folder or file.
        needed: Whether it stays.
        reason: Why it is needed, or why not.
        leaves_marker: Whether it is a model of which it stays known what it was.
    """

    path: Path
    needed: bool
    reason: str
    leaves_marker: bool = False

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(path.stat().st_size for path in _files(self.path))


def survey(store: ProjectStore, settings: Settings, registered: Collection[Path] | None) -> list[Item]:
    """Return what there is of models, training work, journals, assessments and leftovers.

    Args:
        store: The project's folders.
        settings: They may name a model by its folder.
        registered: Folders that registered versions lead to; None where that is not known, and all are needed.
    """
    latest = latest_iteration(store)
    return [
        *_models(store, settings, latest),
        *_kept(store, registered),
        *_work(store),
        *_journals(store, latest),
        *_assessments(store),
        *(Item(p, False, "half-written by a killed process") for p in store.leftovers()),
    ]


def freed(items: Iterable[Item]) -> int:
    """Return the bytes that come free when items are deleted: files that others share stay as long as these do."""
    found = [
        path.stat() for item in items for path in _files(item.path) if not (item.leaves_marker and path.name == MARKER)
    ]
    links = Counter(stat.st_ino for stat in found)
    return sum({stat.st_ino: stat.st_size for stat in found if links[stat.st_ino] == stat.st_nlink}.values())


def remove(item: Item) -> None:
    """Delete what is not needed; only while nobody is at work.

    Raises:
        ValueError: If it is needed.
    """
    if item.needed:
        raise ValueError(f"{item.path} is needed: {item.reason}")
    if item.leaves_marker:
        empty(item.path)
    elif item.path.is_dir():
        remove_folder(item.path)
    else:
        item.path.unlink(missing_ok=True)


def latest_iteration(store: ProjectStore) -> int:
    """Return the last iteration of which there is anything; 0 if there is none."""
    tables = [iteration_number(path.stem) for path in store.tables.glob("*/iter_*.parquet")]
    made = [iteration_of(path.parent.name) or 0 for path in (store.root / "models").glob(f"*/{MARKER}")]
    return max([0, *tables, *made])


def _models(store: ProjectStore, settings: Settings, latest: int) -> Iterator[Item]:
    needed = {
        **{store.attempt(t).entering: "enters a further attempt" for t in (latest, latest + 1) if t},
        model_name(latest): "enters the latest iteration",
        model_name(latest + 1): "made by the latest iteration",
        champion_before(store, latest + 1): "the champion",
        model_name(1): "the seed model",
        **dict.fromkeys((SFT_BASELINE, REWARD_MODEL, RLHF_MODEL, HUMAN_DPO_MODEL), "a baseline"),
    }
    named = {Path(text).expanduser().resolve() for text in _texts(settings.model_dump()) if "/" in text}
    for folder in sorted((store.root / "models").glob("*")):
        if not is_checkpoint(folder) or is_emptied(folder):
            continue
        reason = needed.get(folder.name)
        if folder.resolve() in named:
            reason = "named by the settings"
        if iteration_of(folder.name) is None and reason is None:
            reason = "not made by an iteration"
        if reason is not None:
            yield Item(folder, True, reason)
        else:
            why = "of an earlier iteration, and not the champion; what it was stays on record"
            yield Item(folder, False, why, leaves_marker=True)


def _kept(store: ProjectStore, registered: Collection[Path] | None) -> Iterator[Item]:
    sources = None if registered is None else {path.resolve() for path in registered}
    for folder in sorted(store.kept.glob("*")):
        if sources is None:
            yield Item(folder, True, "MLflow's registry does not know M1: `srlm run` fills it again first")
        elif folder.resolve() in sources:
            yield Item(folder, True, "a registered version; delete that in MLflow first")
        else:
            yield Item(folder, False, "no registered version leads to it")


def _work(store: ProjectStore) -> Iterator[Item]:
    for folder in sorted((store.root / "work").glob("*")):
        marker = store.model_folder(folder.name) / MARKER
        newest = max((path.stat().st_mtime for path in _files(folder)), default=0.0)
        if not marker.is_file() or newest > marker.stat().st_mtime or folder.name in store.ended_work():
            yield Item(folder, True, "a training that goes on, or is not recorded yet")
        else:
            yield Item(folder, False, "the model was saved since")


def _journals(store: ProjectStore, latest: int) -> Iterator[Item]:
    for path in sorted((store.root / "journals").rglob("items.jsonl")):
        folder = path.parent
        by_partition = _PARTITION.fullmatch(folder.name)
        iteration = iteration_number(folder.name) if by_partition else iteration_of(folder.name)
        if iteration is None:
            yield Item(folder, True, "of the seed, or of all iterations")
        elif iteration >= latest:
            yield Item(folder, True, "of the latest iteration")
        else:
            yield Item(folder, False, "of an earlier iteration, whose tables are there")


def _assessments(store: ProjectStore) -> Iterator[Item]:
    current: dict[str, Path] = {}
    for marker in (store.root / "models").glob(f"*/{MARKER}"):
        with suppress(ModelError):
            current[marker.parent.name] = store.assessment_folder(store.checkpoint(marker.parent.name))
    for folder in sorted((store.root / "assessments").glob("*")):
        name = folder.name.rpartition("-")[0]
        if current.get(name, folder) != folder:
            yield Item(folder, False, f"{name} is another model now")
        else:
            yield Item(folder, True, "read by reports and by the next iteration")


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
