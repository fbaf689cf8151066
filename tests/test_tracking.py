"""Runs in MLflow: one a materialization, and what becomes of those that were cut short."""

import json
import os
import shutil
import signal
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.models import Model
from mlflow.utils.validation import _validate_metric

from srlm_pipeline.assets.measured import ExternalCalls
from srlm_pipeline.assets.stage import Stage
from srlm_pipeline.commands.servers import reachable_name
from srlm_pipeline.config import Settings, load_settings
from srlm_pipeline.errors import RecordError
from srlm_pipeline.generation.calls import Call, CallLog
from srlm_pipeline.models.checkpoint import write_marker
from srlm_pipeline.models.integrity import verify
from srlm_pipeline.relocation import DATABASE, follow
from srlm_pipeline.store import ProjectStore
from srlm_pipeline.tracking import Tracker, former_homes, metric_name, parameters, remember_ui, ui_url


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


def test_a_process_that_is_killed_while_mlflow_makes_its_tables_is_followed_by_one_that_goes_on(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # After the first tables, and before those that migrations add.
        patch.setattr("mlflow.store.db.utils._upgrade_db", lambda engine: os.kill(os.getpid(), signal.SIGKILL))
        child = os.fork()
        if child == 0:
            Tracker(settings)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list(tmp_path.glob(".mlflow.db.*")), "it was in the midst of it"
    with Tracker(settings).run("candidates", "iter_001", "dagster-1", ["candidates"]):
        pass
    assert not list(tmp_path.glob(".mlflow.db.*"))


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


def test_where_a_home_was_copied_nothing_goes_into_the_old_one(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, copy = tmp_path / "a home", tmp_path / "another h\u00f6me"
    monkeypatch.setenv("DAGSTER_HOME", str(original))
    with Tracker(settings).run("iteration_report", "iter_001", "dagster-1", []) as run:
        run.text("first", "report.html")
    Tracker(settings).register("quickstart", original / "srlm/M1", run.run_id, {"digest": "0"}, "", champion=True)
    Tracker(settings).register("quickstart", tmp_path / "a home beside/M2", None, {"digest": "1"}, "", champion=False)
    shutil.copytree(original, copy)
    before = {path: path.read_bytes() for path in original.rglob("*") if path.is_file()}
    monkeypatch.setenv("DAGSTER_HOME", str(copy))
    assert former_homes(settings) == [original.as_uri()]
    tracker = Tracker(settings)
    assert former_homes(settings) == []
    with tracker.run("iteration_report", "iter_001", "dagster-2", []) as again:
        again.text("second", "report.html")
    written = {path.read_text(): path for path in copy.rglob("report.html")}
    assert set(written) == {"first", "second"}
    assert tracker.client.get_run(run.run_id).info.artifact_uri == written["first"].parent.as_uri()
    versions = {v.tags["digest"]: v.source for v in tracker.client.search_model_versions("name = 'quickstart'")}
    assert versions == {"0": (copy / "srlm/M1").as_uri(), "1": (tmp_path / "a home beside/M2").as_uri()}
    assert {path: path.read_bytes() for path in original.rglob("*") if path.is_file()} == before


def test_addresses_outside_of_any_home_stay(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / DATABASE) as store:
        store.execute("CREATE TABLE experiments (experiment_id, name, artifact_location)")
        elsewhere = [(1, "a", "s3://bucket/mlartifacts/a"), (2, "b", "/data/b"), (3, "c", "file:///data/mlartifacts/x")]
        store.executemany("INSERT INTO experiments VALUES (?, ?, ?)", elsewhere)
    assert follow(tmp_path) == []
    assert sqlite3.connect(tmp_path / DATABASE).execute("SELECT * FROM experiments").fetchall() == elsewhere


def test_a_store_that_is_none_is_named(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"not a database, and longer than the header of one" * 100)
    with pytest.raises(RecordError, match=r"mlflow\.db.*MLflow's store"):
        Tracker(settings)


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


def test_the_calls_of_an_asset_are_a_table_and_figures_of_its_run(settings: Settings, tmp_path: Path) -> None:
    store = ProjectStore(tmp_path / "project", tmp_path)
    log, tracker = CallLog(store.calls_path), Tracker(settings)
    before = Call("2026-01-01T00:00:00.000+00:00", "judge", "host", 9.0, 1, 1, 0, "stop", None)
    log.add(before)
    with tracker.run("win_rates", "iter_001", "dagster-1", ["evaluation.tie_margin"]) as run:
        calls = ExternalCalls(cast(Stage, SimpleNamespace(store=store, run=run)))
        assert calls.told() == {}, "what was asked before belongs to others"
        log.add(replace(before, seconds=2.0, prompt_tokens=100, cost=0.5))
        told = calls.told()
    assert (told["calls/requests"], told["calls/prompt_tokens"], told["calls/cost"]) == (1, 100, 0.5)
    assert tracker.client.get_run(run.run_id).data.metrics == told
    (shown,) = [file.path for file in tracker.client.list_artifacts(run.run_id)]
    assert shown == "judge_calls.json"


@given(st.text(max_size=300))
@example("qwen2.5-7b@q4_k_m")
@example("../a//b/./c/")
def test_a_figure_has_a_name_that_mlflow_takes_whoever_it_is_of(name: str) -> None:
    _validate_metric(metric_name(f"win_rate/vs_{name}_low"), 0.5, 0, 0)
    assert metric_name("win_rate/vs_gpt 4.1: scores") == "win_rate/vs_gpt 4.1: scores"


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
        version = tracker.register(
            "quickstart", tmp_path, run.run_id, tags, "# M2\n\nrefused: loops more", champion=False
        )
    found = tracker.client.get_model_version("quickstart", version)
    assert found.description == "# M2\n\nrefused: loops more"
    assert found.tags == tags
    signature = Model.load(tmp_path).signature
    assert signature.inputs.input_names() == ["prompt"]
    assert signature.outputs.input_names() == ["reply"]


def test_what_mlflow_reads_beside_a_model_is_no_part_of_it(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "M1"
    folder.mkdir()
    (folder / "weights").write_text("w")
    write_marker(folder, "M1", None, {})
    Tracker(settings).register("quickstart", folder, None, {"digest": "d"}, "", champion=True)
    verify(folder)
    (folder / "MLmodel").unlink()
    verify(folder)


def test_a_run_shows_the_tables_that_it_was_made_from(settings: Settings, tmp_path: Path) -> None:
    table = pd.DataFrame({"prompt": ["a", "b"], "score": [1.0, None], "tokens": [[1], [2]], "n": [1, 2]})
    tracker = Tracker(settings)
    with tracker.run("iteration_model", "iter_001", "dagster-1", []) as run:
        run.reads("preference_pairs[iter_001]", "0123", tmp_path / "iter_001.parquet", table, "training")
    (read,) = tracker.client.get_run(run.run_id).inputs.dataset_inputs
    assert (read.dataset.name, read.dataset.digest) == ("preference_pairs[iter_001]", "0123")
    assert json.loads(read.dataset.profile)["num_rows"] == 2
    columns = {c["name"]: c["type"] for c in json.loads(read.dataset.schema)["mlflow_colspec"]}
    assert columns == {"prompt": "string", "score": "double", "tokens": "string", "n": "long"}
    assert [(tag.key, tag.value) for tag in read.tags] == [("mlflow.data.context", "training")]


def test_links_open_the_part_of_mlflow_that_shows_trainings(settings: Settings) -> None:
    tracker = Tracker(settings)
    with tracker.run("iteration_report", "iter_001", "dagster-1", []) as run:
        pages = (run.url, run.artifact_url("report.html"))
    assert [page.partition("/runs/")[2] for page in pages] == [
        f"{run.run_id}?workflowType=machine_learning",
        f"{run.run_id}/artifacts/report.html?workflowType=machine_learning",
    ]
