"""Who starts the next iteration, and when nobody does: the schedule, the sensor, the instance's limits."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from srlm_pipeline.assets.automation import LOOP_TAG, PARTITION_TAG, iterations
from srlm_pipeline.assets.stage import ATTEMPT_TAG
from srlm_pipeline.config import load_settings
from srlm_pipeline.definitions import defs

REPOSITORY = defs.get_repository_def()
ITERATION_ASSETS = [
    "policy",
    "champion",
    "generated_prompts",
    "candidates",
    "judged_scores",
    "preference_pairs",
    "iteration_model",
    "assessment",
    "win_rates",
    "collapse_monitors",
    "promotion",
    "iteration_report",
]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


def materialize(instance: dg.DagsterInstance, *assets: str, partition: str | None = None) -> None:
    for asset in assets:
        instance.report_runless_asset_event(dg.AssetMaterialization(dg.AssetKey(asset), partition=partition))


def complete(instance: dg.DagsterInstance, partition: str, promoted: bool = True, attempt: int = 1) -> None:
    materialize(instance, *(asset for asset in ITERATION_ASSETS if asset != "promotion"), partition=partition)
    rules = dg.MetadataValue.md("- the rules and their figures")
    verdict = {"promoted": promoted, "rules": rules, "attempt": attempt}
    instance.report_runless_asset_event(dg.AssetMaterialization("promotion", partition=partition, metadata=verdict))


def start_run(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus, tags: dict[str, str], job: str | None = None
) -> str:
    definition = defs.resolve_job_def(job) if job else defs.resolve_implicit_global_asset_job_def()
    return instance.create_run_for_job(definition, tags=tags, status=status).run_id


def tick_schedule(instance: dg.DagsterInstance) -> tuple[list[dg.RunRequest], str | None]:
    context = dg.build_schedule_context(
        instance=instance,
        repository_def=REPOSITORY,
        scheduled_execution_time=datetime(2025, 1, 1, 2, tzinfo=UTC),
    )
    decision = REPOSITORY.get_schedule_def("nightly_iteration").evaluate_tick(context)
    return list(decision.run_requests or []), decision.skip_message


def tick_sensor(instance: dg.DagsterInstance) -> tuple[list[dg.RunRequest], str | None]:
    context = dg.build_sensor_context(instance=instance, repository_def=REPOSITORY)
    decision = REPOSITORY.get_sensor_def("continue_to_planned").evaluate_tick(context)
    return list(decision.run_requests or []), decision.skip_message


def selected(request: dg.RunRequest) -> set[str]:
    return {key.to_user_string() for key in request.asset_selection or []}


def test_without_a_seed_model_the_night_is_skipped_and_the_reason_names_it(instance: dg.DagsterInstance) -> None:
    requests, reason = tick_schedule(instance)
    assert requests == []
    assert "seed model" in (reason or "")
    assert "`seed`" in (reason or "")


def test_the_first_night_asks_for_the_whole_first_iteration(instance: dg.DagsterInstance) -> None:
    materialize(instance, "seed_model")
    requests, _ = tick_schedule(instance)
    assert len(requests) == 1
    assert requests[0].partition_key == "iter_001"
    assert selected(requests[0]) == set(ITERATION_ASSETS)
    assert requests[0].tags[LOOP_TAG] == "iteration"
    assert requests[0].tags["srlm/iteration"] == "1"


def test_after_a_complete_iteration_the_next_one_is_asked_for(instance: dg.DagsterInstance) -> None:
    materialize(instance, "seed_model")
    complete(instance, "iter_001")
    # What iteration_model[iter_001] announces for the next iteration.
    materialize(instance, "policy", partition="iter_002")
    requests, _ = tick_schedule(instance)
    assert [request.partition_key for request in requests] == ["iter_002"]
    assert selected(requests[0]) == set(ITERATION_ASSETS)


def test_after_a_refused_promotion_the_night_is_skipped_with_the_rules_and_the_remedy(
    instance: dg.DagsterInstance,
) -> None:
    materialize(instance, "seed_model")
    complete(instance, "iter_001", promoted=False)
    requests, reason = tick_schedule(instance)
    assert requests == []
    assert "the model of iter_001 was not promoted: - the rules and their figures" in (reason or "")
    assert "Materialize iter_002 by hand" in (reason or "")


def test_a_promotion_after_a_refused_one_lets_the_nights_go_on(
    instance: dg.DagsterInstance,
) -> None:
    materialize(instance, "seed_model")
    complete(instance, "iter_001", promoted=False)
    complete(instance, "iter_002")
    requests, _ = tick_schedule(instance)
    assert [request.partition_key for request in requests] == ["iter_003"], "only the newest verdict counts"


@pytest.fixture
def retrying(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings("quickstart", {"schedule": {"after_rejection": "retry", "max_retries": 2}})
    monkeypatch.setattr("srlm_pipeline.assets.automation.definition_settings", lambda: settings)


@pytest.mark.usefixtures("retrying")
@pytest.mark.parametrize("attempt", [1, 2])
def test_a_refused_iteration_is_done_again_as_a_whole_where_the_settings_say_so(
    instance: dg.DagsterInstance, attempt: int
) -> None:
    materialize(instance, "seed_model")
    complete(instance, "iter_001")
    complete(instance, "iter_002", promoted=False, attempt=attempt)
    (request,), _ = tick_schedule(instance)
    assert request.partition_key == "iter_002"
    assert selected(request) == set(ITERATION_ASSETS)
    assert request.tags[ATTEMPT_TAG] == str(attempt + 1)


@pytest.mark.usefixtures("retrying")
def test_the_last_planned_iteration_is_done_again_too(instance: dg.DagsterInstance) -> None:
    materialize(instance, "seed_model")
    for partition in iterations.get_partition_keys():
        complete(instance, partition, promoted=partition != iterations.get_last_partition_key())
    (request,), _ = tick_schedule(instance)
    assert request.partition_key == iterations.get_last_partition_key()


@pytest.mark.usefixtures("retrying")
def test_attempts_end_after_as_many_as_the_settings_allow(instance: dg.DagsterInstance) -> None:
    materialize(instance, "seed_model")
    complete(instance, "iter_001", promoted=False, attempt=3)
    requests, reason = tick_schedule(instance)
    assert requests == []
    assert "3 attempts were made (schedule.max_retries is 2)" in (reason or "")


@pytest.mark.usefixtures("retrying")
def test_an_attempt_that_promotes_lets_the_nights_go_on(instance: dg.DagsterInstance) -> None:
    materialize(instance, "seed_model")
    complete(instance, "iter_001", promoted=False)
    complete(instance, "iter_001", attempt=2)
    (request,), _ = tick_schedule(instance)
    assert request.partition_key == "iter_002"
    assert ATTEMPT_TAG not in request.tags


@pytest.mark.usefixtures("retrying")
def test_the_sensor_does_not_try_again_for_ever_what_fails(instance: dg.DagsterInstance) -> None:
    materialize(instance, "seed_model")
    complete(instance, "iter_001", promoted=False)
    tags = {LOOP_TAG: "iteration", PARTITION_TAG: "iter_001", ATTEMPT_TAG: "2"}
    start_run(instance, dg.DagsterRunStatus.FAILURE, tags, "iteration")
    requests, reason = tick_sensor(instance)
    assert requests == []
    assert "failed" in (reason or "")


def test_of_a_half_finished_iteration_only_the_missing_assets_are_asked_for(instance: dg.DagsterInstance) -> None:
    materialize(instance, "seed_model")
    materialize(instance, "policy", "generated_prompts", "candidates", partition="iter_001")
    requests, _ = tick_schedule(instance)
    assert [request.partition_key for request in requests] == ["iter_001"]
    missing = set(ITERATION_ASSETS) - {"generated_prompts", "candidates"}
    assert selected(requests[0]) == missing, "policy is asked for again: it is the guard"


def test_when_all_planned_iterations_are_complete_the_reason_names_the_setting(instance: dg.DagsterInstance) -> None:
    materialize(instance, "seed_model")
    for partition in iterations.get_partition_keys():
        complete(instance, partition)
    requests, reason = tick_schedule(instance)
    assert requests == []
    assert f"all {len(iterations.get_partition_keys())} planned iterations" in (reason or "")
    assert "schedule.planned_iterations" in (reason or "")


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
def test_while_an_iteration_is_in_flight_the_night_is_skipped_naming_the_run(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus
) -> None:
    materialize(instance, "seed_model")
    run_id = start_run(instance, status, {LOOP_TAG: "iteration", PARTITION_TAG: "iter_001"}, "iteration")
    requests, reason = tick_schedule(instance)
    assert requests == []
    assert run_id[:8] in (reason or "")
    assert "iter_001" in (reason or "")


def test_while_the_seed_is_in_flight_the_night_is_skipped_naming_the_job(instance: dg.DagsterInstance) -> None:
    materialize(instance, "seed_model")
    run_id = start_run(instance, dg.DagsterRunStatus.STARTED, {LOOP_TAG: "seed"}, "seed")
    requests, reason = tick_schedule(instance)
    assert requests == []
    assert f"run {run_id[:8]} (seed)" in (reason or "")


def test_a_run_started_from_the_asset_graph_counts_as_in_flight(instance: dg.DagsterInstance) -> None:
    materialize(instance, "seed_model")
    start_run(instance, dg.DagsterRunStatus.STARTED, {PARTITION_TAG: "iter_001"})
    requests, reason = tick_schedule(instance)
    assert requests == []
    assert "in flight" in (reason or "")


def test_a_finished_run_is_not_in_flight(instance: dg.DagsterInstance) -> None:
    materialize(instance, "seed_model")
    start_run(instance, dg.DagsterRunStatus.SUCCESS, {LOOP_TAG: "iteration", PARTITION_TAG: "iter_001"}, "iteration")
    requests, _ = tick_schedule(instance)
    assert len(requests) == 1


def test_the_sensor_asks_for_what_the_schedule_would_ask_for(instance: dg.DagsterInstance) -> None:
    materialize(instance, "seed_model")
    (from_schedule,), _ = tick_schedule(instance)
    (from_sensor,), _ = tick_sensor(instance)
    assert from_sensor.partition_key == from_schedule.partition_key == "iter_001"
    assert selected(from_sensor) == selected(from_schedule)


def test_the_sensor_stops_after_a_failed_iteration_naming_the_run(instance: dg.DagsterInstance) -> None:
    materialize(instance, "seed_model")
    tags = {LOOP_TAG: "iteration", PARTITION_TAG: "iter_001"}
    run_id = start_run(instance, dg.DagsterRunStatus.FAILURE, tags, "iteration")
    requests, reason = tick_sensor(instance)
    assert requests == []
    assert run_id[:8] in (reason or "")
    assert "failed" in (reason or "")


def test_the_sensor_does_not_begin_again_what_a_person_terminated(instance: dg.DagsterInstance) -> None:
    materialize(instance, "seed_model")
    tags = {LOOP_TAG: "iteration", PARTITION_TAG: "iter_001"}
    start_run(instance, dg.DagsterRunStatus.CANCELED, tags, "iteration")
    requests, reason = tick_sensor(instance)
    assert requests == []
    assert "was terminated" in (reason or "")


def test_the_sensor_goes_on_once_the_failed_iteration_was_run_again(instance: dg.DagsterInstance) -> None:
    materialize(instance, "seed_model")
    tags = {LOOP_TAG: "iteration", PARTITION_TAG: "iter_001"}
    start_run(instance, dg.DagsterRunStatus.FAILURE, tags, "iteration")
    start_run(instance, dg.DagsterRunStatus.SUCCESS, tags, "iteration")
    complete(instance, "iter_001")
    requests, _ = tick_sensor(instance)
    assert [request.partition_key for request in requests] == ["iter_002"]


def test_the_sensor_goes_on_once_the_failed_iteration_was_completed_from_the_asset_graph(
    instance: dg.DagsterInstance,
) -> None:
    materialize(instance, "seed_model")
    tags = {LOOP_TAG: "iteration", PARTITION_TAG: "iter_001"}
    start_run(instance, dg.DagsterRunStatus.FAILURE, tags, "iteration")
    start_run(instance, dg.DagsterRunStatus.SUCCESS, {PARTITION_TAG: "iter_001"})
    complete(instance, "iter_001")
    requests, _ = tick_sensor(instance)
    assert [request.partition_key for request in requests] == ["iter_002"]


def test_the_instance_settings_load_and_let_one_step_at_a_time_use_the_accelerator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked = Path(__file__).parent.parent / "dagster_home" / "dagster.yaml"
    (tmp_path / "dagster.yaml").write_text(tracked.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with dg.DagsterInstance.get() as instance:
        concurrency = instance.get_concurrency_config()
        assert concurrency.pool_config.pool_granularity is not None
        assert concurrency.pool_config.pool_granularity.value == "op"
        assert concurrency.pool_config.default_pool_limit == 1
        assert concurrency.run_queue_config.max_user_code_failure_retries, "a machine that is busy loses no run"
        assert instance.run_monitoring_enabled
        assert not instance.telemetry_enabled
        assert type(instance.run_coordinator).__name__ == "QueuedRunCoordinator"


def test_iterations_of_a_backfill_and_of_the_schedule_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked = Path(__file__).parent.parent / "dagster_home" / "dagster.yaml"
    (tmp_path / "dagster.yaml").write_text(tracked.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with dg.DagsterInstance.get() as instance:
        queue = instance.get_concurrency_config().run_queue_config
        assert queue is not None
        limits = {rule["key"]: rule for rule in queue.tag_concurrency_limits}
    assert limits["dagster/backfill"] == {
        "key": "dagster/backfill",
        "value": {"applyLimitPerUniqueValue": True},
        "limit": 1,
    }
    assert limits[LOOP_TAG] == {"key": LOOP_TAG, "limit": 1}, "a seed run waits for an iteration as well"


def test_nobody_is_asked_to_work_where_srlm_run_is_at_work(instance: dg.DagsterInstance) -> None:
    materialize(instance, "seed_model")
    code = "import sys; from pathlib import Path; from srlm_pipeline.lock import sole_use\n"
    code += "with sole_use(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, instance.root_directory]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        for tick in (tick_schedule, tick_sensor):
            requests, reason = tick(instance)
            assert requests == []
            assert f"process {holder.pid}" in (reason or "")
        holder.kill()
