"""DPO ends where the replies stop getting better, and the model of the look before is taken."""

from pathlib import Path
from typing import Any

import pytest
import torch

from srlm_pipeline.config import DpoSettings, LoraSettings, ModelSettings
from srlm_pipeline.models.checkpoint import Checkpoint, read_checkpoint
from srlm_pipeline.models.loading import load_model
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.training.common import TrainingJob, TrainingRun
from srlm_pipeline.training.dpo import PreferenceExample, train_dpo
from srlm_pipeline.training.early_stopping import LOST, WIN_RATE, EarlyStopping, Outcome

pytestmark = pytest.mark.slow

MODEL = ModelSettings(device="cpu", dtype="float32", save_dtype="float32")
PAIRS = [PreferenceExample(f"task {n}", "yes yes yes", "no no no") for n in range(8)]
METHODS = ["lora", "full"]


def train(
    source: Path, work: Path, stopping: EarlyStopping | None, method: str = "lora", **changes: Any
) -> TrainingRun:
    settings = DpoSettings(
        method=method,
        lora=LoraSettings(rank=8, alpha=16),
        learning_rate=1e-2 if method == "lora" else 2e-3,
        epochs=3,
        batch_size=2,
        micro_batch_size=2,
        max_length=128,
        warmup_ratio=0.0,
        **changes,
    )
    return train_dpo(TrainingJob(source, MODEL, 1, work, "training", NullProgress()), PAIRS, settings, stopping)


def watch(tiny_model: Path, every: int, *win_rates: float) -> tuple[EarlyStopping, list[tuple[str, str]]]:
    """Return an early stopping whose looks end as given, and who met whom."""
    met: list[tuple[str, str]] = []

    def compare(now: Checkpoint, before: Checkpoint) -> Outcome:
        met.append((now.name, before.name))
        assert read_checkpoint(now.path).digest == now.digest
        won = win_rates[len(met) - 1]
        return Outcome(won < 0.5, {WIN_RATE: won})

    entering = Checkpoint(tiny_model, "M1", "digest", None)
    return EarlyStopping(every, entering, compare), met


def weights(run: TrainingRun) -> torch.Tensor:
    return torch.cat([p.detach().float().flatten() for p in run.loaded.model.parameters()])


@pytest.mark.parametrize("method", METHODS)
def test_training_goes_on_while_looks_are_won_and_ends_as_without_them(
    tiny_model: Path, tmp_path: Path, method: str
) -> None:
    plain = train(tiny_model, tmp_path / "plain", None, method)
    stopping, met = watch(tiny_model, 5, 0.6, 0.5)
    run = train(tiny_model, tmp_path / "work", stopping, method)
    assert met == [("M1-step-5", "M1"), ("M1-step-10", "M1-step-5")]
    assert stopping.stopped_at is None
    assert torch.allclose(weights(plain), weights(run), atol=1e-5), "looking changes nothing"
    assert [e[WIN_RATE] for e in run.history if LOST in e] == [0.6, 0.5]


@pytest.mark.parametrize("method", METHODS)
def test_a_lost_look_ends_training_and_the_model_before_it_is_taken(
    tiny_model: Path, tmp_path: Path, method: str
) -> None:
    kept: dict[str, torch.Tensor] = {}
    stopping, met = watch(tiny_model, 3, 0.7, 0.8, 0.4)
    inner = stopping.compare

    def compare(now: Checkpoint, before: Checkpoint) -> Outcome:
        loaded = load_model(now.path, MODEL)
        kept[now.name] = torch.cat([p.detach().flatten() for p in loaded.model.parameters()])
        return inner(now, before)

    stopping.compare = compare
    run = train(tiny_model, tmp_path / "work", stopping, method)
    assert [now for now, _ in met] == ["M1-step-3", "M1-step-6", "M1-step-9"]
    assert stopping.stopped_at == 9
    assert max(int(e["step"]) for e in run.history if "loss" in e) == 9, "of twelve"
    assert torch.equal(weights(run), kept["M1-step-6"])
    assert not torch.equal(kept["M1-step-6"], kept["M1-step-9"])


def test_where_the_first_look_is_lost_the_model_stays_as_it_was(tiny_model: Path, tmp_path: Path) -> None:
    stopping, _ = watch(tiny_model, 2, 0.1)
    run = train(tiny_model, tmp_path / "work", stopping)
    before = load_model(tiny_model, MODEL).model
    assert torch.equal(weights(run), torch.cat([p.detach().flatten() for p in before.parameters()]))


def test_an_interrupted_training_goes_on_from_its_latest_look(tiny_model: Path, tmp_path: Path) -> None:
    stopping, met = watch(tiny_model, 4, 0.9, 0.9)
    inner = stopping.compare

    def compare(now: Checkpoint, before: Checkpoint) -> Outcome:
        if now.name == "M1-step-8":
            raise RuntimeError("the machine went down")
        return inner(now, before)

    stopping.compare = compare
    with pytest.raises(RuntimeError, match="went down"):
        train(tiny_model, tmp_path / "work", stopping, save_every=6)
    again, met_again = watch(tiny_model, 4, 0.2)
    train(tiny_model, tmp_path / "work", again, save_every=6)
    assert met == [("M1-step-4", "M1")]
    assert met_again == [("M1-step-8", "M1-step-4")]
    assert again.stopped_at == 8


def test_an_interruption_after_a_later_look_loses_neither_the_look_before_the_save_nor_the_history(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Looks at 4 and 8, saved at 6; the machine goes down before the save at 12."""
    stopping, _ = watch(tiny_model, 4, 0.9, 0.8)
    inner = stopping.compare

    def compare(now: Checkpoint, before: Checkpoint) -> Outcome:
        if now.name == "M1-step-12":
            raise RuntimeError("the machine went down")
        return inner(now, before)

    stopping.compare = compare
    with pytest.raises(RuntimeError, match="went down"):
        train(tiny_model, tmp_path / "work", stopping, save_every=6)
    assert len(list((tmp_path / "work" / "looks").glob("step-*"))) == 3, "the one before the save, the best, the newest"
    again, met = watch(tiny_model, 4, 0.7, 0.6)
    run = train(tiny_model, tmp_path / "work", again, save_every=6)
    assert met == [("M1-step-8", "M1-step-4"), ("M1-step-12", "M1-step-8")]
    looks = [(e["step"], e[WIN_RATE]) for e in run.history if LOST in e]
    assert looks == [(4, 0.9), (8, 0.7), (12, 0.6)]


def test_a_lost_look_stays_lost_after_an_interruption(tiny_model: Path, tmp_path: Path) -> None:
    stopping, _ = watch(tiny_model, 3, 0.9, 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("srlm_pipeline.training.dpo.load_model", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tiny_model, tmp_path / "work", stopping, save_every=3)
    again, met = watch(tiny_model, 3)
    run = train(tiny_model, tmp_path / "work", again, save_every=3)
    assert met == []
    assert again.stopped_at == 6
    assert again.best.name == "M1-step-3"
    assert [e[WIN_RATE] for e in run.history if LOST in e] == [0.9, 0.1]
