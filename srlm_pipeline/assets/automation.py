"""Jobs, the nightly schedule, and the sensor that goes on by itself."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from srlm_pipeline.assets.common import iterations
from srlm_pipeline.resources.project import definition_settings
from srlm_pipeline.store import iteration_number, partition_key

LOOP_TAG = "srlm/loop"
PARTITION_TAG = "dagster/partition"
IN_PROGRESS = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

seed_job = dg.define_asset_job(
    "seed",
    selection=dg.AssetSelection.groups("seed"),
    description="SFT baseline, judging data and the seed model M1, measured.",
    tags={LOOP_TAG: "seed"},
)
iteration_job = dg.define_asset_job(
    "iteration",
    selection=dg.AssetSelection.groups("iteration"),
    description="One self-rewarding iteration: M_t invents, answers, judges, learns; M_{t+1} is measured.",
    partitions_def=iterations,
    tags={LOOP_TAG: "iteration"},
)


def iteration_assets(asset_graph: Any) -> list[dg.AssetKey]:
    """Return the keys of the partitioned assets, upstream first."""
    return [key for key in asset_graph.toposorted_asset_keys if asset_graph.get(key).partitions_def is not None]


def newest_materialization(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None
) -> dg.EventLogRecord | None:
    """Return the newest materialization of an asset, or of one of its partitions."""
    filters = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition] if partition else None)
    records = instance.fetch_materializations(filters, limit=1).records
    return records[0] if records else None


def is_refused(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None) -> bool:
    """Return whether a blocking check failed on the newest materialization: nothing may be built upon it."""
    newest = newest_materialization(instance, key, partition)
    if newest is None:
        return False
    for record in instance.get_records_for_run(
        newest.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION
    ).records:
        event = record.event_log_entry.dagster_event
        evaluation = event.asset_check_evaluation_data if event else None
        if evaluation is None or evaluation.passed or not evaluation.blocking:
            continue
        target = evaluation.target_materialization_data
        if target is not None and target.storage_id == newest.storage_id:
            return True
    return False


def missing_assets(instance: dg.DagsterInstance, keys: Sequence[dg.AssetKey], partition: str) -> list[dg.AssetKey]:
    """Return which assets a partition lacks: never materialized, or refused by a blocking check."""
    return [
        key
        for key in keys
        if partition not in instance.get_materialized_partitions(key) or is_refused(instance, key, partition)
    ]


def next_iteration(instance: dg.DagsterInstance, keys: Sequence[dg.AssetKey]) -> tuple[str, list[dg.AssetKey]] | None:
    """Return the first incomplete partition and what it lacks; None when all planned ones are complete."""
    for partition in iterations.get_partition_keys():
        missing = missing_assets(instance, keys, partition)
        if missing:
            return partition, missing
    return None


def rejected_before(instance: dg.DagsterInstance, partition: str) -> str | None:
    """Return why a schedule should not go on by itself: the model that would enter was refused promotion."""
    iteration = iteration_number(partition)
    if iteration == 1:
        return None
    before = partition_key(iteration - 1)
    newest = newest_materialization(instance, dg.AssetKey("promotion"), before)
    event = newest.asset_materialization if newest else None
    if event is None or event.metadata["promoted"].value:
        return None
    return (
        f"the model of {before} was not promoted: {event.metadata['rules'].value}\n"
        f"Materialize {partition} by hand to go on with it all the same."
    )


def iteration_in_flight(instance: dg.DagsterInstance) -> dg.DagsterRun | None:
    """Return a run that is computing an iteration, or the seed, if there is one."""
    for run in instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS)):
        if LOOP_TAG in run.tags or str(run.tags.get(PARTITION_TAG, "")).startswith("iter_"):
            return run
    return None


def decide_next_run(
    context: dg.ScheduleEvaluationContext | dg.SensorEvaluationContext,
) -> dg.RunRequest | dg.SkipReason:
    """Return a request for the next missing iteration, or why there is none."""
    instance = context.instance
    running = iteration_in_flight(instance)
    if running is not None:
        return dg.SkipReason(
            f"run {running.run_id[:8]} ({running.tags.get(PARTITION_TAG) or running.job_name}) is still in flight"
        )
    if instance.get_latest_materialization_event(dg.AssetKey("seed_model")) is None:
        return dg.SkipReason("there is no seed model yet: materialize the job `seed` first")
    keys = iteration_assets(context.repository_def.asset_graph)
    following = next_iteration(instance, keys)
    if following is None:
        planned = len(iterations.get_partition_keys())
        return dg.SkipReason(f"all {planned} planned iterations are complete; raise schedule.planned_iterations")
    partition, missing = following
    rejection = rejected_before(instance, partition)
    if rejection is not None:
        return dg.SkipReason(rejection)
    # Policy is always among them: it is the guard that the entering model exists.
    wanted = [dg.AssetKey("policy"), *missing]
    return dg.RunRequest(
        run_key=None,
        partition_key=partition,
        asset_selection=list(dict.fromkeys(wanted)),
        tags={LOOP_TAG: "iteration", "srlm/iteration": str(iteration_number(partition))},
    )


@dg.schedule(
    job=iteration_job,
    cron_schedule=definition_settings().schedule.cron,
    execution_timezone=definition_settings().schedule.timezone,
    default_status=dg.DefaultScheduleStatus.STOPPED,
)
def nightly_iteration(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Each night the next missing iteration; what an interrupted night left is completed first."""
    return decide_next_run(context)


@dg.sensor(
    job=iteration_job,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
)
def continue_to_planned(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """While switched on, one iteration follows another until all are complete, one fails, or a model is refused."""
    last = context.instance.get_runs(dg.RunsFilter(tags={LOOP_TAG: "iteration"}), limit=1)
    if last and last[0].status == dg.DagsterRunStatus.FAILURE:
        keys = iteration_assets(context.repository_def.asset_graph)
        if missing_assets(context.instance, keys, last[0].tags[PARTITION_TAG]):
            return dg.SkipReason(
                f"the last iteration failed (run {last[0].run_id[:8]}); materialize it by hand to go on"
            )
    return decide_next_run(context)
