"""What `srlm status` says beside the figures: what is running, was refused, is out of date or unfinished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import dagster as dg

from srlm_pipeline.assets.automation import (
    IN_PROGRESS,
    PARTITION_TAG,
    newest_materialization,
    refusal_of,
    rejection_of,
)
from srlm_pipeline.assets.stage import iterations
from srlm_pipeline.commands.launch import POLICY, is_orphan, outstanding
from srlm_pipeline.config import Settings
from srlm_pipeline.store import iteration_number, model_name

_FIRST = dg.AssetKey("generated_prompts")
_LAST = dg.AssetKey("iteration_report")
_NAMED = 4


def standing(definitions: dg.Definitions, instance: dg.DagsterInstance, settings: Settings) -> list[str]:
    """Return one sentence for each thing that is not simply done; none if everything is up to date.

    Args:
        definitions: The code location's; what is out of date follows from their settings.
        instance: Where runs and results are recorded.
        settings: What becomes of a refused model.
    """
    told, running = [], set()
    for run in instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS)):
        part = run.tags.get(PARTITION_TAG) or run.job_name
        if is_orphan(run):
            told.append(f"{part}: its process ended before it did (run {run.run_id[:8]}); `srlm run` goes on with it")
        else:
            running.add(part)
            told.append(f"{part}: {_progress(instance, run)} (run {run.run_id[:8]})")
    begun = [key for key in iterations.get_partition_keys() if key in instance.get_materialized_partitions(_FIRST)]
    for part, job, partition in (("seed", "seed", None), *((key, "iteration", key) for key in begun)):
        if part not in running:
            told += [f"{part}: {line}" for line in _part(definitions, instance, job, partition)]
    newest = begun[-1] if begun else None
    rejection = rejection_of(instance, newest) if newest else None
    if rejection and newest not in running and newest in instance.get_materialized_partitions(_LAST):
        name = model_name(iteration_number(rejection.partition) + 1)
        again = settings.schedule.after_rejection == "retry" and rejection.attempt <= settings.schedule.max_retries
        follows = "the schedule tries again" if again else "schedule and sensor go no further, `srlm run` does"
        told.append(f"{newest}: {name} was refused, attempt {rejection.attempt} (`srlm report` says why): {follows}")
    return told


def _part(definitions: dg.Definitions, instance: dg.DagsterInstance, job: str, partition: str | None) -> Iterator[str]:
    # Policy is asked for with whatever is, to look for its model.
    wanted = [key for key in outstanding(definitions, instance, job, partition) if key != POLICY]
    made = [key for key in wanted if newest_materialization(instance, key, partition) is not None]
    refused = {key: why for key in made if (why := refusal_of(instance, key, partition)) is not None}
    for key, why in refused.items():
        yield f"{key.to_user_string()} was refused: {why}"
    stale, missing = [key for key in made if key not in refused], [key for key in wanted if key not in made]
    if stale:
        yield f"out of date: {_listed(stale)}; `srlm run` makes {'it' if len(stale) == 1 else 'them'} again"
    if missing:
        yield f"not made yet: {_listed(missing)}"


def _progress(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """Return which step is being computed, and since when, in local time."""
    stats = instance.get_run_step_stats(run.run_id)
    begun = [(step.step_key, step.start_time) for step in stats if step.start_time and step.end_time is None]
    if not begun:
        return "waits for its turn" if run.status != dg.DagsterRunStatus.STARTED else "is running"
    step, seconds = begun[-1]
    return f"{step} is running since {datetime.fromtimestamp(seconds).astimezone():%H:%M}"


def _listed(keys: Sequence[dg.AssetKey]) -> str:
    names = [key.to_user_string() for key in keys]
    more = len(names) - _NAMED
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:_NAMED])} and {more} more"
