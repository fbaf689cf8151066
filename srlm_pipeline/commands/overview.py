"""`srlm status`: models and iterations with their key figures, read from Dagster's records."""

from __future__ import annotations

from typing import Any

import dagster as dg
from rich.table import Table

from srlm_pipeline.assets.common import iterations
from srlm_pipeline.config import Settings
from srlm_pipeline.models.checkpoint import is_checkpoint, read_checkpoint
from srlm_pipeline.store import SFT_BASELINE, iteration_number, model_name, open_store

NONE = "\u2013"


def overview_table(instance: dg.DagsterInstance, settings: Settings) -> Table:
    """Return one row per model: how it was made, how it fares, how it judges."""
    store = open_store(settings)
    table = Table(
        "model",
        "from",
        "vs SFT baseline\nwin/tie/loss",
        "vs previous\nwin/tie/loss",
        "judge accuracy\n(length-balanced)",
        "length\nbaseline",
        "pairs",
        "champion",
        title=f"Project {settings.project}",
    )
    seed = metadata_of(instance, "seed_evaluation", None)
    for name in ("base", SFT_BASELINE, model_name(1)):
        exists = name == "base" or is_checkpoint(store.model_folder(name))
        versus = match_text(seed, "M1_vs_baseline_") if name == model_name(1) else NONE
        table.add_row(
            name,
            "" if name == "base" else "seed",
            versus,
            NONE,
            judge_text(seed, f"{name}_"),
            share(seed.get(f"{name}_length_baseline")),
            NONE,
            NONE,
            style=None if exists else "dim",
        )
    for key in iterations.get_partition_keys():
        iteration = iteration_number(key)
        folder = store.model_folder(model_name(iteration + 1))
        if not is_checkpoint(folder):
            break
        wins = metadata_of(instance, "win_rates", key)
        judge = metadata_of(instance, "judge_accuracy", key)
        promoted = metadata_of(instance, "promotion", key).get("promoted")
        table.add_row(
            model_name(iteration + 1),
            f"{key} on {read_checkpoint(folder).parent or '?'}"[:24],
            match_text(wins, "vs_baseline_"),
            match_text(wins, "vs_previous_"),
            judge_text(judge, ""),
            share(judge.get("length_baseline")),
            str(metadata_of(instance, "preference_pairs", key).get("pairs_kept", NONE)),
            {True: "promoted", False: "rejected", None: NONE}[promoted],
        )
    return table


def metadata_of(instance: dg.DagsterInstance, asset: str, partition: str | None) -> dict[str, Any]:
    """Return the metadata values of an asset's newest materialization, empty if there is none."""
    filters = dg.AssetRecordsFilter(
        asset_key=dg.AssetKey(asset), asset_partitions=[partition] if partition is not None else None
    )
    records = instance.fetch_materializations(filters, limit=1).records
    if not records or records[0].asset_materialization is None:
        return {}
    return {name: entry.value for name, entry in records[0].asset_materialization.metadata.items()}


def match_text(metadata: dict[str, Any], prefix: str) -> str:
    """Return a match as wins/ties/losses."""
    if f"{prefix}wins" not in metadata:
        return NONE
    return "/".join(str(int(metadata[f"{prefix}{part}"])) for part in ("wins", "ties", "losses"))


def judge_text(metadata: dict[str, Any], prefix: str) -> str:
    """Return pairwise and length-balanced accuracy."""
    if f"{prefix}pairwise_accuracy" not in metadata:
        return NONE
    balanced = metadata.get(f"{prefix}length_balanced_accuracy")
    return f"{share(metadata[f'{prefix}pairwise_accuracy'])} ({share(balanced)})"


def share(value: Any) -> str:
    """Return a share in percent."""
    return f"{value:.1%}" if isinstance(value, float | int) else NONE
