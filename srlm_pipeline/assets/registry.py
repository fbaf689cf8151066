"""Which models are in MLflow's registry: M1, and every model that was decided on.

The project's folder knows them too, so that they come back where MLflow's store was lost.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from srlm_pipeline.assets.seed import M1
from srlm_pipeline.assets.stage import Stage, iterations
from srlm_pipeline.config import Settings
from srlm_pipeline.evaluation.champion import champion_before, standing_decision
from srlm_pipeline.evaluation.promotion import Decision
from srlm_pipeline.exports import model_card
from srlm_pipeline.models.checkpoint import Checkpoint, is_checkpoint
from srlm_pipeline.models.integrity import is_emptied
from srlm_pipeline.store import ProjectStore, iteration_number

if TYPE_CHECKING:
    from srlm_pipeline.tracking import Tracker


@dataclass(frozen=True)
class Entry:
    """A model as it is registered.

    Attributes:
        checkpoint: The model.
        tags: What the version says of itself.
    """

    checkpoint: Checkpoint
    tags: Mapping[str, str]


def seed_entry(store: ProjectStore) -> Entry:
    """Return M1, the champion until an iteration's model is promoted."""
    first = store.checkpoint(M1)
    return Entry(first, {"model": M1, "digest": first.digest, "iteration": "0", "verdict": "seed model"})


def decided_entry(store: ProjectStore, iteration: int, decision: Decision) -> Entry:
    """Return an iteration's model with the verdict on it."""
    tags = {
        "model": decision.model,
        "digest": decision.digest,
        "iteration": str(iteration),
        "verdict": "promoted" if decision.promoted else "rejected",
        "reason": decision.reason,
    }
    return Entry(store.checkpoint(decision.model), tags)


def leader(store: ProjectStore) -> str:
    """Return the name of the champion after all iterations."""
    return champion_before(store, len(_partitions()) + 1)


def register(stage: Stage, entry: Entry) -> str:
    """Register a model as a version of this asset's run, and let the alias `champion` follow.

    Returns:
        The version.
    """
    from srlm_pipeline.tracking import Tracker

    return _register(Tracker(stage.settings), stage.store, stage.settings, entry, stage.run.run_id)


def is_lost(store: ProjectStore, known: Collection[str]) -> bool:
    """Whether the registry is not the one that this project filled: it lacks M1, which is always registered.

    Args:
        store: The project's folders.
        known: Digests of the models that are registered.
    """
    return is_checkpoint(store.model_folder(M1)) and store.checkpoint(M1).digest not in known


def restore_registry(store: ProjectStore, settings: Settings) -> list[str]:
    """Register again what the project's folder knows, where the registry was lost.

    Returns:
        Names of the models that were registered.
    """
    from srlm_pipeline.tracking import Tracker

    tracker = Tracker(settings)
    known = tracker.registered(settings.project)
    if not is_lost(store, known):
        return []
    # M1 last, for it says that all are there.
    missing = [entry for entry in reversed(_entries(store)) if entry.checkpoint.digest not in known]
    for entry in missing:
        _register(tracker, store, settings, entry, None)
    return sorted(entry.checkpoint.name for entry in missing)


def _register(tracker: Tracker, store: ProjectStore, settings: Settings, entry: Entry, run_id: str | None) -> str:
    model = entry.checkpoint
    kept, card, is_leader = store.keep(model), model_card(store, model, settings), leader(store) == model.name
    return tracker.register(settings.project, kept, run_id, entry.tags, card, is_leader)


def _entries(store: ProjectStore) -> list[Entry]:
    """Return M1 and the models that were decided on, those left out whose weights are nowhere any more."""
    decided = ((iteration_number(key), standing_decision(store, iteration_number(key))) for key in _partitions())
    found = [seed_entry(store), *(decided_entry(store, t, decision) for t, decision in decided if decision)]
    models = [(entry, entry.checkpoint) for entry in found]
    return [entry for entry, m in models if is_checkpoint(store.kept_folder(m)) or not is_emptied(m.path)]


def _partitions() -> list[str]:
    return list(iterations.get_partition_keys())
