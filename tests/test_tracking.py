"""Runs in MLflow: one a materialization, and what becomes of those that were cut short."""

from pathlib import Path

import pytest

from srlm_pipeline.commands.servers import reachable_name
from srlm_pipeline.config import Settings, load_settings
from srlm_pipeline.tracking import Tracker, parameters, remember_ui, ui_url


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return load_settings("quickstart")


def test_a_run_that_was_killed_is_ended_when_its_asset_is_made_again(settings: Settings) -> None:
    tracker = Tracker(settings)
    cut_short = tracker.run("candidates", "iter_001", "dagster-1", ["candidates"])
    killed = cut_short.__enter__()
    other = tracker.run("candidates", "iter_002", "dagster-1", ["candidates"])
    elsewhere = other.__enter__()
    with Tracker(settings).run("candidates", "iter_001", "dagster-2", ["candidates"]) as again:
        states = {r: tracker.client.get_run(r).info.status for r in (killed.run_id, elsewhere.run_id, again.run_id)}
    assert states == {killed.run_id: "KILLED", elsewhere.run_id: "RUNNING", again.run_id: "RUNNING"}
    assert tracker.client.get_run(again.run_id).info.status == "FINISHED"
    other.__exit__(None, None, None)


def test_a_failure_is_one(settings: Settings) -> None:
    tracker = Tracker(settings)
    with pytest.raises(KeyboardInterrupt), tracker.run("seed_model", None, "dagster-1", ["eft"]) as run:
        raise KeyboardInterrupt
    assert tracker.client.get_run(run.run_id).info.status == "FAILED"


def test_the_run_of_the_curves_takes_figures_and_does_not_run(settings: Settings) -> None:
    tracker = Tracker(settings)
    with tracker.run("win_rates", "iter_001", "dagster-1", ["evaluation.tie_margin"]) as run:
        run.curve({"win_rate/vs_base": 0.6}, 1)
    again = Tracker(settings)
    assert again.curves_run == tracker.curves_run
    assert again.client.get_run(again.curves_run).info.status == "FINISHED"
    history = again.client.get_metric_history(again.curves_run, "win_rate/vs_base")
    assert [(point.step, point.value) for point in history] == [(1, 0.6)]


def test_parameters_are_the_settings_that_were_read(settings: Settings) -> None:
    told = parameters(settings, ["pairs", "judge.taught_rubric"])
    assert told["judge.taught_rubric"] == "short"
    assert told["pairs.unfit"] == "rejected"
    assert {name.split(".")[0] for name in told} == {"base_model", "seed", "pairs", "judge"}


def test_links_lead_to_where_mlflow_was_served_last_unless_a_setting_says_another_place(settings: Settings) -> None:
    assert ui_url(settings) == "http://127.0.0.1:5000"
    remember_ui("http://127.0.0.1:5007")
    assert Tracker(settings).run_url("r").startswith("http://127.0.0.1:5007/#/experiments/")
    proxied = load_settings("quickstart", {"tracking": {"ui_url": "https://lab.example.org/mlflow/"}})
    assert ui_url(proxied) == "https://lab.example.org/mlflow"


@pytest.mark.parametrize(
    ("host", "allowed", "name"),
    [
        ("127.0.0.1", [], "127.0.0.1"),
        ("::1", [], "[::1]"),
        ("0.0.0.0", [], "127.0.0.1"),
        ("0.0.0.0", ["lab.example.org"], "lab.example.org"),
    ],
)
def test_links_have_a_name_that_a_browser_can_open(host: str, allowed: list[str], name: str) -> None:
    assert reachable_name(host, allowed) == name


def test_the_experiment_opens_on_its_runs_also_one_of_before(settings: Settings) -> None:
    tracker = Tracker(settings)
    kind = "mlflow.experimentKind"
    assert tracker.client.get_experiment(tracker.experiment_id).tags[kind] == "custom_model_development"
    older = load_settings("quickstart", {"project": "older"})
    tracker.client.create_experiment("older")
    again = Tracker(older)
    assert again.client.get_experiment(again.experiment_id).tags[kind] == "custom_model_development"


def test_the_run_of_the_curves_has_all_settings_and_the_report(settings: Settings) -> None:
    tracker = Tracker(settings)
    for beta in (0.1, 0.2):
        changed = load_settings("quickstart", {"dpo": {"beta": beta}})
        with Tracker(changed).run("iteration_report", "iter_001", "dagster-1", []) as run:
            run.text("<p>told</p>", "report.html", of_project=True)
            run.project_settings(changed)
    told = tracker.client.get_run(tracker.curves_run).data.params
    assert told["dpo.beta"] == "0.1", "a parameter can be set once"
    assert told["evaluation.max_new_tokens"]
    assert [f.path for f in tracker.client.list_artifacts(tracker.curves_run)] == ["report.html"]


def test_a_version_says_what_became_of_its_model(settings: Settings, tmp_path: Path) -> None:
    tracker = Tracker(settings)
    with tracker.run("promotion", "iter_001", "dagster-1", []) as run:
        tags = {"model": "M2", "digest": "d", "verdict": "rejected", "reason": "loops more"}
        version = tracker.register("quickstart", tmp_path, run.run_id, tags, champion=False)
    found = tracker.client.get_model_version("quickstart", version)
    assert found.description == "M2. rejected. loops more"
