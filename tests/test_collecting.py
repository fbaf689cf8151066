"""What `srlm gc` takes for needed and what not, on models of a few bytes."""

import os
from pathlib import Path

import pytest
from test_champion import decide, train

from srlm_pipeline.collecting import Item, freed, latest_iteration, remove, survey
from srlm_pipeline.config import Settings, load_settings
from srlm_pipeline.errors import ModelError
from srlm_pipeline.evaluation.champion import champion_before
from srlm_pipeline.models.checkpoint import is_checkpoint
from srlm_pipeline.models.integrity import verify
from srlm_pipeline.store import ProjectStore


@pytest.fixture
def store(tmp_path: Path) -> ProjectStore:
    """Three iterations, of which the first made the champion."""
    store = ProjectStore(tmp_path / "project", tmp_path)
    for name in ("sft_baseline", "M1", "M2", "M3", "M4"):
        train(store, name)
        write(store.journal_folder(f"evaluation/{name}") / "items.jsonl")
        write(store.assessment_folder(store.checkpoint(name)) / "replies.parquet")
    for iteration in (1, 2, 3):
        decide(store, iteration, iteration == 1, store.checkpoint(f"M{iteration + 1}").digest)
        write(store.table_path("candidates", iteration))
        write(store.journal_folder(f"candidates/iter_{iteration:03d}") / "items.jsonl")
    return store


@pytest.fixture
def settings() -> Settings:
    return load_settings("quickstart")


def write(path: Path, size: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"0" * size)
    return path


def unneeded(store: ProjectStore, settings: Settings, registered: set[Path] | None = None) -> dict[str, Item]:
    return {
        str(item.path.relative_to(store.root)): item for item in survey(store, settings, registered) if not item.needed
    }


def test_champion_baselines_and_the_latest_iteration_are_needed(store: ProjectStore, settings: Settings) -> None:
    assert latest_iteration(store) == 3
    reasons = {i.path.name: i.reason for i in survey(store, settings, set()) if i.path.parent.name == "models"}
    assert reasons == {
        "sft_baseline": "a baseline",
        "M1": "the seed model",
        "M2": "the champion",
        "M3": "enters the latest iteration",
        "M4": "made by the latest iteration",
    }
    journals = {f"journals/{path}" for path in ("candidates/iter_001", "candidates/iter_002")}
    assert set(unneeded(store, settings)) == journals | {"journals/evaluation/M2", "journals/evaluation/M3"}


def test_of_an_earlier_model_it_stays_known_what_it_was(store: ProjectStore, settings: Settings) -> None:
    decide(store, 1, False, store.checkpoint("M2").digest)
    decide(store, 3, True, store.checkpoint("M4").digest)
    before = store.checkpoint("M2")
    assert "models/M2" in unneeded(store, settings)
    for item in unneeded(store, settings).values():
        remove(item)
    assert store.checkpoint("M2") == before, "nothing is out of date"
    assert champion_before(store, 4) == "M4"
    with pytest.raises(ModelError, match=r"removed .*srlm gc"):
        verify(before.path)
    with pytest.raises(ModelError, match=r"removed .*srlm gc"):
        store.keep(before)
    assert unneeded(store, settings) == {}
    assert all(is_checkpoint(store.model_folder(name)) for name in ("sft_baseline", "M1", "M3", "M4"))


def test_a_model_that_the_settings_name_is_needed(store: ProjectStore, settings: Settings) -> None:
    decide(store, 1, False, store.checkpoint("M2").digest)
    named = load_settings("quickstart", {"judge": {"panel": [str(store.model_folder("M2"))]}})
    assert "models/M2" not in unneeded(store, named)
    assert "models/M2" in unneeded(store, settings)


def test_registered_versions_stay_and_what_is_shared_with_them_frees_nothing(
    store: ProjectStore, settings: Settings
) -> None:
    decide(store, 1, False, store.checkpoint("M2").digest)
    kept = store.keep(store.checkpoint("M2"))
    gone = write(store.kept / "M3-0" / "model.safetensors", 1000).parent
    write(gone / "srlm.json", 10)
    found = unneeded(store, settings, {kept})
    assert "models/kept/M3-0" in found
    assert f"models/kept/{kept.name}" not in found
    weights = (kept / "model.safetensors").stat()
    assert weights.st_nlink == 2
    assert freed([found["models/M2"]]) == 0
    assert freed([found["models/kept/M3-0"]]) == 1010
    both = unneeded(store, settings, set())
    assert freed([both["models/M2"], both[f"models/kept/{kept.name}"]]) >= weights.st_size
    assert not any("kept" in path for path in unneeded(store, settings, None)), "a lost registry says nothing"
    remove(found["models/M2"])
    assert (kept / "model.safetensors").stat().st_nlink == 1


def test_training_that_goes_on_is_needed(store: ProjectStore, settings: Settings) -> None:
    write(store.work_folder("M5", "a") / "checkpoint-1" / "model.safetensors")
    again, old = (write(store.work_folder(name, "a") / "optimizer.pt") for name in ("M4", "sft_baseline"))
    os.utime(old, (1, 1))
    os.utime(again, (2**33, 2**33))
    assert [path for path in unneeded(store, settings) if path.startswith("work")] == ["work/sft_baseline"]


def test_what_was_measured_of_another_model_of_the_name_goes_and_leftovers_go(
    store: ProjectStore, settings: Settings
) -> None:
    before = store.assessment_folder(store.checkpoint("M4"))
    train(store, "M4", "trained again")
    write(store.tables / ".candidates.0123abcd.tmp")
    put_back = write(store.root / "models" / ".M9.0123abcd.old" / "srlm.json").parent
    found = unneeded(store, settings)
    assert f"assessments/{before.name}" in found
    assert "tables/.candidates.0123abcd.tmp" in found
    assert str(put_back.relative_to(store.root)) not in found


def test_nothing_that_is_needed_is_deleted(store: ProjectStore, settings: Settings) -> None:
    for item in survey(store, settings, set()):
        if item.needed:
            with pytest.raises(ValueError, match="is needed"):
                remove(item)
