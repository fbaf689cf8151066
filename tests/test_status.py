"""What `srlm status` says beside the figures."""

from collections.abc import Iterator

import dagster as dg
import pytest

from srlm_pipeline.assets.automation import PARTITION_TAG
from srlm_pipeline.commands.launch import PROCESS_TAG
from srlm_pipeline.commands.standing import standing
from srlm_pipeline.config import ScheduleSettings, Settings
from srlm_pipeline.definitions import defs


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


def told(instance: dg.DagsterInstance, settings: Settings | None = None) -> str:
    return "\n".join(standing(defs, instance, settings or Settings()))


def begin(instance: dg.DagsterInstance, partition: str, **tags: str) -> dg.DagsterRun:
    return instance.create_run_for_job(
        defs.resolve_job_def("iteration"),
        tags={PARTITION_TAG: partition, **tags},
        status=dg.DagsterRunStatus.STARTED,
    )


def materialize(instance: dg.DagsterInstance, partition: str, *assets: str, **metadata: object) -> None:
    for asset in assets:
        event = dg.AssetMaterialization(dg.AssetKey(asset), partition=partition, metadata=metadata)
        instance.report_runless_asset_event(event)


def test_of_a_new_home_only_the_seed_is_said_to_be_missing(instance: dg.DagsterInstance) -> None:
    (line,) = standing(defs, instance, Settings())
    assert line.startswith("seed: not made yet: ")
    assert "more" in line, "not every asset is named"


def test_a_run_at_work_is_named_and_what_it_has_still_to_make_is_not(instance: dg.DagsterInstance) -> None:
    materialize(instance, "iter_001", "generated_prompts")
    run = begin(instance, "iter_001")
    lines = [line for line in told(instance).splitlines() if line.startswith("iter_001")]
    assert lines == [f"iter_001: is running (run {run.run_id[:8]})"]


def test_a_run_whose_process_is_gone_is_not_called_running(instance: dg.DagsterInstance) -> None:
    materialize(instance, "iter_001", "generated_prompts")
    begin(instance, "iter_001", **{PROCESS_TAG: "1@0"})
    said = told(instance)
    assert "iter_001: its process ended before it did" in said
    assert "iter_001: not made yet: champion" in said
    assert "running" not in said


def test_results_of_other_settings_are_out_of_date_without_the_guard_before_them(instance: dg.DagsterInstance) -> None:
    # What was recorded without a version is not what these settings make.
    materialize(instance, "iter_001", "generated_prompts", "policy")
    tagged = dg.AssetMaterialization("preference_pairs", partition="iter_001", tags={"dagster/code_version": "other"})
    instance.report_runless_asset_event(tagged)
    stale = next(line for line in told(instance).splitlines() if "out of date" in line)
    assert "preference_pairs" in stale
    assert "policy" not in stale
    assert "`srlm run`" in stale


@pytest.mark.parametrize(
    ("after", "attempt", "follows"),
    [("stop", 1, "go no further"), ("retry", 1, "the schedule tries again"), ("retry", 3, "go no further")],
)
def test_a_refused_model_is_said_with_what_follows(
    instance: dg.DagsterInstance, after: str, attempt: int, follows: str
) -> None:
    materialize(instance, "iter_001", "generated_prompts", "iteration_report")
    verdict = {"promoted": False, "rules": "- why", "attempt": attempt}
    materialize(instance, "iter_001", "promotion", **verdict)
    settings = Settings(schedule=ScheduleSettings.model_validate({"after_rejection": after, "max_retries": 2}))
    line = told(instance, settings).splitlines()[-1]
    assert line.startswith(f"iter_001: M2 was refused, attempt {attempt}")
    assert follows in line
