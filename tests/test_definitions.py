"""What the code location holds, written out, so that any drift of keys, edges, checks or automation is seen."""

import json
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from srlm_pipeline.assets.automation import iterations
from srlm_pipeline.definitions import defs

# asset (group, traits) <- what it depends on; its checks, blocking ones with an exclamation mark
ASSETS = """
ift_dataset (seed)
ranked_replies (seed)
evaluation_prompts (seed)
sft_baseline (seed, accelerator, retried) <- ift_dataset
eft_dataset (seed, accelerator) <- ranked_replies sft_baseline
seed_model (seed, accelerator, retried) <- eft_dataset ift_dataset sft_baseline
seed_assessment (seed, accelerator) <- evaluation_prompts ranked_replies seed_model sft_baseline
seed_evaluation (seed, accelerator) <- evaluation_prompts ift_dataset ranked_replies seed_assessment seed_model \
sft_baseline; arbiter_agrees_with_humans evaluation_prompt_overlap
policy (iteration, partitioned) <- seed_model
champion (iteration, partitioned) <- seed_model
generated_prompts (iteration, partitioned, accelerator) <- evaluation_prompts ift_dataset policy; acceptance_rate \
duplicate_prompts!
candidates (iteration, partitioned, accelerator) <- generated_prompts policy; empty_completions
judged_scores (iteration, partitioned, accelerator) <- candidates policy; judge_parse_rate!
preference_pairs (iteration, partitioned) <- judged_scores; pairs_kept!
iteration_model (iteration, partitioned, accelerator, retried) <- policy preference_pairs; margins_moved
assessment (iteration, partitioned, accelerator) <- evaluation_prompts iteration_model ranked_replies \
seed_assessment; beats_length
win_rates (iteration, partitioned, accelerator) <- assessment champion evaluation_prompts policy seed_assessment \
seed_model
collapse_monitors (iteration, partitioned, accelerator) <- assessment generated_prompts judged_scores \
seed_assessment; duplicate_prompts judge_accuracy kl length_growth parse_rate recitals score_share score_spread \
tie_rate variety
promotion (iteration, partitioned) <- assessment champion collapse_monitors policy seed_assessment seed_evaluation \
win_rates
iteration_report (iteration, partitioned) <- assessment collapse_monitors evaluation_prompts policy \
preference_pairs promotion seed_assessment seed_evaluation sft_baseline win_rates
reward_model (baselines, accelerator, retried) <- ranked_replies sft_baseline; reward_beats_length
rlhf_model (baselines, accelerator, retried) <- ift_dataset reward_model sft_baseline; reward_rose
human_dpo_model (baselines, accelerator, retried) <- ranked_replies sft_baseline; margins_moved
baseline_comparison (baselines, accelerator) <- evaluation_prompts human_dpo_model iteration_model ranked_replies \
reward_model rlhf_model seed_model sft_baseline
"""
JOBS = {
    "seed": {"sft_baseline", "ift_dataset", "ranked_replies", "evaluation_prompts", "eft_dataset", "seed_model"}
    | {"seed_assessment", "seed_evaluation"},
    "iteration": {
        "policy",
        "champion",
        "generated_prompts",
        "candidates",
        "judged_scores",
        "preference_pairs",
        "iteration_model",
    }
    | {"assessment", "win_rates", "collapse_monitors", "promotion", "iteration_report"},
    "baselines": {"reward_model", "rlhf_model", "human_dpo_model", "baseline_comparison"},
}
TABLES = {
    "ift_dataset", "ranked_replies", "eft_dataset", "evaluation_prompts", "seed_assessment", "seed_evaluation",
    "generated_prompts", "candidates", "judged_scores", "preference_pairs", "assessment", "win_rates",
    "collapse_monitors",
}  # fmt: skip
POOL = "accelerator"
GRAPH = defs.resolve_asset_graph()
REPOSITORY = defs.get_repository_def()

QUICKSTART = "preset: quickstart\n"
OTHER_JUDGE = "judge: {samples: 2}\n"
OWN_JUDGEMENTS = "eft: {targets: self}\n"
CodeVersions = dict[str, str]


def describe(key: dg.AssetKey) -> str:
    node = GRAPH.get(key)
    traits = [str(node.group_name)]
    traits += ["partitioned"] if node.partitions_def is not None else []
    traits += sorted(node.pools or [])
    traits += ["retried"] if node.assets_def.op.retry_policy is not None else []
    line = f"{key.to_user_string()} ({', '.join(traits)})"
    parents = sorted(parent.to_user_string() for parent in node.parent_keys)
    line += f" <- {' '.join(parents)}" if parents else ""
    specs = [GRAPH.get_check_spec(check) for check in node.check_keys]
    checks = sorted(spec.name + ("!" if spec.blocking else "") for spec in specs)
    return line + (f"; {' '.join(checks)}" if checks else "")


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
        ("pairs: {strategy: positive_only}", {"policy", "preference_pairs", "ift_dataset", "eft_dataset"}),
        ("dpo: {early_stopping: {every: 20}}", {"policy", "preference_pairs", "ranked_replies"}),
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


def test_the_assets_are_exactly_these() -> None:
    found = {describe(key) for key in GRAPH.get_all_asset_keys()}
    assert sorted(found) == sorted(ASSETS.strip().splitlines())


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
    with_columns = {
        key.to_user_string() for key in GRAPH.get_all_asset_keys() if "dagster/column_schema" in GRAPH.get(key).metadata
    }
    assert with_columns == TABLES


def test_the_jobs_are_the_seed_and_the_iteration() -> None:
    found = {
        job.name: {key.to_user_string() for key in defs.resolve_job_def(job.name).asset_layer.selected_asset_keys}
        for job in defs.jobs or []
    }
    assert found == JOBS
    assert defs.resolve_job_def("seed").partitions_def is None
    assert defs.resolve_job_def("iteration").partitions_def == iterations


def test_one_schedule_at_two_in_the_morning_switched_off_until_somebody_wants_it() -> None:
    found = [
        (s.name, s.job_name, s.cron_schedule, s.execution_timezone, s.default_status) for s in REPOSITORY.schedule_defs
    ]
    expected = ("nightly_iteration", "iteration", "0 2 * * *", "UTC", dg.DefaultScheduleStatus.STOPPED)
    assert found == [expected]


def test_one_sensor_switched_off_until_somebody_wants_it() -> None:
    found = [(s.name, s.job_name, s.default_status) for s in REPOSITORY.sensor_defs]
    assert found == [("continue_to_planned", "iteration", dg.DefaultSensorStatus.STOPPED)]


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
    assert "dpo.learning_rte: unknown setting; did you mean 'learning_rate'?" in last[1]


def test_a_configuration_that_is_not_there_stops_the_code_location_naming_the_presets(tmp_path: Path) -> None:
    done = load_definitions(tmp_path / "nowhere.yaml")
    assert done.returncode != 0
    assert "SettingsError" in done.stderr
    assert "presets: quickstart, paper, single-gpu" in done.stderr
