"""Jobs, the nightly schedule, and the sensor that goes on by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dagster as dg

from srlm_pipeline.assets.stage import ATTEMPT_TAG, iterations
from srlm_pipeline.config import ScheduleSettings
from srlm_pipeline.errors import HomeInUseError
from srlm_pipeline.lock import shared_use
from srlm_pipeline.notices import failure, tell
from srlm_pipeline.resources.project import definition_settings
from srlm_pipeline.store import iteration_number, open_store, partition_key

LOOP_TAG = "srlm/loop"
PARTITION_TAG = "dagster/partition"
# Dagster sets it when it counts the tries.
WILL_RETRY_TAG = "dagster/will_retry"
IN_PROGRESS = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
ENDED_EARLY = {dg.DagsterRunStatus.FAILURE: "failed", dg.DagsterRunStatus.CANCELED: "was terminated"}

seed_job = dg.define_asset_job(
    "seed",
    # With a baseline to start from, what the seed model is made of is part of it.
    selection=dg.AssetSelection.groups("seed") | dg.AssetSelection.assets("seed_model").upstream(),
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


def metadata_of(instance: dg.DagsterInstance, asset: str, partition: str | None) -> dict[str, Any]:
    """Return the metadata values of an asset's newest materialization, empty if there is none."""
    newest = newest_materialization(instance, dg.AssetKey(asset), partition)
    event = newest.asset_materialization if newest else None
    return {name: entry.value for name, entry in event.metadata.items()} if event else {}


def is_refused(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None) -> bool:
    """Return whether a blocking check failed on the newest materialization: nothing may be built upon it."""
    return refusal_of(instance, key, partition) is not None


def refusal_of(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None) -> str | None:
    """Return why nothing may be built upon the newest materialization, in a blocking check's words; None if all may."""
    newest = newest_materialization(instance, key, partition)
    if newest is None:
        return None
    for record in instance.get_records_for_run(
        newest.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION
    ).records:
        event = record.event_log_entry.dagster_event
        evaluation = event.asset_check_evaluation_data if event else None
        if evaluation is None or evaluation.passed or not evaluation.blocking:
            continue
        target = evaluation.target_materialization_data
        if target is not None and target.storage_id == newest.storage_id:
            return evaluation.description or evaluation.check_name
    return None


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


@dataclass(frozen=True)
class Rejection:
    """A model that was refused promotion.

    Attributes:
        partition: Of the iteration that made it.
        attempt: Which attempt at that iteration it was.
        rules: All rules and their figures, as Markdown.
    """

    partition: str
    attempt: int
    rules: str


def rejection_of(instance: dg.DagsterInstance, partition: str) -> Rejection | None:
    """Return why a schedule should not build on an iteration: its model was refused promotion."""
    newest = newest_materialization(instance, dg.AssetKey("promotion"), partition)
    event = newest.asset_materialization if newest else None
    if event is None or event.metadata["promoted"].value:
        return None
    attempt = event.metadata.get("attempt")
    return Rejection(partition, int(attempt.value) if attempt else 1, str(event.metadata["rules"].value))


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
    try:
        with shared_use(Path(instance.root_directory)):
            pass
    except HomeInUseError as error:
        return dg.SkipReason(str(error))
    running = iteration_in_flight(instance)
    if running is not None:
        return dg.SkipReason(
            f"run {running.run_id[:8]} ({running.tags.get(PARTITION_TAG) or running.job_name}) is still in flight"
        )
    if instance.get_latest_materialization_event(dg.AssetKey("seed_model")) is None:
        return dg.SkipReason("there is no seed model yet: materialize the job `seed` first")
    keys = iteration_assets(context.repository_def.asset_graph)
    planned = iterations.get_partition_keys()
    following = next_iteration(instance, keys)
    done = planned.index(following[0]) if following else len(planned)
    rejection = rejection_of(instance, planned[done - 1]) if done else None
    if rejection is not None:
        return after_rejection(rejection, keys, definition_settings().schedule)
    if following is None:
        return dg.SkipReason(f"all {len(planned)} planned iterations are complete; raise schedule.planned_iterations")
    partition, missing = following
    # Policy is always among them: it is the guard that the entering model exists.
    return _request(partition, [dg.AssetKey("policy"), *missing])


def after_rejection(
    rejection: Rejection, keys: Sequence[dg.AssetKey], settings: ScheduleSettings
) -> dg.RunRequest | dg.SkipReason:
    """Return another attempt at the iteration, if the settings allow one, or why a person has to decide.

    Args:
        rejection: Of the newest complete iteration.
        keys: All assets of an iteration.
        settings: What to do.
    """
    following = partition_key(iteration_number(rejection.partition) + 1)
    refused = f"the model of {rejection.partition} was not promoted: {rejection.rules}\n"
    by_hand = f"Materialize {following} by hand to go on with it all the same."
    if settings.after_rejection == "stop":
        return dg.SkipReason(refused + by_hand)
    if rejection.attempt > settings.max_retries:
        tried = f"{rejection.attempt} attempts were made (schedule.max_retries is {settings.max_retries}). "
        return dg.SkipReason(refused + tried + by_hand)
    return _request(rejection.partition, keys, {ATTEMPT_TAG: str(rejection.attempt + 1)})


def _request(
    partition: str, keys: Sequence[dg.AssetKey], tags: Mapping[str, str] = MappingProxyType({})
) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=None,
        partition_key=partition,
        asset_selection=list(dict.fromkeys(keys)),
        tags={LOOP_TAG: "iteration", "srlm/iteration": str(iteration_number(partition)), **tags},
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


@dg.run_failure_sensor(default_status=dg.DefaultSensorStatus.RUNNING)
def tell_of_failures(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
    """Tells people of a failed run, where notices have addresses."""
    settings = definition_settings()
    steps = [event.step_failure_data for event in context.get_step_failure_events()]
    run = context.dagster_run
    reasons = [failure_of(data) for data in steps] or [_ended_from_outside(run, context.failure_event.message)]
    name = " ".join(filter(None, (run.job_name, run.tags.get(PARTITION_TAG))))
    notice = failure(settings.project, run.run_id, name, reasons)
    told = tell(notice, settings, open_store(settings), context.log.warning)
    return None if told else dg.SkipReason("not told: there is no address, nobody asked for it, or it was told before")


def _ended_from_outside(run: dg.DagsterRun, said: str | None) -> str:
    """Return why a run failed of which no step did, and how it goes on."""
    again = "Dagster starts it again" if run.tags.get(WILL_RETRY_TAG) == "true" else "re-execution continues"
    return f"no step failed: its process was killed, or never began; what is finished is kept, and {again} ({said})"


def failure_of(data: Any) -> str:
    """Return why a step failed: in the words that were written for people, or in those of the innermost error.

    Args:
        data: Dagster's `StepFailureData`.
    """
    if data.user_failure_data and data.user_failure_data.description:
        return str(data.user_failure_data.description)
    deepest = data.error
    while deepest is not None and deepest.cause is not None:
        deepest = deepest.cause
    return deepest.message.strip() if deepest else "failed"


@dg.sensor(
    job=iteration_job,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.STOPPED,
)
def continue_to_planned(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """While switched on, one iteration follows another until all are complete, one ends early, a model is refused."""
    last = context.instance.get_runs(dg.RunsFilter(tags={LOOP_TAG: "iteration"}), limit=1)
    if last and last[0].status in ENDED_EARLY:
        keys = iteration_assets(context.repository_def.asset_graph)
        # A further attempt finds everything there, from the attempt before.
        if ATTEMPT_TAG in last[0].tags or missing_assets(context.instance, keys, last[0].tags[PARTITION_TAG]):
            how = ENDED_EARLY[last[0].status]
            return dg.SkipReason(
                f"the last iteration {how} (run {last[0].run_id[:8]}); materialize it by hand to go on"
            )
    return decide_next_run(context)
