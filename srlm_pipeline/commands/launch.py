"""`srlm run`: the seed, then iterations, through the same definitions and instance that the UI shows."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.events import RunFailureReason
from dagster._core.loader import LoadingContext
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from srlm_pipeline.archive import open_archive
from srlm_pipeline.assets.automation import IN_PROGRESS, failure_of, is_refused, iteration_in_flight, metadata_of
from srlm_pipeline.assets.products import loss
from srlm_pipeline.assets.registry import restore_registry
from srlm_pipeline.assets.stage import iterations
from srlm_pipeline.config import LauncherSettings, Settings, load_settings
from srlm_pipeline.errors import ArchiveError, SrlmError
from srlm_pipeline.evaluation.other_answers import require_names
from srlm_pipeline.generation.server_pool import models_served
from srlm_pipeline.lock import sole_use
from srlm_pipeline.notices import failure, tell
from srlm_pipeline.resources.project import INTERRUPTED, PROJECT
from srlm_pipeline.store import iteration_number, open_store, partition_key
from srlm_pipeline.tracking import is_local
from srlm_pipeline.training.devices import require_division
from srlm_pipeline.training.fitting import require_installed

log = logging.getLogger(__name__)

PROCESS_TAG = "srlm/process"
# As Dagster's servers name the code location that they load from a module.
LOCATION = "srlm_pipeline.definitions"
POLICY = dg.AssetKey("policy")


class RunFailedError(SrlmError):
    """A run failed; the reasons are those of the failed steps.

    Attributes:
        reasons: One per failed step.
    """

    def __init__(self, job: str, reasons: Sequence[str]) -> None:
        self.reasons = list(reasons)
        super().__init__(f"the run `{job}` failed:\n" + "\n".join(f"  - {reason}" for reason in self.reasons))


@dataclass
class StageTimes:
    """Seconds by asset, in the order in which they ran."""

    seconds: dict[str, float] = field(default_factory=dict)


def run_loop(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    n_iterations: int,
    overrides: dict[str, Any],
    announce: Callable[[str], None],
) -> StageTimes:
    """Materialize whatever is missing, stale or lost on disk up to the given iteration.

    Args:
        definitions: The code location's.
        instance: The instance that the UI shows.
        n_iterations: Iterations 1..n.
        overrides: Settings for these runs only; they travel as run configuration.
        announce: Called with one line per step of the way.

    Raises:
        RunFailedError: If an asset fails.
        SrlmError: If more iterations are asked for than are planned, or another run is in flight.
        ArchiveError: If the durable copy cannot be read in the beginning, or written in the end.
        HomeInUseError: If another process is at work in the same home.
        KeyboardInterrupt: If a signal ended it.
    """
    planned = len(iterations.get_partition_keys())
    if n_iterations > planned:
        raise SrlmError(
            f"{n_iterations} iterations were asked for, but {planned} are planned: raise schedule.planned_iterations"
        )
    home = Path(instance.root_directory)
    with sole_use(home), _archived(settings := load_settings(None, overrides), announce):
        close_dead_runs(instance)
        running = iteration_in_flight(instance)
        if running is not None:
            raise SrlmError(
                f"run {running.run_id[:8]} ({running.job_name}) is in flight; wait for it or cancel it first"
            )
        require_names([Path(path) for path in settings.evaluation.other_answers])
        if settings.training.launcher != LauncherSettings():
            # The default can always be had, and asking costs the import of torch.
            require_division(settings)
        require_installed(settings)
        open_store(settings).tidy()
        times = StageTimes()
        _run_outstanding(definitions, instance, "seed", None, overrides, announce, times)
        for t in range(1, n_iterations + 1):
            _run_outstanding(definitions, instance, "iteration", partition_key(t), overrides, announce, times)
        settings = load_settings(None, overrides)
        # Another store may not answer now, and nothing may be left to do.
        restored = restore_registry(open_store(settings), settings) if is_local(settings) else []
        if restored:
            announce(f"registered again in MLflow, whose store did not know them: {', '.join(restored)}")
        return times


def outstanding(
    definitions: dg.Definitions, instance: dg.DagsterInstance, job: str, partition: str | None
) -> list[dg.AssetKey]:
    """Return the job's assets that are missing or stale, upstream first.

    Stale means what the UI calls unsynced: the settings that an asset reads have changed, or something upstream has.
    What a blocking check refused is outstanding too, and so is everything below an outstanding asset.
    """
    graph, keys = definitions.resolve_asset_graph(), _assets_of(definitions, job)
    resolver = CachingStaleStatusResolver(instance, graph, InstanceScope(instance))
    wanted: list[dg.AssetKey] = []
    for key in keys:
        below = not graph.get(key).parent_keys.isdisjoint(wanted)
        if below or resolver.get_status(key, partition) != StaleStatus.FRESH or is_refused(instance, key, partition):
            wanted.append(key)
    if wanted and POLICY in keys and POLICY not in wanted:
        # The guard that the entering model is there.
        wanted.insert(0, POLICY)
    return wanted if wanted != [POLICY] else []


class InstanceScope(LoadingContext):
    """A cache scope for reading the instance once.

    Dagster resolves staleness for its UI only; there is no public call for it yet.
    """

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._loaders: dict[Any, Any] = {}

    @property
    def instance(self) -> dg.DagsterInstance:
        """The instance that is read."""
        return self._instance

    @property
    def loaders(self) -> dict[Any, Any]:
        """Loaders by type, filled by Dagster."""
        return self._loaders


def close_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs of command lines that no longer live as failed, and free what they held.

    Returns:
        Their run ids.
    """
    closed = []
    for run in instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS)):
        if is_orphan(run):
            instance.report_run_failed(run, "the process of `srlm run` ended before the run did")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            closed.append(run.run_id)
    return closed


def is_orphan(run: dg.DagsterRun) -> bool:
    """Return whether a run was begun by a command line that no longer lives."""
    process = run.tags.get(PROCESS_TAG)
    return process is not None and not _alive(process)


@contextmanager
def _archived(settings: Settings, announce: Callable[[str], None]) -> Iterator[None]:
    """Begin with what the durable copy has, records included, and leave everything there in the end."""
    archive = open_archive(settings)
    if archive is None:
        yield
        return
    taken = archive.fetch(announce, with_records=True)
    if taken:
        announce(f"taken from {archive.remote.address}: {len(taken)} files")
    try:
        yield
    except Exception:
        # What went wrong is what there is to say.
        with suppress(ArchiveError):
            archive.push(with_records=True)
        raise
    archive.push(with_records=True)


def _run_outstanding(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    job: str,
    partition: str | None,
    overrides: dict[str, Any],
    announce: Callable[[str], None],
    times: StageTimes,
) -> None:
    name = f"{job} {partition}" if partition else job
    wanted = outstanding(definitions, instance, job, partition)
    started = time.monotonic()
    if POLICY in wanted and metadata_of(instance, "policy", partition).get("attempt", 1) > 1:
        # It may be a further attempt no longer, and then more is outdated than seemed so.
        _run_assets(definitions, instance, name, job, partition, [POLICY], overrides, times)
        wanted = outstanding(definitions, instance, job, partition)
    lost = _lost(definitions, job, partition, wanted, overrides)
    if lost:
        # Alone and first: what comes out is what was there, and then nothing below has to be done again.
        for asset, what in lost.items():
            announce(f"{name}: {asset.to_user_string()} is made again: {what}")
        _run_assets(definitions, instance, name, job, partition, list(lost), overrides, times)
        wanted = outstanding(definitions, instance, job, partition)
    if not wanted:
        announce(f"{name}: everything is up to date")
        return
    announce(f"{name}: {', '.join(key.to_user_string() for key in wanted)}")
    _run_assets(definitions, instance, name, job, partition, wanted, overrides, times)
    announce(f"{name}: done in {time.monotonic() - started:.0f} s")


def _assets_of(definitions: dg.Definitions, job: str) -> list[dg.AssetKey]:
    """Return the job's assets, upstream first."""
    own = definitions.resolve_job_def(job).asset_layer.executable_asset_keys
    return [key for key in definitions.resolve_asset_graph().toposorted_asset_keys if key in own]


def _lost(
    definitions: dg.Definitions,
    job: str,
    partition: str | None,
    wanted: Sequence[dg.AssetKey],
    overrides: dict[str, Any],
) -> dict[dg.AssetKey, str]:
    """Return the job's assets that are up to date but whose files are not whole, upstream first, and what they lack."""
    settings = load_settings(None, overrides)
    store, iteration = open_store(settings), iteration_number(partition) if partition else None
    there = [key for key in _assets_of(definitions, job) if key not in wanted]
    found = {key: loss(store, settings, key.to_user_string(), iteration) for key in there}
    return {key: what for key, what in found.items() if what is not None}


def _run_assets(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    name: str,
    job: str,
    partition: str | None,
    assets: list[dg.AssetKey],
    overrides: dict[str, Any],
    times: StageTimes,
) -> None:
    settings = load_settings(None, overrides)
    if not times.seconds and settings.engine.kind == "openai" and len(settings.engine.addresses) > 1:
        # Later on the others do the work of one that does not answer; now somebody is there who can start it.
        models_served(settings.engine)
    with shown_in_timeline(instance, job):
        result = definitions.resolve_job_def(job).execute_in_process(
            run_config={
                "resources": {PROJECT: {"config": {"overrides": overrides}}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            instance=instance,
            partition_key=partition,
            asset_selection=assets,
            tags={PROCESS_TAG: _own_process()},
            raise_on_error=False,
        )
    for event in result.all_events:
        if event.is_step_success:
            key = f"{event.step_key}[{partition}]" if partition else str(event.step_key)
            times.seconds[key] = event.step_success_data.duration_ms / 1000
    if _was_interrupted(result):
        # In a step Dagster has made an event of it.
        raise KeyboardInterrupt
    if not result.success:
        reasons = _reasons(result)
        tell(failure(settings.project, result.run_id, name, reasons), settings, open_store(settings), log.warning)
        raise RunFailedError(name, reasons)


@contextmanager
def shown_in_timeline(instance: dg.DagsterInstance, job: str) -> Iterator[None]:
    """Give runs the origin by which the UI files them under their job; a run within this process gets none."""
    origin = RemoteJobOrigin(
        RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(LOCATION), SINGLETON_REPOSITORY_NAME), job
    )
    create = instance.create_run_for_job
    instance.create_run_for_job = functools.partial(create, remote_job_origin=origin)
    try:
        yield
    finally:
        del instance.create_run_for_job


def _was_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    for event in result.all_events:
        if event.is_step_failure:
            given = event.step_failure_data.user_failure_data
            if given is not None and given.description == INTERRUPTED:
                return True
        if event.event_type == dg.DagsterEventType.RUN_FAILURE:
            return bool(event.job_failure_data.failure_reason == RunFailureReason.UNEXPECTED_TERMINATION)
    return False


def _reasons(result: dg.ExecuteInProcessResult) -> list[str]:
    reasons = []
    for event in result.all_events:
        if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            evaluation = event.asset_check_evaluation_data
            if not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR:
                name = f"{evaluation.asset_key.to_user_string()}: check {evaluation.check_name}"
                reasons.append(f"{name}: {evaluation.description}")
        if event.is_step_failure:
            reasons.append(f"{event.step_key}: {failure_of(event.step_failure_data)}")
    return reasons or ["see the run's page in Dagster"]


def _own_process() -> str:
    own = psutil.Process(os.getpid())
    return f"{own.pid}@{own.create_time():.0f}"


def _alive(process: str) -> bool:
    pid, _, created = process.partition("@")
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" == created
    except (psutil.NoSuchProcess, ValueError):
        return False
