"""The baselines as assets, on a tiny random model: trained, compared, and as what self-rewarding starts from."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from srlm_pipeline.assets import baselines, seed
from srlm_pipeline.assets.baselines import newest_model
from srlm_pipeline.config import OVERRIDES_VARIABLE, load_settings
from srlm_pipeline.definitions import defs
from srlm_pipeline.models.checkpoint import read_checkpoint
from srlm_pipeline.resources.project import ProjectResource
from srlm_pipeline.resources.table_io import TableIOManager
from srlm_pipeline.store import ProjectStore, open_store
from srlm_pipeline.tracking import ASSET_TAG, Tracker

TRAINING = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 4, "micro_batch_size": 4, "max_length": 256}
OVERRIDES: dict[str, Any] = {
    "model": {"device": "cpu", "dtype": "float32"},
    "data": {"ift_limit": 8, "ranked_limit": 8, "evaluation_limit": 3},
    # The texts that teach judging are long where every letter is a token.
    "sft": {**TRAINING, "max_length": 4096, "enabled": True},
    "eft": {
        **TRAINING,
        "targets": "dataset",
        "ranking": False,
        "rationales_per_prompt": 1,
        "mismatched_negatives": 0,
        "corrupted_negatives": 0,
    },
    "judge": {"mode": "distribution", "rubric": "short", "batch_size": 8},
    "dpo": TRAINING,
    "baselines": {
        "reward_model": TRAINING,
        "rlhf": {**TRAINING, "generations": 2, "max_new_tokens": 8, "max_steps": 2},
    },
    "evaluation": {
        "arbiters": [{"model": "self", "method": "scores"}],
        "max_new_tokens": 8,
        "bootstrap_samples": 100,
    },
}
SEED = [
    seed.ift_dataset, seed.ranked_replies, seed.evaluation_prompts, seed.sft_baseline, seed.eft_dataset,
    seed.seed_model,
]  # fmt: skip
TRAINED = [baselines.reward_model, baselines.rlhf_model, baselines.human_dpo_model]
COMPARED = [*TRAINED, baselines.baseline_comparison]


@dataclass
class Home:
    """A Dagster home in use."""

    instance: dg.DagsterInstance
    overrides: dict[str, Any]

    def materialize(self, *assets: dg.AssetsDefinition, start_from: str = "base") -> dg.ExecuteInProcessResult:
        """Materialize some of the seed's and the baselines' assets; the others are there from before."""
        project = ProjectResource(
            overrides={
                **self.overrides,
                "baselines": {**self.overrides["baselines"], "start_from": start_from},
            }
        )
        return dg.materialize(
            [*SEED, *COMPARED],
            instance=self.instance,
            selection=dg.AssetSelection.assets(*assets),
            resources={"project": project, "io_manager": TableIOManager(project=project)},
            raise_on_error=False,
        )

    @property
    def store(self) -> ProjectStore:
        """The project's folders."""
        return open_store(load_settings(None, self.overrides))

    def metadata(self, asset: str) -> dict[str, Any]:
        """Return the newest materialization's metadata."""
        event = self.instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert event is not None
        assert event.asset_materialization is not None
        return {name: entry.value for name, entry in event.asset_materialization.metadata.items()}


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    data = failure.step_failure_data.user_failure_data
    assert data is not None, failure.step_failure_data.error
    return str(data.description)


@pytest.fixture(scope="module")
def home(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, environment: pytest.MonkeyPatch) -> Iterator[Home]:
    """A home with SFT baseline, M1 and judging data, no baseline trained yet."""
    environment.setenv("DAGSTER_HOME", str(tmp_path_factory.mktemp("home")))
    with dg.DagsterInstance.ephemeral() as instance:
        opened = Home(instance, {**OVERRIDES, "base_model": str(tiny_model)})
        assert opened.materialize(*SEED).success
        yield opened


@pytest.fixture(scope="module")
def with_one(home: Home) -> set[str]:
    """Whom the only baseline met; the home has one from now on."""
    assert home.materialize(baselines.human_dpo_model, baselines.baseline_comparison).success
    metadata = home.metadata("baseline_comparison")
    return {name.partition("_win_rate_vs_")[2] for name in metadata if "_win_rate_vs_" in name}


@pytest.fixture(scope="module")
def compared(home: Home, with_one: set[str]) -> Home:
    """The same home with all baselines, compared."""
    rest = [asset for asset in COMPARED if asset is not baselines.human_dpo_model]
    assert home.materialize(*rest).success
    return home


@pytest.mark.slow
def test_before_any_is_trained_there_is_nothing_to_compare(home: Home) -> None:
    described = failure_of(home.materialize(baselines.baseline_comparison))
    assert "materialize human_dpo_model, or reward_model and rlhf_model, first" in described


@pytest.mark.slow
def test_a_start_that_is_not_there_is_asked_for_by_name(home: Home) -> None:
    described = failure_of(home.materialize(seed.seed_model, start_from="rlhf"))
    assert "materialize rlhf_model first" in described
    assert "baselines.start_from: rlhf" in described


@pytest.mark.slow
def test_one_baseline_alone_is_compared_with_what_there_is(with_one: set[str]) -> None:
    assert with_one == {"sft_baseline", "M1"}


@pytest.mark.slow
def test_every_baseline_descends_from_the_sft_baseline(compared: Home) -> None:
    parent = read_checkpoint(compared.store.model_folder("sft_baseline")).digest
    made = {asset.key.to_user_string(): asset for asset in TRAINED}
    found = {name: read_checkpoint(compared.store.model_folder(name)) for name in made}
    assert {checkpoint.parent for checkpoint in found.values()} == {parent}
    assert len({checkpoint.digest for checkpoint in found.values()}) == len(made)
    assert found["rlhf_model"].lineage["reward_model"] == found["reward_model"].digest
    assert [path for path in (compared.store.root / "work").rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_the_reward_model_is_measured_on_held_out_rankings(compared: Home) -> None:
    metadata = compared.metadata("reward_model")
    assert 0 <= metadata["pairwise_accuracy"] <= 1
    assert metadata["n_pairs"] > 0
    assert "five_best" not in metadata
    again = compared.metadata("baseline_comparison")["models"].records
    (own,) = [record.data for record in again if record.data["model"] == "reward_model"]
    assert float(own["judge_pairwise_accuracy"]) == pytest.approx(metadata["pairwise_accuracy"], abs=1e-3)
    assert own["length_mean"] == "", "it writes nothing"


@pytest.mark.slow
def test_rlhf_shows_rewards_and_kl(compared: Home) -> None:
    metadata = compared.metadata("rlhf_model")
    assert metadata["steps"] == 2
    assert {"reward_first", "reward_last", "kl_last", "cut_off_share_last", "seconds_per_step"} <= set(metadata)
    assert 0 < metadata["reply_tokens_last"] <= OVERRIDES["baselines"]["rlhf"]["max_new_tokens"]


@pytest.mark.slow
def test_every_baseline_meets_every_other_model_once(compared: Home) -> None:
    records = [record.data for record in compared.metadata("baseline_comparison")["matches"].records]
    met = {(record["model"], record["opponent"]) for record in records}
    others = {"sft_baseline", "M1"}
    assert met == {("human_dpo_model", o) for o in others} | {("rlhf_model", o) for o in {*others, "human_dpo_model"}}
    assert len(met) == len(records)
    for record in records:
        assert sum(int(record[part]) for part in ("wins", "ties", "losses")) == OVERRIDES["data"]["evaluation_limit"]
        expected = (int(record["wins"]) + int(record["ties"]) / 2) / OVERRIDES["data"]["evaluation_limit"]
        assert float(record["win_rate"]) == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_the_comparison_is_in_mlflow(compared: Home) -> None:
    tracker = Tracker(load_settings(None, compared.overrides))
    runs = [
        run
        for run in tracker.client.search_runs([tracker.experiment_id])
        if run.data.tags.get(ASSET_TAG) == "baseline_comparison" and run.info.status == "FINISHED"
    ]
    metrics = max(runs, key=lambda run: run.info.start_time).data.metrics
    assert metrics["rlhf_model/vs_human_dpo_model_win_rate"] == pytest.approx(
        compared.metadata("baseline_comparison")["rlhf_model_win_rate_vs_human_dpo_model"]
    )
    assert "reward_model/judge_pairwise_accuracy" in metrics
    assert {"rlhf_model/length_mean", "M1/length_mean"} <= set(metrics)


@pytest.mark.slow
def test_the_newest_model_of_the_loop_takes_part(compared: Home, tmp_path: Path) -> None:
    assert newest_model(compared.store) == "M1"
    store = ProjectStore(tmp_path, tmp_path)
    for name in ("M1", "M2", "M3", "M5"):
        store.model_folder(name).mkdir(parents=True)
        (store.model_folder(name) / "srlm.json").write_text("{}", encoding="utf-8")
    assert newest_model(store) == "M3"


@pytest.mark.slow
@pytest.mark.parametrize("start_from", ["rlhf", "human_dpo"])
def test_m1_is_trained_from_the_baseline_that_the_settings_name(compared: Home, start_from: str) -> None:
    before = read_checkpoint(compared.store.model_folder("M1"))
    assert compared.materialize(seed.seed_model, start_from=start_from).success
    m1 = read_checkpoint(compared.store.model_folder("M1"))
    start = read_checkpoint(compared.store.model_folder(f"{start_from}_model"))
    assert m1.parent == start.digest
    assert m1.digest not in {before.digest, start.digest}
    prompts = compared.metadata("ranked_replies")["train_prompts"]
    assert compared.metadata("seed_model")["examples"] == prompts, "a judgement text of each, and no instruction data"


def test_the_seed_model_depends_on_the_baseline_that_it_starts_from() -> None:
    # Dependencies follow the configuration under which the definitions are loaded: a process of its own.
    code = """
import dagster as dg
from srlm_pipeline.definitions import defs
print(*(key.to_user_string() for key in defs.resolve_asset_graph().get(dg.AssetKey("seed_model")).parent_keys))
"""
    environment = {**os.environ, OVERRIDES_VARIABLE: json.dumps({"baselines": {"start_from": "rlhf"}})}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    usual = {key.to_user_string() for key in defs.resolve_asset_graph().get(dg.AssetKey("seed_model")).parent_keys}
    assert "rlhf_model" not in usual
    assert set(done.stdout.split()) == {*usual, "rlhf_model"}


def test_the_job_is_the_baselines_and_their_comparison() -> None:
    job = defs.resolve_job_def("baselines").asset_layer.selected_asset_keys
    assert {key.to_user_string() for key in job} == {asset.key.to_user_string() for asset in COMPARED}
