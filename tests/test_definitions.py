"""What the code location promises: what follows and stops what, what waits for the accelerator, what is stale."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from srlm_pipeline.assets.automation import iterations
from srlm_pipeline.definitions import defs
from srlm_pipeline.resources.table_io import SCHEMAS

# The loop in the paper's order (figure 1), and what is made of its model.
LOOP = (
    "policy", "generated_prompts", "candidates", "judged_scores", "preference_pairs", "iteration_model", "assessment",
    "win_rates", "promotion", "iteration_report",
)  # fmt: skip
POOL = "accelerator"
GRAPH = defs.resolve_asset_graph()
REPOSITORY = defs.get_repository_def()

QUICKSTART = "preset: quickstart\n"
OTHER_JUDGE = "judge: {samples: 2}\n"
OWN_JUDGEMENTS = "sft: {enabled: true}\neft: {targets: self}\n"
CodeVersions = dict[str, str]


def ancestors(asset: str) -> set[str]:
    found: set[str] = set()
    waiting = [dg.AssetKey(asset)]
    while waiting:
        for parent in GRAPH.get(waiting.pop()).parent_keys:
            if parent.to_user_string() not in found:
                found.add(parent.to_user_string())
                waiting.append(parent)
    return found


# Definitions read the configuration while they are imported, so each variant is imported anew.
LOAD_EACH = """
import importlib, json, os, sys
for config in sys.argv[1:]:
    for name in [name for name in sys.modules if name.startswith("srlm_pipeline")]:
        del sys.modules[name]
    os.environ["SRLM_CONFIG"] = config
    graph = importlib.import_module("srlm_pipeline.definitions").defs.resolve_asset_graph()
    print(json.dumps({key.to_user_string(): graph.get(key).code_version for key in graph.get_all_asset_keys()}))
"""


def load_definitions(*configurations: Path, code: str = LOAD_EACH) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, configurations)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def code_versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CodeVersions]:
    """Code versions of all assets by the lines of the configuration under which they were loaded."""
    folder = tmp_path_factory.mktemp("configurations")
    variants = [QUICKSTART, OTHER_JUDGE, OWN_JUDGEMENTS, OWN_JUDGEMENTS + OTHER_JUDGE]
    paths = [folder / f"{number}.yaml" for number in range(len(variants))]
    for path, lines in zip(paths, variants, strict=True):
        path.write_text(lines, encoding="utf-8")
    done = load_definitions(*paths)
    assert done.returncode == 0, done.stderr
    return {lines: json.loads(line) for lines, line in zip(variants, done.stdout.strip().splitlines(), strict=True)}


@pytest.mark.parametrize(
    ("lines", "parents"),
    [
        (
            "sft: {enabled: true}\npairs: {strategy: positive_only}",
            {"policy", "preference_pairs", "ift_dataset", "eft_dataset"},
        ),
        ("dpo: {early_stopping: {every: 20}}", {"policy", "preference_pairs", "ranked_replies"}),
        ("dpo: {rehearsal: 0.5}", {"policy", "preference_pairs", "ranked_replies"}),
        ("dpo: {reference: seed}", {"policy", "preference_pairs", "seed_model"}),
        ("dpo: {interpolation: [0.5]}", {"policy", "preference_pairs", "ranked_replies"}),
    ],
)
def test_what_training_depends_on_follows_how_it_trains(lines: str, parents: set[str], tmp_path: Path) -> None:
    config = tmp_path / "other.yaml"
    config.write_text(lines, encoding="utf-8")
    code = """
import os, sys
os.environ["SRLM_CONFIG"] = sys.argv[1]
import dagster as dg
from srlm_pipeline.definitions import defs
node = defs.resolve_asset_graph().get(dg.AssetKey("iteration_model"))
print(*(key.to_user_string() for key in node.parent_keys))
"""
    done = load_definitions(config, code=code)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == parents


def changed(before: CodeVersions, after: CodeVersions) -> set[str]:
    assert before.keys() == after.keys()
    return {asset for asset in before if before[asset] != after[asset]}


def group(name: str) -> set[str]:
    return {key.to_user_string() for key in GRAPH.get_all_asset_keys() if GRAPH.get(key).group_name == name}


def test_every_step_of_the_loop_waits_for_the_one_before() -> None:
    for before, after in itertools.pairwise(LOOP):
        assert before in ancestors(after), (before, after)
    assert {"sft_baseline", "seed_model", "seed_evaluation"} <= ancestors("promotion")
    assert "seed_model" in ancestors("policy")


def test_nothing_of_the_loop_waits_for_the_baselines_or_the_seed_for_the_loop() -> None:
    assert not set().union(*map(ancestors, group("seed") | group("iteration"))) & group("baselines")
    assert not set().union(*map(ancestors, group("seed"))) & group("iteration")


def test_what_is_unfit_to_go_on_with_stops_the_iteration() -> None:
    checks = [GRAPH.get_check_spec(check) for key in GRAPH.get_all_asset_keys() for check in GRAPH.get(key).check_keys]
    blocking = {(spec.asset_key.to_user_string(), spec.name) for spec in checks if spec.blocking}
    assert blocking == {
        ("generated_prompts", "duplicate_prompts"),
        ("judged_scores", "judge_parse_rate"),
        ("preference_pairs", "pairs_kept"),
    }


def test_what_trains_is_tried_again_after_a_crash() -> None:
    retried = {k.to_user_string() for k in GRAPH.get_all_asset_keys() if GRAPH.get(k).assets_def.op.retry_policy}
    assert retried == {name for name in group("seed") | group("iteration") | group("baselines") if is_model(name)}


def is_model(name: str) -> bool:
    return name.endswith("_model") or name == "sft_baseline"


def test_iterations_are_zero_padded_so_that_text_order_is_their_order() -> None:
    keys = iterations.get_partition_keys()
    assert keys[:2] == ["iter_001", "iter_002"]
    assert sorted(keys) == list(keys)
    partitioned = [key for key in GRAPH.get_all_asset_keys() if GRAPH.get(key).partitions_def is not None]
    assert all(GRAPH.get(key).partitions_def == iterations for key in partitioned)


def test_every_asset_says_in_one_line_what_it_is_and_shows_kinds_and_code_version() -> None:
    for key in GRAPH.get_all_asset_keys():
        node = GRAPH.get(key)
        assert node.description, key
        assert node.kinds, key
        assert node.code_version, key


def test_every_table_shows_its_declared_columns() -> None:
    for name, schema in SCHEMAS.items():
        shown = GRAPH.get(dg.AssetKey(name)).metadata["dagster/column_schema"]
        assert {column.name for column in shown.columns} == set(schema.columns), name


def test_a_job_materializes_its_whole_group() -> None:
    found = {
        job.name: {key.to_user_string() for key in defs.resolve_job_def(job.name).asset_layer.selected_asset_keys}
        for job in defs.jobs or []
    }
    assert found == {name: group(name) for name in ("seed", "iteration", "baselines")}
    assert defs.resolve_job_def("seed").partitions_def is None
    assert defs.resolve_job_def("iteration").partitions_def == iterations


def test_one_schedule_at_two_in_the_morning_switched_off_until_somebody_wants_it() -> None:
    found = [
        (s.name, s.job_name, s.cron_schedule, s.execution_timezone, s.default_status) for s in REPOSITORY.schedule_defs
    ]
    expected = ("nightly_iteration", "iteration", "0 2 * * *", "UTC", dg.DefaultScheduleStatus.STOPPED)
    assert found == [expected]


def test_the_sensor_that_starts_runs_is_off_until_somebody_wants_it_and_the_one_that_tells_is_on() -> None:
    found = {s.name: s.default_status for s in REPOSITORY.sensor_defs}
    assert found == {
        "continue_to_planned": dg.DefaultSensorStatus.STOPPED,
        "tell_of_failures": dg.DefaultSensorStatus.RUNNING,
    }


def test_whatever_loads_a_model_waits_for_the_accelerator() -> None:
    without_pool = {key.to_user_string() for key in GRAPH.get_all_asset_keys() if not GRAPH.get(key).pools}
    assert without_pool == {
        "ift_dataset", "ranked_replies", "evaluation_prompts", "policy", "champion", "preference_pairs", "promotion",
        "iteration_report",
    }  # fmt: skip
    assert all(GRAPH.get(key).pools <= {POOL} for key in GRAPH.get_all_asset_keys())


def test_other_judge_settings_are_a_new_version_of_the_scores_and_of_nothing_above_them_in_the_iteration(
    code_versions: dict[str, CodeVersions],
) -> None:
    differing = changed(code_versions[QUICKSTART], code_versions[OTHER_JUDGE])
    assert "judged_scores" in differing
    above = {asset for asset in ancestors("judged_scores") if GRAPH.get(dg.AssetKey(asset)).group_name == "iteration"}
    assert above == {"policy", "generated_prompts", "candidates"}
    assert not differing & above


def test_other_judge_settings_leave_the_seed_model_alone_where_judgements_come_from_the_data(
    code_versions: dict[str, CodeVersions],
) -> None:
    differing = changed(code_versions[QUICKSTART], code_versions[OTHER_JUDGE])
    assert not differing & ancestors("judged_scores")


def test_other_judge_settings_are_a_new_version_of_judging_data_that_the_model_writes_itself(
    code_versions: dict[str, CodeVersions],
) -> None:
    differing = changed(code_versions[OWN_JUDGEMENTS], code_versions[OWN_JUDGEMENTS + OTHER_JUDGE])
    assert {"eft_dataset", "judged_scores"} <= differing
    assert not differing & {"ift_dataset", "ranked_replies", "sft_baseline"}


def test_a_misspelt_setting_stops_the_code_location_with_the_nearest_name(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("dpo:\n  learning_rte: 1e-5\n", encoding="utf-8")
    done = load_definitions(config)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-2:]
    assert last[0].startswith("srlm_pipeline.errors.SettingsError: ")
    assert str(config) in last[0]
    assert "dpo.learning_rte: unknown setting; did you mean 'learning_rate'" in last[1]


def test_a_configuration_that_is_not_there_stops_the_code_location_naming_the_presets(tmp_path: Path) -> None:
    done = load_definitions(tmp_path / "nowhere.yaml")
    assert done.returncode != 0
    assert "SettingsError" in done.stderr
    assert "presets: quickstart, paper, single-gpu" in done.stderr
