"""Training work goes when its model is not only saved but recorded: only then is nothing trained again."""

import dagster as dg

from srlm_pipeline.errors import ModelError
from srlm_pipeline.store import ProjectStore, iteration_of, model_name, partition_key

_DATA_VERSION_TAG = "dagster/data_version"


def drop_recorded_work(instance: dg.DagsterInstance, store: ProjectStore) -> None:
    """Remove the work on models that Dagster knows as they are saved."""
    for name in store.ended_work():
        try:
            saved = store.checkpoint(name).digest
        except ModelError:
            continue
        if _recorded(instance, name) == saved:
            store.drop_work(name)


def _recorded(instance: dg.DagsterInstance, model: str) -> str | None:
    """Return the digest with which a model was materialized last."""
    iteration = iteration_of(model)
    asset = "iteration_model" if iteration else "seed_model" if model == model_name(1) else model
    partitions = [partition_key(iteration)] if iteration else None
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=partitions)
    for record in instance.fetch_materializations(wanted, limit=1).records:
        if record.asset_materialization is not None:
            return (record.asset_materialization.tags or {}).get(_DATA_VERSION_TAG)
    return None
