"""The whole loop on a tiny random model: seed, two iterations, and what happens when something goes wrong."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from recorded import Recorder, is_resource

from srlm_pipeline.assets.automation import iteration_assets
from srlm_pipeline.assets.stage import ATTEMPT_TAG
from srlm_pipeline.attempts import Attempt
from srlm_pipeline.checks.checkable import check, checks_of
from srlm_pipeline.checks.closed_tasks import load_closed_tasks
from srlm_pipeline.commands.cleaning import clean
from srlm_pipeline.commands.launch import RunFailedError, outstanding, run_loop
from srlm_pipeline.commands.overview import overview_table
from srlm_pipeline.commands.standing import standing
from srlm_pipeline.config import OVERRIDES_VARIABLE, MarginSettings, PairSettings, load_settings
from srlm_pipeline.data.conversations import TURN_MARK, split_turns
from srlm_pipeline.data.loaders import load_evaluation_prompts
from srlm_pipeline.definitions import defs
from srlm_pipeline.errors import SrlmError
from srlm_pipeline.evaluation.assessment import read_assessment, read_assessments
from srlm_pipeline.evaluation.champion import champion_before
from srlm_pipeline.evaluation.measures import MEASURES, measure_named
from srlm_pipeline.evaluation.promotion import read_decision
from srlm_pipeline.generation.engine import Completion, GenerationRequest, Sampling
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.models.checkpoint import COPY_OF, read_checkpoint
from srlm_pipeline.preference.pairs import select
from srlm_pipeline.progress import LogProgress
from srlm_pipeline.reads import STAGES
from srlm_pipeline.resources.table_io import SCHEMAS
from srlm_pipeline.store import ProjectStore, open_store
from srlm_pipeline.tables import WIN_RATES, read_table, write_table
from srlm_pipeline.tracking import ASSET_TAG, Tracker
from srlm_pipeline.training.human_pairs import best_worst_pairs

pytestmark = pytest.mark.slow

N_PROMPTS, PER_PROMPT = 3, 2
# A random model rarely ends what it writes and never writes a likely task: many short attempts, loose filters.
TRAINING = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 4, "micro_batch_size": 4, "max_length": 256}
OVERRIDES: dict[str, Any] = {
    "model": {"device": "cpu", "dtype": "float32"},
    "data": {"ift_limit": 8, "ranked_limit": 6, "evaluation_limit": 3},
    "sft": {**TRAINING, "enabled": True},
    "eft": {**TRAINING, "targets": "dataset", "batch_size": 2, "micro_batch_size": 2, "max_length": 512},
    "prompt_generation": {
        "count": N_PROMPTS,
        "seed_examples": 1,
        "generated_examples": 1,
        "temperature": 1.5,
        "top_p": 1.0,
        "max_new_tokens": 32,
        "novelty_rouge_l": 1.0,
        "min_words": 1,
        "banned_words": [],
        "max_attempts_factor": 200,
        "batch_size": 50,
        "evolution": {"given": 0.0},
    },
    "candidates": {"per_prompt": PER_PROMPT, "temperature": 1.5, "max_new_tokens": 8, "batch_size": 2},
    "judge": {"mode": "distribution", "rubric": "short", "batch_size": 8, "max_new_tokens": 8, "panel": []},
    "pairs": {"min_margin": 0.0, "length_control": 0.0, "unfit": "scored"},
    "dpo": {**TRAINING, "batch_size": 2, "micro_batch_size": 2},
    "evaluation": {
        "max_new_tokens": 8,
        "bootstrap_samples": 100,
        "encoder": "none",
        "verifiable": {"limit": 4, "max_new_tokens": 8},
        "closed_tasks": {"limit": 3, "max_new_tokens": 4},
        "arbiters": [{"model": "self", "method": "scores"}, {"model": "self", "method": "comparison", "weight": 2.0}],
    },
}
SEED_TABLES = (
    "ift_dataset",
    "ranked_replies",
    "evaluation_prompts",
    "eft_dataset",
    "seed_assessment",
    "seed_evaluation",
)
ITERATIONS = ("iter_001", "iter_002")
RECORDER = Recorder()
# Read and not declared: reports tell settings beside results, and are made anew with any of these results.
SHOWN_IN_REPORTS = ("promotion", "monitors", "evaluation", "judge", "pairs", "dpo", "schedule", "base_model", "seed")
ELSEWHERE = "qwen2.5-7b@q4_k_m"


@dataclass
class Home:
    """A Dagster home in use, and what the runs in it said."""

    path: Path
    instance: dg.DagsterInstance
    overrides: dict[str, Any]
    said: list[str] = field(default_factory=list)

    def run(self, n_iterations: int, **sections: dict[str, Any]) -> dict[str, float]:
        """Do what `srlm run` does; `sections` are laid over the overrides."""
        overrides = {**self.overrides, **{k: {**self.overrides.get(k, {}), **v} for k, v in sections.items()}}
        self.said.clear()
        return run_loop(defs, self.instance, n_iterations, overrides, self.said.append).seconds

    def run_assets(
        self, partition: str, *assets: str, tags: dict[str, str] | None = None, **sections: dict[str, Any]
    ) -> dg.ExecuteInProcessResult:
        """Do what a person does who materializes some assets of an iteration in the UI, or what the schedule does."""
        overrides = {**self.overrides, **{k: {**self.overrides.get(k, {}), **v} for k, v in sections.items()}}
        return defs.resolve_job_def("iteration").execute_in_process(
            run_config={
                "resources": {"project": {"config": {"overrides": overrides}}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
            instance=self.instance,
            partition_key=partition,
            tags=tags,
            asset_selection=[dg.AssetKey(asset) for asset in assets],
            raise_on_error=False,
        )

    @property
    def store(self) -> ProjectStore:
        """The project's folders."""
        return open_store(load_settings(None, self.overrides))

    def table(self, asset: str, partition: str | None = None) -> pd.DataFrame:
        """Read and check a table."""
        folder = self.store.tables
        path = folder / asset / f"{partition}.parquet" if partition else folder / f"{asset}.parquet"
        return read_table(SCHEMAS[asset], path)

    def is_materialized(self, asset: str, partition: str) -> bool:
        """Whether Dagster knows a materialization."""
        return partition in self.instance.get_materialized_partitions(dg.AssetKey(asset))

    def materialization(self, asset: str, partition: str) -> dg.AssetMaterialization:
        """Return the newest materialization."""
        filters = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition])
        (record,) = self.instance.fetch_materializations(filters, limit=1).records
        assert record.asset_materialization is not None
        return record.asset_materialization

    def data_version(self, asset: str, partition: str) -> str:
        """Return the newest materialization's data version."""
        return str((self.materialization(asset, partition).tags or {})["dagster/data_version"])


OpenHome = Callable[[Path, Path], Home]


@pytest.fixture(scope="module")
def environment(environment: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Environment of the homes, in which it is recorded what is asked of models."""
    RECORDER.install(environment)
    return environment


def open_home(path: Path, model: Path, environment: pytest.MonkeyPatch) -> Iterator[Home]:
    path.mkdir(exist_ok=True)
    tracked = Path(__file__).parent.parent / "dagster_home" / "dagster.yaml"
    shutil.copyfile(tracked, path / "dagster.yaml")
    with environment.context() as patch:
        patch.setenv("DAGSTER_HOME", str(path))
        asked = load_evaluation_prompts(load_settings(None, OVERRIDES).data).table["prompt"].head(2)
        answers = [{"instruction": p, "output": "Yes.", "generator": ELSEWHERE} for p in asked]
        (path / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
        met = {"other_answers": [str(path / "answers.json")]}
        overrides = {**OVERRIDES, "base_model": str(model), "evaluation": {**OVERRIDES["evaluation"], **met}}
        with dg.DagsterInstance.get() as instance:
            yield Home(path, instance, overrides)


@pytest.fixture(scope="module")
def seeded_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, environment: pytest.MonkeyPatch) -> Path:
    """A home with a seed model and no iteration; to be copied, not changed."""
    path = tmp_path_factory.mktemp("seeded")
    for home in open_home(path, tiny_model, environment):
        home.run(0)
    return path


@pytest.fixture(scope="module")
def finished(
    seeded_folder: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, environment: pytest.MonkeyPatch
) -> Iterator[Home]:
    """A home in which two iterations are complete."""
    path = tmp_path_factory.mktemp("finished") / "home"
    shutil.copytree(seeded_folder, path)
    for home in open_home(path, tiny_model, environment):
        home.run(2)
        yield home


@pytest.fixture
def seeded(seeded_folder: Path, tiny_model: Path, tmp_path: Path, environment: pytest.MonkeyPatch) -> Iterator[Home]:
    """A home of its own with a seed model and no iteration."""
    shutil.copytree(seeded_folder, tmp_path / "home")
    yield from open_home(tmp_path / "home", tiny_model, environment)


@pytest.fixture
def empty(tiny_model: Path, tmp_path: Path, environment: pytest.MonkeyPatch) -> Iterator[Home]:
    """A home in which nothing was ever run."""
    yield from open_home(tmp_path / "home", tiny_model, environment)


def test_every_table_is_there_and_follows_its_schema(finished: Home) -> None:
    for asset in SEED_TABLES:
        assert len(finished.table(asset)), asset
    for asset in set(SCHEMAS) - set(SEED_TABLES):
        for partition in ITERATIONS:
            assert len(finished.table(asset, partition)), (asset, partition)
    for partition in ITERATIONS:
        assert len(finished.table("generated_prompts", partition)) == N_PROMPTS
        assert len(finished.table("candidates", partition)) == N_PROMPTS * PER_PROMPT
        assert len(finished.table("judged_scores", partition)) == N_PROMPTS * PER_PROMPT


def test_the_second_iteration_repeats_no_prompt_of_the_first(finished: Home) -> None:
    first, second = (set(finished.table("generated_prompts", partition)["prompt"]) for partition in ITERATIONS)
    assert not first & second


def test_each_model_was_trained_from_the_one_before_it(finished: Home) -> None:
    m1, m2, m3 = (read_checkpoint(finished.store.model_folder(name)) for name in ("M1", "M2", "M3"))
    baseline = read_checkpoint(finished.store.model_folder("sft_baseline"))
    assert m1.parent == baseline.parent
    assert (m2.name, m2.parent) == ("M2", m1.digest)
    assert (m3.name, m3.parent) == ("M3", m2.digest)
    assert len({baseline.digest, m1.digest, m2.digest, m3.digest}) == 4
    assert m3.lineage["iteration"] == 2


def test_no_work_folder_of_a_finished_training_is_left(finished: Home) -> None:
    assert [path for path in (finished.store.root / "work").rglob("*") if path.is_file()] == []


def test_the_policy_of_an_iteration_has_the_version_of_the_model_that_the_one_before_made(finished: Home) -> None:
    m2, m3 = (read_checkpoint(finished.store.model_folder(name)) for name in ("M2", "M3"))
    assert finished.data_version("iteration_model", "iter_001") == m2.digest
    assert finished.data_version("policy", "iter_002") == m2.digest
    assert not finished.is_materialized("policy", "iter_003"), "what has not begun does not look half done"
    assert m3.parent == m2.digest


def test_the_curves_have_a_point_for_the_seed_and_for_each_iteration(finished: Home) -> None:
    tracker = Tracker(load_settings(None, finished.overrides))
    everywhere = (
        "judge/pairwise_accuracy",
        "1_win_rate/vs_base",
        "1_win_rate/vs_baseline",
        "length/mean",
        "vital/loops",
    )
    for metric in everywhere:
        history = tracker.client.get_metric_history(tracker.curves_run, metric)
        assert sorted(point.step for point in history) == [0, 1, 2], metric
    for metric in ("1_win_rate/vs_previous", "pairs/kept", "judge/candidate_parse_rate", "dpo/final_loss"):
        history = tracker.client.get_metric_history(tracker.curves_run, metric)
        assert sorted(point.step for point in history) == [1, 2], metric


def test_every_tracked_materialization_is_a_finished_child_of_the_curves(finished: Home) -> None:
    tracker = Tracker(load_settings(None, finished.overrides))
    children = [r for r in tracker.client.search_runs([tracker.experiment_id]) if ASSET_TAG in r.data.tags]
    assert {r.data.tags["mlflow.parentRunId"] for r in children} == {tracker.curves_run}
    assert {r.info.status for r in children} == {"FINISHED"}
    names = {r.data.tags[ASSET_TAG] for r in children}
    assert {"sft_baseline", "seed_model", "iteration_model[iter_001]", "iteration_model[iter_002]"} <= names


def test_both_models_are_registered_and_a_champion_is_one_that_was_promoted(finished: Home) -> None:
    settings = load_settings(None, finished.overrides)
    tracker = Tracker(settings)
    versions = tracker.client.search_model_versions(f"name = '{settings.project}'")
    verdicts = {version.tags["model"]: version.tags["verdict"] for version in versions}
    assert set(verdicts) == {"M1", "M2", "M3"}
    assert verdicts["M1"] == "seed model"
    promoted = [model for model in ("M2", "M3") if verdicts[model] == "promoted"]
    champion = tracker.champion(settings.project)
    assert champion is not None
    assert champion["model"] == (promoted[-1] if promoted else "M1")
    for version in versions:
        folder = Path(str(version.source).removeprefix("file://"))
        assert read_checkpoint(folder).digest == version.tags["digest"], "what is registered is kept"


def test_every_decision_is_written_down_with_its_rules(finished: Home) -> None:
    for iteration, model in ((1, "M2"), (2, "M3")):
        decision = read_decision(finished.store.decision_path(iteration))
        assert decision is not None
        assert decision.model == model
        assert decision.digest == finished.store.checkpoint(model).digest
        assert decision.promoted == (not decision.failures)
        names = [rule.name for rule in decision.rules]
        unmeasured = [rule.name for rule in decision.rules if rule.passed is None]
        assert names[0].startswith("better than the champion")
        assert sum(name.startswith("no harm: ") for name in names) == len(MEASURES)
        # Two copies of M1 decide, and there is no sentence encoder. A tiny model may judge no better than chance.
        judging = f"no harm: {measure_named('judge').title}"
        assert [name for name in unmeasured if name != judging] == [
            f"no harm: {measure_named('nearness').title}",
            f"the loop's own opinion of it against {decision.champion}",
        ]


def test_each_iteration_leaves_reports_for_browser_and_terminal(finished: Home) -> None:
    folder = finished.store.root / "reports"
    for number, previous, model in ((1, "M1", "M2"), (2, "M2", "M3")):
        partition = f"iter_{number:03d}"
        page = (folder / f"{partition}.html").read_text(encoding="utf-8")
        assert page.startswith("<!DOCTYPE html>")
        summary = (folder / f"{partition}.md").read_text(encoding="utf-8")
        assert f"{model} against" in summary
        assert previous in summary
        assert f'href="{partition}_replies.html"' in page
        replies = (folder / f"{partition}_replies.html").read_text(encoding="utf-8")
        champion = champion_before(finished.store, number)
        assert all(f'aria-label="{name}"' in replies for name in ("base", "sft_baseline", champion, model))
    overview = (folder / "index.html").read_text(encoding="utf-8")
    assert all(f'href="{partition}.html"' in overview for partition in ITERATIONS)


def test_the_status_shows_what_every_model_wins_and_what_is_wrong_with_it(finished: Home) -> None:
    settings = load_settings(None, finished.overrides)
    table = overview_table(finished.instance, settings)
    cells = list(zip(*(list(column.cells) for column in table.columns), strict=True))
    assert [row[0] for row in cells] == ["base", "sft_baseline", "M1", "M2", "M3"]
    headers = [str(column.header) for column in table.columns]
    m3 = dict(zip(headers, cells[-1], strict=True))
    told = finished.materialization("assessment", "iter_002").metadata
    assert m3["loops"] == f"{told['loops'].value:.0%}"
    assert m3["tasks"] == f"{told['closed_tasks'].value:.0%}"
    assert m3["vs base\nw/t/l"].count("/") == m3["vs prev\nw/t/l"].count("/") == 2
    assert cells[2][1].count("/") == 2, "M1 against the base model"
    assert "matches are its own opinion" in str(table.caption)


def test_every_monitor_is_a_check_with_a_verdict(finished: Home) -> None:
    monitors = finished.table("collapse_monitors", "iter_001")
    specs = {check.name for check in defs.resolve_asset_graph().get(dg.AssetKey("collapse_monitors")).check_keys}
    assert set(monitors["name"]) == specs
    assert monitors["explanation"].str.len().min() > 20
    assert abs(monitors.set_index("name").loc["kl", "value"]) > 0, "an estimate on few replies can be below 0"


def test_whoever_came_before_is_met_and_every_juror_is_heard(finished: Home) -> None:
    wins = finished.table("win_rates", "iter_002")
    champion = champion_before(finished.store, 2)
    met = {"base": 3, "sft_baseline": 3, "M2": 3, champion: 3, ELSEWHERE: 2}
    assert wins.groupby("opponent")["prompt_id"].nunique().to_dict() == met
    for opinions in wins["opinions"]:
        assert [(o["juror"], o["weight"]) for o in json.loads(opinions)] == [
            ("M1: scores", 1.0),
            ("M1: comparison", 2.0),
        ]
    page = (finished.store.root / "reports" / "iter_002.html").read_text(encoding="utf-8")
    assert ELSEWHERE in page
    assert "M1: comparison" in page


def test_a_report_is_made_where_a_later_iteration_met_another_champion(finished: Home) -> None:
    """What remains of iteration 2 when iteration 1 is done again and its model is not promoted any more."""
    store = finished.store
    champion = champion_before(store, 2)
    tables, decisions = store.table_path("win_rates", 2), store.decision_path(2)
    met, decided = read_table(WIN_RATES, tables), decisions.read_text(encoding="utf-8")
    try:
        write_table(met[met["opponent"] != champion], WIN_RATES, tables)
        decisions.write_text(json.dumps({**json.loads(decided), "champion": "M0"}), encoding="utf-8")
        assert finished.run_assets("iter_001", "iteration_report").success
        page = (store.root / "reports" / "index.html").read_text(encoding="utf-8")
        assert f"that was against M0, but {champion} is the champion" in page
    finally:
        write_table(met, WIN_RATES, tables)
        decisions.write_text(decided, encoding="utf-8")
        assert finished.run_assets("iter_001", "iteration_report").success


def test_every_model_is_measured_once_and_all_by_the_same_questions(finished: Home) -> None:
    settings, store = load_settings(None, finished.overrides), finished.store
    checkpoints = [store.named_model(settings, name) for name in ("base", "sft_baseline", "M1", "M2", "M3")]
    found = read_assessments(store, checkpoints)
    assert len(list((store.root / "assessments").iterdir())) == len(found) == 5
    for assessment in found.values():
        assert assessment.replies["part"].value_counts().to_dict() == {"evaluation": 3, "verifiable": 4, "closed": 3}
        assert len(assessment.likelihood) == assessment.judgements["group_id"].nunique() > 0
    (own,) = (table for name, table in finished.table("assessment", "iter_002").groupby("model") if name == "M3")
    values = own.set_index("measure")["value"]
    followed = found["M3"].verifiable
    assert values["verifiable"] == pytest.approx((followed["n_strict"] / followed["n_instructions"]).mean())
    told = finished.materialization("assessment", "iter_002").metadata
    assert told["verifiable"].value == values["verifiable"]
    assert finished.table("seed_assessment")["model"].unique().tolist() == ["base", "sft_baseline", "M1"]


def test_closed_tasks_are_asked_and_checked(finished: Home) -> None:
    tasks = load_closed_tasks("embedded", 3)
    m3 = finished.store.checkpoint("M3")
    asked = read_assessment(finished.store, m3).part("closed")
    assert asked["prompt"].tolist() == [task.prompt for task in tasks]
    assert asked["right"].isin([0.0, 1.0]).all()
    assert asked["n_tokens"].max() <= 4
    told = finished.materialization("assessment", "iter_002").metadata
    assert told["closed_tasks"].value == asked["right"].mean()
    invented = [finished.table("generated_prompts", partition) for partition in ITERATIONS]
    assert not set(pd.concat(invented)["prompt"]) & {task.prompt for task in load_closed_tasks("embedded")}


def test_the_first_match_is_that_of_m1_against_whom_it_came_from(finished: Home) -> None:
    met = finished.table("seed_evaluation")
    assert met.groupby("opponent")["prompt_id"].nunique().to_dict() == {"base": 3, "sft_baseline": 3}


def test_a_match_without_an_assessment_names_what_to_materialize(finished: Home) -> None:
    folder = finished.store.assessment_folder(finished.store.checkpoint("M3"))
    aside = folder.with_name("aside")
    folder.rename(aside)
    try:
        result = finished.run_assets("iter_002", "win_rates")
    finally:
        aside.rename(folder)
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert failure.step_failure_data.user_failure_data is not None
    described = failure.step_failure_data.user_failure_data.description
    assert "M3 has not been assessed as it is now; materialize assessment[iter_002] first" in (described or "")


def test_no_asset_reads_a_setting_that_it_does_not_declare(finished: Home) -> None:
    settings = load_settings(None, finished.overrides)
    assert set(RECORDER.read) >= {"sft_baseline", "candidates", "judged_scores", "iteration_model", "promotion"}
    undeclared = {}
    for asset, keys in RECORDER.read.items():
        declared = (*STAGES[asset].all_keys(settings), "project", "storage")
        declared += SHOWN_IN_REPORTS if asset == "iteration_report" else ()
        found = {k for k in keys if not is_resource(k) and not any(f"{k}.".startswith(f"{d}.") for d in declared)}
        undeclared |= {asset: found} if found else {}
    assert not undeclared, "\n".join(f"{k}: {sorted(v)}" for k, v in undeclared.items())


def test_a_finished_loop_run_again_does_nothing(finished: Home) -> None:
    seconds = finished.run(2)
    assert seconds == {}
    assert finished.said == [
        "seed: everything is up to date",
        "iteration iter_001: everything is up to date",
        "iteration iter_002: everything is up to date",
    ]


@pytest.mark.parametrize("asset", ["evaluation_prompts", "ranked_replies"])
@pytest.mark.parametrize("content", [None, b"", b"PAR1 cut short"])
def test_a_table_that_was_lost_is_made_again_and_nothing_else(
    finished: Home, asset: str, content: bytes | None
) -> None:
    path = finished.store.table_path(asset)
    before = finished.table(asset)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert set(finished.run(2)) == {asset}
    assert any(f"{asset} is made again: table {asset}" in line and str(path) in line for line in finished.said)
    pd.testing.assert_frame_equal(finished.table(asset), before)


def test_whatever_an_iteration_left_is_made_again_when_lost(finished: Home) -> None:
    store = finished.store
    model = store.checkpoint("M3")
    store.table_path("judged_scores", 2).write_bytes(b"")
    shutil.rmtree(store.assessment_folder(model))
    store.decision_path(2).unlink()
    (store.root / "reports" / "iter_002.html").unlink()
    made = set(finished.run(2))
    lost = {"judged_scores", "assessment", "promotion", "iteration_report"}
    assert made == {f"{asset}[iter_002]" for asset in lost}
    assert store.checkpoint("M3") == model
    assert store.decision_path(2).is_file()


def outstanding_under(settings: dict[str, Any]) -> dict[str, list[str]]:
    """Ask a process of its own, as `srlm run --set` is one, what is missing or stale under other settings."""
    code = """
import json
import dagster as dg
from srlm_pipeline.assets.automation import iteration_assets
from srlm_pipeline.assets.stage import ATTEMPT_TAG
from srlm_pipeline.attempts import Attempt
from srlm_pipeline.commands.launch import outstanding
from srlm_pipeline.definitions import defs

with dg.DagsterInstance.get() as instance:
    jobs = [("seed", None), ("iteration", "iter_001"), ("iteration", "iter_002")]
    wanted = {partition or job: outstanding(defs, instance, job, partition) for job, partition in jobs}
print(json.dumps({name: [key.to_user_string() for key in keys] for name, keys in wanted.items()}))
"""
    environment = {**os.environ, OVERRIDES_VARIABLE: json.dumps(settings)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def test_other_training_settings_make_the_model_and_what_follows_stale_and_nothing_before(finished: Home) -> None:
    wanted = outstanding_under({"dpo": {"beta": 0.5}})
    assert wanted["seed"] == []
    stale = {"policy", "iteration_model", "assessment", "win_rates", "collapse_monitors"}
    stale |= {"promotion", "iteration_report"}
    for partition in ITERATIONS:
        assert set(wanted[partition]) == stale


def test_more_iterations_than_planned_are_refused_naming_the_setting(empty: Home) -> None:
    with pytest.raises(SrlmError, match=r"11 iterations were asked for, but 10 are planned.*planned_iterations"):
        empty.run(11)


def test_an_iteration_without_predecessor_fails_naming_what_to_materialize(empty: Home) -> None:
    result = empty.run_assets("iter_002", "policy", "generated_prompts")
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert failure.step_key == "policy"
    assert failure.step_failure_data.user_failure_data is not None
    described = failure.step_failure_data.user_failure_data.description
    assert "materialize iteration_model[iter_001] first" in (described or "")
    assert not empty.is_materialized("generated_prompts", "iter_002")


def test_an_iteration_without_seed_model_fails_naming_it(empty: Home) -> None:
    result = empty.run_assets("iter_001", "policy")
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert failure.step_failure_data.user_failure_data is not None
    assert "materialize seed_model first" in (failure.step_failure_data.user_failure_data.description or "")


def test_an_interrupted_stage_continues_from_its_journal(seeded: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from srlm_pipeline.generation.transformers_engine import TransformersEngine

    whole = TransformersEngine.generate
    asked: list[str] = []
    finished: list[Completion] = []

    def dying(
        engine: TransformersEngine,
        requests: list[GenerationRequest],
        sampling: Sampling,
        on_finished: Callable[[list[Completion]], None] | None = None,
    ) -> list[Completion]:
        candidates = [request for request in requests if "#" in request.key]

        def die_after(batch: list[Completion]) -> None:
            assert on_finished is not None
            on_finished(batch)
            finished.extend(batch)
            raise RuntimeError("the machine went down")

        return whole(engine, requests, sampling, die_after if candidates else on_finished)

    monkeypatch.setattr(TransformersEngine, "generate", dying)
    with pytest.raises(RunFailedError, match="the machine went down") as caught:
        seeded.run(1)
    assert len(caught.value.reasons) == 1
    assert caught.value.reasons[0].startswith("candidates: ")
    batch_size = OVERRIDES["candidates"]["batch_size"]
    assert len(finished) == batch_size
    assert not seeded.is_materialized("candidates", "iter_001")

    def watched(
        engine: TransformersEngine,
        requests: list[GenerationRequest],
        sampling: Sampling,
        on_finished: Callable[[list[Completion]], None] | None = None,
    ) -> list[Completion]:
        asked.extend(request.key for request in requests)
        return whole(engine, requests, sampling, on_finished)

    monkeypatch.setattr(TransformersEngine, "generate", watched)
    assert seeded.run_assets("iter_001", "policy", "candidates").success
    table = seeded.table("candidates", "iter_001")
    keys = table["prompt_id"] + "#" + table["sample"].astype(str)
    before = {completion.key: completion for completion in finished}
    assert set(asked) == set(keys) - set(before)
    texts = dict(zip(keys, table["completion"], strict=True))
    assert {key: texts[key] for key in before} == {key: completion.text for key, completion in before.items()}


def test_a_model_that_was_saved_and_not_recorded_is_not_trained_again(
    seeded: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise SrlmError("killed after saving")

    lines: list[str] = []
    # Read here only, but not set back otherwise.
    monkeypatch.setattr("srlm_pipeline.progress._terminal", LogProgress(lines.append))
    with monkeypatch.context() as patch:
        patch.setattr("srlm_pipeline.assets.training.publish", die)
        with pytest.raises(RunFailedError, match="killed after saving"):
            seeded.run(1)
    digest = seeded.store.checkpoint("M2").digest
    lines.clear()
    assert seeded.run_assets("iter_001", "policy", "iteration_model").success
    assert [line for line in lines if "training" in line] == [
        "training M2 with DPO: continuing, 2 of 2 steps were finished before"
    ]
    assert seeded.store.checkpoint("M2").digest == digest
    assert list((seeded.store.root / "work").rglob("checkpoint-*")), "kept until it is recorded"
    assert seeded.run_assets("iter_001", "champion").success
    assert not list((seeded.store.root / "work").iterdir())


def test_a_judge_that_writes_no_readable_scores_stops_the_iteration(seeded: Home) -> None:
    sampled = {"mode": "sampled", "samples": 1}
    with pytest.raises(RunFailedError) as caught:
        seeded.run(1, judge=sampled)
    assert all(reason.startswith("judged_scores: ") for reason in caught.value.reasons)
    assert "judged_scores: check judge_parse_rate: 0.0% of the judgements have a readable score" in str(caught.value)
    scores = seeded.table("judged_scores", "iter_001")
    assert scores["score"].isna().all(), "unreadable is null, never 0"
    assert scores["n_valid"].sum() == 0
    for asset in ("preference_pairs", "iteration_model", "assessment", "win_rates", "promotion"):
        assert not seeded.is_materialized(asset, "iter_001"), asset
    assert not seeded.store.model_folder("M2").exists()


def test_what_a_blocking_check_refused_is_not_built_upon_when_run_again(seeded: Home) -> None:
    sampled = {"mode": "sampled", "samples": 1}
    with pytest.raises(RunFailedError):
        seeded.run(1, judge=sampled)
    with pytest.raises(RunFailedError):
        seeded.run(1, judge=sampled)
    assert not seeded.is_materialized("preference_pairs", "iter_001")
    said = standing(defs, seeded.instance, load_settings(None, seeded.overrides))
    readable = "0.0% of the judgements have a readable score"
    assert any(line.startswith(f"iter_001: judged_scores was refused: {readable}") for line in said)


def test_with_positive_examples_alone_the_base_model_is_trained_again_on_more(seeded: Home) -> None:
    seeded.run(2, pairs={"strategy": "positive_only", "min_score": 0.0}, candidates={"max_new_tokens": 24})
    first, second = (seeded.table("preference_pairs", partition) for partition in ITERATIONS)
    assert set(first["strategy"]) == {"positive_only"}
    assert first["rejected"].isna().all()
    m1, m2, m3 = (read_checkpoint(seeded.store.model_folder(name)) for name in ("M1", "M2", "M3"))
    assert m3.parent == m2.parent == m1.parent, "the base model"
    assert (m2.lineage["judged_by"], m3.lineage["judged_by"]) == (m1.digest, m2.digest)
    assert m2.lineage["positives"] == len(first)
    assert m3.lineage["positives"] == len(first) + len(second)


def test_with_early_stopping_the_replies_are_looked_at_while_training(seeded: Home) -> None:
    seeded.run(1, dpo={"early_stopping": {"every": 1, "prompts": 2, "min_win_rate": 0.0}})
    metadata = seeded.materialization("iteration_model", "iter_001").metadata
    assert metadata["looks"].value >= 1
    assert metadata["stopped_early"].value == "no"
    asked = sorted((seeded.store.journal_folder("early_stopping/M2")).iterdir())
    assert asked[0].name == "M1", "the model that training starts from is looked at first"
    assert len(asked) == metadata["looks"].value + 1


def test_with_early_stopping_by_signs_no_judge_is_asked(seeded: Home) -> None:
    seeded.run(1, dpo={"early_stopping": {"every": 1, "by": "signs"}, "nats_tolerance": 0.0, "learning_rate": 0.1})
    metadata = seeded.materialization("iteration_model", "iter_001").metadata
    asked = {folder.name for folder in seeded.store.journal_folder("development/M2").iterdir()}
    assert asked == {"M1", *(f"M1-step-{step}" for step in range(1, metadata["looks"].value + 1))}
    assert metadata["stopped_early"].value == metadata["looks"].value, "human replies are less likely by then"
    assert not seeded.store.journal_folder("early_stopping/M2").exists()


def test_human_pairs_are_rehearsed_beside_the_model_s_own_and_are_in_no_table(seeded: Home) -> None:
    seeded.run(1, dpo={"rehearsal": 0.6})
    pairs = seeded.table("preference_pairs", "iter_001")
    ranked = seeded.table("ranked_replies")
    people = len(best_worst_pairs(ranked[ranked["split"] == "train"]))
    lineage = seeded.store.checkpoint("M2").lineage
    assert lineage["pairs"] == len(pairs)
    assert lineage["rehearsed"] == min(people, round(1.5 * len(pairs))) > 0
    metadata = seeded.materialization("iteration_model", "iter_001").metadata
    assert metadata["examples"].value == len(pairs) + lineage["rehearsed"]
    assert not set(pairs["prompt"]) & set(ranked["prompt"])


def test_what_was_trained_is_taken_as_far_as_it_costs_nothing_on_held_out_prompts(seeded: Home) -> None:
    seeded.run(1, dpo={"interpolation": [0.5, 1.0], "nats_tolerance": 100.0})
    metadata = seeded.materialization("iteration_model", "iter_001").metadata
    m2 = seeded.store.checkpoint("M2")
    tried = m2.lineage["interpolation"]
    assert metadata["interpolation"].value == tried
    assert metadata["interpolation_ratio"].value == tried[-1]["ratio"]
    assert [one["ratio"] for one in tried] == [1.0, 0.5][: len(tried)]
    assert tried[-1]["tolerable"] or len(tried) == 2
    assert not any(one["tolerable"] for one in tried[:-1])
    asked = {folder.name for folder in seeded.store.journal_folder("development/M2").iterdir()}
    assert asked == {"M1", *(f"ratio-{one['ratio']:g}" for one in tried)}
    tracker = Tracker(load_settings(None, seeded.overrides))
    ratios = tracker.client.get_metric_history(tracker.curves_run, "dpo/interpolation_ratio")
    assert [(point.step, point.value) for point in ratios] == [(1, tried[-1]["ratio"])]
    assert metadata["final_loss"].value > 0
    assert [path for path in (seeded.store.root / "work").rglob("*") if path.is_file()] == []
    assert seeded.run(1, dpo={"interpolation": [0.5, 1.0], "nats_tolerance": 100.0}) == {}


def test_the_reference_is_the_model_that_the_settings_name(seeded: Home) -> None:
    seeded.run(2, dpo={"reference": "seed"})
    m1, m2, m3 = (seeded.store.checkpoint(name) for name in ("M1", "M2", "M3"))
    assert "reference" not in m2.lineage, "M1 is the model that training starts from"
    assert m3.lineage["reference"] == {"name": "M1", "digest": m1.digest}
    assert m3.parent == m2.digest
    assert seeded.materialization("iteration_model", "iter_002").metadata["reference"].value == "M1"
    assert seeded.run_assets("iter_001", "iteration_model", dpo={"reference": "base"}).success
    assert seeded.store.checkpoint("M2").lineage["reference"]["name"] == "base"


def test_a_training_with_a_budget_says_whether_that_ended_it(seeded: Home) -> None:
    seeded.run(1, dpo={"epochs": 3, "batch_size": 1, "micro_batch_size": 1, "learning_rate": 0.01, "kl_budget": 1e-3})
    metadata = seeded.materialization("iteration_model", "iter_001").metadata
    lineage = seeded.store.checkpoint("M2").lineage
    assert metadata["ended_by_kl_budget"].value == lineage["ended_by_kl_budget"]
    assert metadata["kl_estimate"].value == pytest.approx(lineage["kl_estimate"])
    assert (lineage["ended_by_kl_budget"] == "no") == (lineage["kl_estimate"] <= 1e-3)


SELF_INSTRUCTION = ("policy", "generated_prompts", "candidates", "judged_scores", "preference_pairs")
# Whatever a model does, it is promoted by these, and by those it is not.
ANY = {"min_win_rate": None, "min_length_controlled_win_rate": None, "proven_gain": False, "max_length_growth": None,
       "monitors": False, "margins": dict.fromkeys(MarginSettings.model_fields)}  # fmt: skip
NONE = ANY | {"max_length_growth": 1e-6}


@pytest.mark.parametrize(("first", "then", "champions"), [(ANY, NONE, ("M2", "M1")), (NONE, ANY, ("M1", "M2"))])
def test_matches_with_the_champion_are_stale_once_another_model_is_champion(
    seeded: Home,
    first: dict[str, Any],
    then: dict[str, Any],
    champions: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeded.run(2, promotion=first)
    assert champion_before(seeded.store, 2) == champions[0]
    assert seeded.run(2, promotion=first) == {}
    told: list[tuple[str, str]] = []
    monkeypatch.setenv("SRLM_NOTICE_URLS", "json://localhost")
    monkeypatch.setattr(
        "srlm_pipeline.notices.deliver",
        lambda _, title, *__: told.append((title, seeded.data_version("champion", "iter_002"))),
    )
    assert seeded.run_assets("iter_001", "promotion", promotion=then).success
    assert champion_before(seeded.store, 2) == champions[1]
    ((title, published),) = told
    assert ("M2 is promoted" in title) == (champions[1] == "M2")
    assert published == seeded.store.checkpoint(champions[1]).digest, "people are told of what is so already"
    monkeypatch.delenv("SRLM_NOTICE_URLS")
    outdated = [key.to_user_string() for key in outstanding(defs, seeded.instance, "iteration", "iter_002")]
    assert "win_rates" in outdated and "iteration_model" not in outdated
    seeded.run(2, promotion=then)
    met = set(seeded.table("win_rates", "iter_002")["opponent"])
    assert champions[1] in met
    decision = read_decision(seeded.store.decision_path(2))
    assert decision is not None and decision.champion == champions[1]


def test_the_status_says_nothing_of_a_model_that_another_one_had_its_name_when_it_was_measured(seeded: Home) -> None:
    seeded.run(2)
    assert seeded.run_assets("iter_001", "iteration_model", dpo={"beta": 0.5}).success
    table = overview_table(seeded.instance, load_settings(None, seeded.overrides))
    cells = list(zip(*(list(column.cells) for column in table.columns), strict=True))
    (m2, m3), nothing = cells[-2:], "\u2013"
    assert m2[0] == "M2" and set(m2[1:8]) == {nothing} and m2[-1] == nothing
    assert m3[0] == "M3" and m3[1] != nothing and m3[-1] == "outdated"


def test_without_sft_the_base_model_is_the_sft_baseline_and_is_asked_once(empty: Home) -> None:
    eft = {**empty.overrides["eft"], "targets": "ranks", "ranking": True}
    empty.overrides |= {"sft": {**empty.overrides["sft"], "enabled": False}, "eft": eft}
    empty.run(0)
    settings, store = load_settings(None, empty.overrides), empty.store
    base, baseline = store.base_checkpoint(settings), store.checkpoint("sft_baseline")
    assert baseline.lineage == {COPY_OF: base.digest}
    assert store.checkpoint("M1").parent == baseline.digest
    assessed = read_assessments(store, [base, baseline])
    assert assessed["base"].replies["reply"].tolist() == assessed["sft_baseline"].replies["reply"].tolist()
    assert set(assessed["sft_baseline"].replies["model"]) == {"sft_baseline"}
    assert not Journal(store.journal_folder("evaluation/sft_baseline")).items
    assert set(empty.table("seed_evaluation")["opponent"]) == {"base"}
    shown = overview_table(empty.instance, settings)
    assert list(shown.columns[0].cells) == ["base", "M1"]
    assert "base, the base model, is the SFT baseline" in str(shown.caption)


def test_candidates_that_programs_find_fault_with_can_be_rejected(seeded: Home) -> None:
    made = seeded.run_assets("iter_001", *SELF_INSTRUCTION, pairs={"unfit": "rejected", "min_margin": 0.0})
    signs = seeded.table("judged_scores", "iter_001").set_index(["prompt_id", "sample"])["signs"]
    # A random model seldom comes to an end of its own.
    assert (signs != "").any()
    if not made.success:
        assert (signs != "").groupby("prompt_id").all().all(), "no prompt has a candidate that may be chosen"
        return
    for pair in seeded.table("preference_pairs", "iter_001").itertuples():
        assert signs[pair.prompt_id, pair.chosen_sample] == ""
        assert signs[pair.prompt_id, pair.rejected_sample] == pair.rejected_for


def test_prompts_that_programs_check_are_made_and_judged_along_from_iteration_to_iteration(seeded: Home) -> None:
    # A random model follows what asks for nothing but brevity, and solves no task.
    evolved = {
        **seeded.overrides["prompt_generation"],
        "count": 6,
        "evolution": {"given": 0.0, "constrain": 0.35, "task": 0.15},
    }
    seeded.overrides |= {
        "prompt_generation": evolved,
        "judge": {**seeded.overrides["judge"], "panel": ["self", "verifiers"]},
        "candidates": {**seeded.overrides["candidates"], "per_prompt": 3},
    }
    seeded.run(1)
    prompts, scored = (seeded.table(asset, "iter_001") for asset in ("generated_prompts", "judged_scores"))
    assert prompts["operator"].tolist() == ["few_shot"] * 3 + ["constrain"] * 2 + ["task"]
    checks = checks_of(prompts)
    assert list(checks) == prompts["prompt"].tolist()[3:]
    for row in scored.itertuples():
        if row.prompt not in checks:
            assert pd.isna(row.passed) and pd.isna(row.opinion)
            continue
        found = check(checks[row.prompt], row.prompt, row.completion)
        assert row.passed == pytest.approx(sum(one.passed for one in found) / len(found))
        assert row.score == pytest.approx((row.opinion + 5 * row.passed) / 2)
    for pair in seeded.table("preference_pairs", "iter_001").itertuples():
        assert pair.prompt not in checks or pair.chosen_passed == 1
    tracker = Tracker(load_settings(None, seeded.overrides))
    curve = tracker.client.get_metric_history(tracker.curves_run, "difficulty/pass_rate/tasks")
    assert [point.step for point in curve] == [1]
    assert seeded.run_assets("iter_002", "policy", "generated_prompts").success
    again = seeded.table("generated_prompts", "iter_002")
    assert set(again["prompt_id"]).isdisjoint(prompts["prompt_id"])
    assert set(again["prompt"]).isdisjoint(prompts["prompt"])


def test_after_iterations_that_made_pairs_good_replies_alone_are_learned_from_what_was_scored(seeded: Home) -> None:
    seeded.run(1)
    seeded.run_assets("iter_002", *SELF_INSTRUCTION, pairs={"strategy": "positive_only", "min_score": 0})
    made = seeded.run_assets("iter_002", "iteration_model", pairs={"strategy": "positive_only", "min_score": 0})
    assert made.success
    positives = seeded.store.checkpoint("M3").lineage["positives"]
    # Every readable and whole reply of both iterations scores at least 0; one a prompt is taken of each.
    expected = sum(
        len(select(seeded.table("judged_scores", partition), PairSettings(strategy="positive_only", min_score=0)).pairs)
        for partition in ITERATIONS
    )
    assert positives == expected > 0


def test_a_copied_home_leaves_the_original_alone_and_a_lost_registry_is_filled_again(
    seeded: Home, seeded_folder: Path, tiny_model: Path, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in seeded_folder.rglob("*") if path.is_file()}
    seeded.run(1)
    assert {path: path.read_bytes() for path in seeded_folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in (seeded.path / "mlartifacts").rglob("report.html")] == ["report.html"]
    settings = load_settings(None, seeded.overrides)
    registered = Tracker(settings).registered(settings.project)
    shutil.copytree(seeded.path, tmp_path / "lost", ignore=shutil.ignore_patterns("mlflow.db"))
    for lost in open_home(tmp_path / "lost", tiny_model, environment):
        lost.overrides = seeded.overrides
        assert lost.run(1) == {}, "nothing is computed for it"
        assert "registered again in MLflow, whose store did not know them: M1, M2" in lost.said
        tracker = Tracker(settings)
        assert tracker.registered(settings.project) == registered
        champion = tracker.champion(settings.project)
        assert champion is not None
        assert champion["digest"] == lost.store.checkpoint(champion_before(lost.store, 2)).digest
        lost.run(1)
        assert len(tracker.client.search_model_versions(f"name = '{settings.project}'")) == 2, "none twice"
        clean(settings, delete=True)
        assert lost.run(1) == {}, "nothing that is needed was deleted"


def test_a_further_attempt_starts_from_the_champion_with_a_seed_of_its_own(seeded: Home) -> None:
    seeded.run(1)
    first = {asset: seeded.data_version(asset, "iter_001") for asset in ("policy", "candidates", "iteration_model")}
    keys = [key.to_user_string() for key in iteration_assets(defs.resolve_asset_graph())]
    done = seeded.run_assets("iter_001", *keys, tags={ATTEMPT_TAG: "2"})
    assert done.success
    attempt = seeded.store.attempt(1)
    assert (attempt.number, attempt.entering, attempt.entering_digest) == (
        2,
        "M1",
        seeded.store.checkpoint("M1").digest,
    )
    again = {asset: seeded.data_version(asset, "iter_001") for asset in first}
    assert not set(first.values()) & set(again.values())
    settings = load_settings(None, seeded.overrides)
    tracker = Tracker(settings)
    versions = tracker.client.search_model_versions(f"name = '{settings.project}'")
    second = [version for version in versions if version.tags["model"] == "M2"]
    assert len({version.tags["digest"] for version in second}) == 2, "the first attempt's model stays registered"
    assert seeded.run(1) == {}, "nothing is stale"
    # With other settings it is no further attempt at the same thing, and is done again from its beginning.
    without_report = [key for key in keys if key != "iteration_report"]
    assert seeded.run_assets("iter_001", *without_report, tags={ATTEMPT_TAG: "3"}).success
    assert seeded.store.attempt(1).number == 3
    assert "candidates[iter_001]" in seeded.run(1, dpo={"beta": 0.5})
    assert seeded.store.attempt(1) == Attempt()


def test_chats_and_transcripts_go_through_seed_iteration_and_reports(empty: Home, tmp_path: Path) -> None:
    chats, transcripts = tmp_path / "chats.jsonl", tmp_path / "transcripts.jsonl"
    with chats.open("w") as chat_file, transcripts.open("w") as transcript_file:
        for n in range(8):
            said = (
                ("system", "Be brief."),
                ("human", f"Name {n}."),
                ("gpt", "Done."),
                ("human", "Go on."),
                ("gpt", "No."),
            )
            turns = [{"from": who, "value": text} for who, text in said]
            chat_file.write(json.dumps({"conversations": turns}) + "\n")
            before = f"\n\nHuman: Count to {n}.\n\nAssistant: Done.\n\nHuman: And on.\n\nAssistant: "
            transcript_file.write(json.dumps({"chosen": f"{before}Yes.", "rejected": f"{before}Never."}) + "\n")
    data = {
        "ift": {"source": str(chats), "turns": "each"},
        "ranked_replies": str(transcripts),
        "evaluation_prompts": {"source": str(chats), "turns": "last"},
    }
    empty.run(1, data=data, eft={"targets": "ranks", "min_prompts": 1}, evaluation={"other_answers": []})
    assert empty.table("ift_dataset")["prompt"].map(split_turns).map(len).tolist() == [1, 3] * 4
    assert (empty.table("ranked_replies")["prompt"].map(split_turns).map(len) == 3).all()
    parents = ",".join(empty.table("generated_prompts", "iter_001")["parent_ids"]).split(",")
    assert not any(parent.endswith("-2") for parent in parents), "only what opens a chat is an example"
    page = (empty.store.root / "reports" / "iter_001_replies.html").read_text(encoding="utf-8")
    assert "User: Be brief." in page
    assert TURN_MARK not in page
