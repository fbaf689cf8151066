"""`srlm status`: models and iterations with their key figures, read from Dagster's records."""

from __future__ import annotations

from typing import Any

import dagster as dg
from rich import box
from rich.table import Column, Table

from srlm_pipeline.assets.automation import metadata_of
from srlm_pipeline.assets.stage import iterations
from srlm_pipeline.config import Settings
from srlm_pipeline.evaluation.champion import standing_decision
from srlm_pipeline.evaluation.independence import dependences
from srlm_pipeline.evaluation.opponents import Role
from srlm_pipeline.evaluation.promotion import Decision
from srlm_pipeline.models.checkpoint import Checkpoint, is_checkpoint
from srlm_pipeline.store import BASE, ProjectStore, iteration_number, model_name, open_store

NONE = "\u2013"
_SHORT: dict[Role, str] = {"base": "base", "baseline": "SFT", "previous": "prev"}
_FIGURES = ("loops", "recites", "closed_tasks", "pairwise_accuracy")


def overview_table(instance: dg.DagsterInstance, settings: Settings) -> Table:
    """Return one row per model: how it was made, how it fares, what is wrong with its replies, how it judges."""
    store = open_store(settings)
    seed = metadata_of(instance, "seed_evaluation", None)
    assessed = metadata_of(instance, "seed_assessment", None)
    baseline, first = store.baseline, model_name(1)
    # Without SFT the baseline is the base model, and the match the same.
    roles = [role for role in _SHORT if role != "baseline" or baseline != BASE]
    table = Table(
        Column("model", no_wrap=True),
        # Of all columns these alone may be broken where a terminal is narrow; nothing is cut off.
        *(Column(f"vs {_SHORT[role]}\nw/t/l", overflow="fold") for role in roles),
        *(Column(head, no_wrap=True) for head in ("loops", "re-\ncites", "tasks", "judge", "pairs")),
        Column("verdict", no_wrap=True),
        padding=(0, 0),
        box=box.SIMPLE,
        title=f"Project {settings.project}",
        caption=caption(assessed, settings, baseline),
    )
    for name in dict.fromkeys((BASE, baseline, first)):
        exists = name == BASE or is_checkpoint(store.model_folder(name))
        measured = name == BASE or (exists and assessed.get(f"{name}_digest") == store.checkpoint(name).digest)
        table.add_row(
            name,
            *(match_text(seed, f"M1_vs_{role}_") if name == first else NONE for role in roles),
            *(rounded(assessed.get(f"{name}_{figure}") if measured else None) for figure in _FIGURES),
            NONE,
            NONE,
            style=None if exists else "dim",
        )
    for key in iterations.get_partition_keys():
        iteration = iteration_number(key)
        name = model_name(iteration + 1)
        if not is_checkpoint(store.model_folder(name)):
            break
        made = store.checkpoint(name)
        wins, own = (_figures_of(made, metadata_of(instance, asset, key)) for asset in ("win_rates", "assessment"))
        current = descends(store, iteration, made)
        table.add_row(
            name,
            *(match_text(wins, f"vs_{role}_") for role in roles),
            *(rounded(own.get(figure)) for figure in _FIGURES),
            str(metadata_of(instance, "preference_pairs", key).get("pairs_kept", NONE)),
            _verdict(standing_decision(store, iteration)) if current else "outdated",
            style=None if current else "dim",
        )
    return table


def descends(store: ProjectStore, iteration: int, made: Checkpoint) -> bool:
    """Return whether a model was made from the one that would enter its iteration now, not from one of before."""
    entering = store.entering_model(iteration).digest
    return entering in (made.parent, made.lineage.get("judged_by"))


def _figures_of(made: Checkpoint, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return what was recorded of this very model; nothing if another one had its name then."""
    return metadata if metadata.get("digest") == made.digest else {}


def _verdict(decision: Decision | None) -> str:
    if decision is None:
        return NONE
    return "promoted" if decision.promoted else "rejected"


def caption(assessed: dict[str, Any], settings: Settings, baseline: str) -> str | None:
    """Return what the columns mean, once something was measured, and how far the matches can be believed."""
    by_length = assessed.get(f"{BASE}_length_baseline")
    if by_length is None:
        return None
    without = f"SFT is switched off: {BASE}, the base model, is the SFT baseline. " if baseline == BASE else ""
    own = " The arbiter is not independent of the loop: matches are its own opinion." if dependences(settings) else ""
    return (
        f"{without}M2 is made in partition iter_001, M3 in iter_002, ... w/t/l: wins, ties, losses. loops, recites: "
        "share of replies that go in circles, or recite. tasks: closed tasks solved. Judge accuracy: share of "
        f"held-out human preferences that the model's scores agree with; preferring the longer reply gets "
        f"{share(by_length)}. "
        f"Outdated: made from a model that is another one now.{own} Read the replies: srlm report --open, srlm read."
    )


def match_text(metadata: dict[str, Any], prefix: str) -> str:
    """Return a match as wins/ties/losses."""
    if f"{prefix}wins" not in metadata:
        return NONE
    return "/".join(str(int(metadata[f"{prefix}{part}"])) for part in ("wins", "ties", "losses"))


def rounded(value: Any) -> str:
    """Return a share in whole percent, for narrow columns."""
    return f"{value:.0%}" if isinstance(value, float | int) else NONE


def share(value: Any) -> str:
    """Return a share in percent."""
    return f"{value:.1%}" if isinstance(value, float | int) else NONE
