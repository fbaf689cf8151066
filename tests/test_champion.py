"""Who is champion, which attempt is under way, and models that are kept as they were."""

from pathlib import Path

import pytest

from srlm_pipeline.attempts import Attempt, read_attempt, write_attempt
from srlm_pipeline.config import load_settings
from srlm_pipeline.errors import MissingPredecessorError
from srlm_pipeline.evaluation.champion import champion_before, standing_decision
from srlm_pipeline.evaluation.opponents import opponents_of
from srlm_pipeline.evaluation.promotion import Decision, write_decision
from srlm_pipeline.models.checkpoint import COPY_OF, is_checkpoint, read_checkpoint, write_marker
from srlm_pipeline.store import ProjectStore


@pytest.fixture
def store(tmp_path: Path) -> ProjectStore:
    return ProjectStore(tmp_path / "project", tmp_path)


def train(store: ProjectStore, name: str, weights: str = "weights") -> str:
    folder = store.model_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    # As a training does it: a new file under the old name.
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors").write_text(f"{name} {weights}")
    (folder / "srlm.json").unlink(missing_ok=True)
    write_marker(folder, name, None, {})
    return store.checkpoint(name).digest


def decide(store: ProjectStore, iteration: int, promoted: bool, digest: str) -> None:
    decision = Decision(f"M{iteration + 1}", digest, "M1", promoted, ())
    write_decision(decision, store.decision_path(iteration))


def test_m1_is_the_champion_until_another_model_is_promoted(store: ProjectStore) -> None:
    assert champion_before(store, 1) == champion_before(store, 5) == "M1"


def test_the_champion_is_the_last_promoted_model_before_an_iteration(store: ProjectStore) -> None:
    decide(store, 1, True, train(store, "M2"))
    decide(store, 2, False, train(store, "M3"))
    decide(store, 3, True, train(store, "M4"))
    assert [champion_before(store, t) for t in (1, 2, 3, 4, 9)] == ["M1", "M2", "M2", "M4", "M4"]


def test_a_model_trained_again_since_has_to_prove_itself(store: ProjectStore) -> None:
    decide(store, 1, True, train(store, "M2"))
    assert standing_decision(store, 1) is not None
    train(store, "M2", "other weights")
    assert champion_before(store, 2) == "M1"
    assert standing_decision(store, 1) is None


def test_a_model_meets_everyone_once_whatever_they_are_to_it(store: ProjectStore) -> None:
    for name in ("sft_baseline", "M1", "M2", "M3"):
        train(store, name)
    first = opponents_of(store, 1)
    assert [(o.name, o.description) for o in first] == [
        ("base", "base model"),
        ("sft_baseline", "SFT baseline"),
        ("M1", "previous model, champion"),
    ]
    decide(store, 1, True, store.checkpoint("M2").digest)
    assert [(o.name, o.roles) for o in opponents_of(store, 3)] == [
        ("base", ("base",)),
        ("sft_baseline", ("baseline",)),
        ("M3", ("previous",)),
        ("M2", ("champion",)),
    ]


def test_without_sft_the_baseline_is_the_base_model_and_is_met_once(store: ProjectStore) -> None:
    assert [o.name for o in opponents_of(store, 0)] == ["base", "sft_baseline"]
    train(store, "M1")
    folder = store.model_folder("sft_baseline")
    folder.mkdir()
    write_marker(folder, "sft_baseline", "digest of base", {COPY_OF: "digest of base"})
    assert [(o.name, o.description) for o in opponents_of(store, 0)] == [("base", "base model, SFT baseline")]
    assert [o.name for o in opponents_of(store, 1)] == ["base", "M1"]


def test_a_kept_model_survives_the_next_training(store: ProjectStore) -> None:
    digest = train(store, "M2")
    kept = store.keep(store.checkpoint("M2"))
    train(store, "M2", "other weights")
    assert read_checkpoint(kept).digest == digest
    assert (kept / "model.safetensors").read_text() == "M2 weights"
    assert is_checkpoint(store.keep(store.checkpoint("M2")))
    assert len(list(kept.parent.iterdir())) == 2


def test_a_kept_model_takes_no_further_disk_space(store: ProjectStore) -> None:
    train(store, "M2")
    kept = store.keep(store.checkpoint("M2"))
    same = [(folder / "model.safetensors").stat().st_ino for folder in (kept, store.model_folder("M2"))]
    assert same[0] == same[1]


def test_without_hard_links_a_kept_model_is_a_copy(store: ProjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr("os.link", refuse)
    digest = train(store, "M2")
    assert read_checkpoint(store.keep(store.checkpoint("M2"))).digest == digest


def test_a_further_attempt_starts_from_the_champion(store: ProjectStore) -> None:
    for name in ("M1", "M2", "M3"):
        train(store, name)
    assert store.entering_model(3).name == "M3"
    write_attempt(Attempt(2, "M2"), store.attempt_path(3))
    assert store.entering_model(3).name == "M2"
    assert store.entering_model(2).name == "M2", "other iterations stay as they are"


def test_an_attempt_without_its_model_names_what_to_materialize(store: ProjectStore) -> None:
    write_attempt(Attempt(2, "M2"), store.attempt_path(3))
    with pytest.raises(MissingPredecessorError, match="iter_002"):
        store.entering_model(3)


def test_every_attempt_has_a_seed_of_its_own_and_always_the_same(tmp_path: Path) -> None:
    settings = load_settings("quickstart")
    seeds = [Attempt(number).settings(settings).seed for number in (1, 2, 3)]
    assert seeds[0] == settings.seed
    assert len(set(seeds)) == 3
    assert seeds == [Attempt(number).settings(settings).seed for number in (1, 2, 3)]
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_the_attempt_under_way_is_written_down(tmp_path: Path) -> None:
    path = tmp_path / "attempts" / "iter_001.json"
    assert read_attempt(path) == Attempt(1, None)
    attempt = Attempt(2, "M1", entering_digest="abc", settings_version="1-2")
    write_attempt(attempt, path)
    assert read_attempt(path) == attempt
    # As an earlier version wrote it: bound to nothing, so that it holds for nothing.
    path.write_text('{"number": 2, "entering": "M1"}', encoding="utf-8")
    assert read_attempt(path) == Attempt(2, "M1", entering_digest="", settings_version="")
