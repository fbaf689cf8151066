"""DPO tells how far it has moved from its reference, and ends beyond a budget."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm_pipeline.config import DpoSettings, LoraSettings, ModelSettings
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.training.common import TrainingJob, TrainingRun
from srlm_pipeline.training.dpo import PreferenceExample, train_dpo
from srlm_pipeline.training.kl_budget import KL, budget_callback, step_beyond

PAIRS = [PreferenceExample(f"task {n}", "yes yes yes", "no no no") for n in range(8)]
RATIOS = st.lists(st.tuples(st.floats(-90, 90), st.floats(-90, 90)), min_size=1, max_size=20)


def follow(ratios: list[tuple[float, float]], beta: float, budget: float | None) -> list[dict[str, float]]:
    """Log the mean log-ratios of chosen and rejected replies step by step, until the callback ends it."""
    callback, history = budget_callback(beta, budget), []
    for step, (chosen, rejected) in enumerate(ratios, 1):
        history.append({"step": step, "rewards/chosen": beta * chosen, "rewards/rejected": beta * rejected})
        control = SimpleNamespace(should_training_stop=False)
        callback.on_log(None, SimpleNamespace(log_history=history), control)
        if control.should_training_stop:
            break
    return history


@given(RATIOS, st.floats(0.01, 2), st.floats(0.1, 50))
def test_the_first_logged_step_beyond_the_budget_is_the_last(
    ratios: list[tuple[float, float]], beta: float, budget: float
) -> None:
    history = follow(ratios, beta, budget)
    moved = [-(chosen + rejected) / 2 for chosen, rejected in ratios]
    assert [entry[KL] for entry in history] == pytest.approx(moved[: len(history)], abs=1e-6)
    within = [entry[KL] <= budget for entry in history]
    assert all(within[:-1])
    if len(history) < len(ratios):
        assert not within[-1]
    assert step_beyond(history, budget) == (None if within[-1] else len(history))
    assert len(follow(ratios, beta, None)) == len(ratios)
    assert step_beyond(history, None) is None


def test_what_is_no_training_step_is_let_alone_and_an_earlier_end_is_not_forgotten() -> None:
    history: list[dict[str, Any]] = [{"step": 4, KL: 9.0}, {"step": 5, "train_runtime": 1.0}]
    control = SimpleNamespace(should_training_stop=False)
    callback = budget_callback(0.1, 5.0)
    callback.on_log(None, SimpleNamespace(log_history=history), control)
    assert history[1] == {"step": 5, "train_runtime": 1.0}
    # Training was interrupted after step 4, and a quieter step follows.
    history.append({"step": 5, "rewards/chosen": 0.0, "rewards/rejected": -0.1})
    callback.on_log(None, SimpleNamespace(log_history=history), control)
    assert control.should_training_stop
    assert step_beyond(history, 5.0) == 4


def train(source: Path, work: Path, budget: float | None) -> TrainingRun:
    settings = DpoSettings(
        lora=LoraSettings(rank=8, alpha=16),
        learning_rate=2e-2,
        epochs=6,
        batch_size=4,
        micro_batch_size=2,
        max_length=128,
        warmup_ratio=0.0,
        kl_budget=budget,
    )
    model = ModelSettings(device="cpu", dtype="float32")
    return train_dpo(TrainingJob(source, model, 1, work, "training", NullProgress()), PAIRS, settings)


@pytest.mark.slow
def test_training_ends_at_the_budget_and_is_the_same_up_to_there(tiny_model: Path, tmp_path: Path) -> None:
    whole = train(tiny_model, tmp_path / "whole", None)
    moved = {int(entry["step"]): entry[KL] for entry in whole.history if KL in entry}
    assert len(moved) == 12
    assert moved[1] == pytest.approx(0, abs=1e-3), "the policy starts as its own reference"
    highest = max(moved.values())
    assert highest > 0.1
    budget = highest / 2
    first = next(step for step, value in moved.items() if value > budget)
    run = train(tiny_model, tmp_path / "work", budget)
    steps = {int(entry["step"]): entry[KL] for entry in run.history if KL in entry}
    assert steps == pytest.approx({step: value for step, value in moved.items() if step <= first}, abs=1e-3)
    assert step_beyond(run.history, budget) == first < 12
