"""The reward model on a tiny random model: it learns what people prefer, keeps it on disk, and then stays as it is."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm_pipeline.config import LoraSettings, ModelSettings, RewardModelSettings
from srlm_pipeline.errors import EmptyDataError, ModelError
from srlm_pipeline.evaluation.judge_accuracy import measure_judge
from srlm_pipeline.models.checkpoint import save_checkpoint
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.training.common import TrainingJob
from srlm_pipeline.training.dpo import PreferenceExample
from srlm_pipeline.training.human_pairs import all_ordered_pairs, best_worst_pairs
from srlm_pipeline.training.reward_model import (
    RewardModel,
    complete,
    open_reward_model,
    reward_scores,
    train_reward_model,
)

MODEL = ModelSettings(device="cpu", dtype="float32")
PAIRS = [PreferenceExample(f"task {n}", "yes yes yes", "no no no") for n in range(8)]
COMMON: dict[str, Any] = {
    "lora": LoraSettings(rank=8, alpha=16),
    "batch_size": 4,
    "micro_batch_size": 2,
    "max_length": 128,
    "warmup_ratio": 0.0,
    "epochs": 8,
}
RATES = {"lora": 2e-2, "full": 5e-3}


def settings_of(method: str = "lora", **changes: Any) -> RewardModelSettings:
    return RewardModelSettings(method=method, learning_rate=RATES[method], **(COMMON | changes))


def job(source: Path, work: Path, model: ModelSettings = MODEL) -> TrainingJob:
    return TrainingJob(source, model, 1, work, "training", NullProgress())


def train(source: Path, work: Path, method: str = "lora", dtype: str = "float32", **changes: Any) -> Any:
    model = ModelSettings(device="cpu", dtype=dtype)
    return train_reward_model(job(source, work, model), PAIRS, settings_of(method, **changes))


def rewards_of(model: RewardModel, *replies: str, prompt: str = "another task") -> list[float]:
    return model.rewards([prompt] * len(replies), replies, NullProgress())


def ranked(*groups: list[tuple[int, str]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"group_id": f"g{number}", "prompt": f"p{number}", "rank": rank, "text": text}
            for number, group in enumerate(groups)
            for rank, text in group
        ]
    )


def test_all_pairs_are_those_that_people_put_in_an_order() -> None:
    pairs = all_ordered_pairs(ranked([(1, "b"), (0, "a"), (1, "c")], [(0, "d"), (0, "e")]))
    assert {(p.prompt, p.chosen, p.rejected) for p in pairs} == {("p0", "a", "b"), ("p0", "a", "c")}


def test_best_against_worst_is_one_pair_per_prompt_and_none_where_all_are_equal() -> None:
    pairs = best_worst_pairs(ranked([(1, "b"), (0, "a"), (2, "c")], [(0, "d"), (0, "e")], [(3, "f"), (1, "g")]))
    assert [(p.chosen, p.rejected) for p in pairs] == [("a", "c"), ("g", "f")]


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=20, unique=True))
def test_rewards_on_the_judges_scale_keep_their_order(rewards: list[float]) -> None:
    scores = reward_scores(rewards)
    assert all(0 <= score <= 5 for score in scores)
    order = sorted(range(len(rewards)), key=rewards.__getitem__)
    assert all(scores[a] <= scores[b] for a, b in pairwise(order))


def test_the_judges_scale_tells_rewards_apart_and_has_nought_in_the_middle() -> None:
    low, middle, high = reward_scores([-1.0, 0.0, 1e-6])
    assert low < middle < high
    assert middle == 2.5


def test_a_reply_is_cut_to_the_room_and_always_ended() -> None:
    assert complete([1, 2], [3, 4, 5], 9, 100) == [1, 2, 3, 4, 5, 9]
    assert complete([1, 2], [3, 4, 5], 9, 4) == [1, 2, 3, 9]
    assert complete([1, 2], [3], 9, 2) == [1, 2, 9]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "dtype"), [("lora", "float32"), ("lora", "bfloat16"), ("full", "float32")])
def test_what_people_prefer_gets_the_higher_reward_also_after_a_new_prompt(
    tiny_model: Path, tmp_path: Path, method: str, dtype: str
) -> None:
    run = train(tiny_model, tmp_path / "work", method, dtype)
    assert run.n_examples == len(PAIRS)
    assert run.final("accuracy") == 1.0
    saved = save_checkpoint(run.loaded, tmp_path / "reward_model", "reward_model", "parent", {}, "float32")
    opened = open_reward_model(saved.path, settings_of(method), ModelSettings(device="cpu", dtype=dtype))
    better, worse = rewards_of(opened, "yes yes yes", "no no no")
    assert better > worse + 0.5


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    run = train(tiny_model, folder / "work")
    return save_checkpoint(run.loaded, folder / "reward_model", "reward_model", None, {}, "float32").path


@pytest.mark.slow
def test_a_reward_does_not_depend_on_what_is_read_beside_it(trained: Path) -> None:
    opened = open_reward_model(trained, settings_of(), MODEL)
    replies = ["a", "a much longer reply than the others are", "yes", ""]
    together = rewards_of(opened, *replies)
    assert together == pytest.approx([rewards_of(opened, reply)[0] for reply in replies], abs=1e-4)
    assert len(set(together)) == len(replies)


@pytest.mark.slow
def test_it_is_frozen(trained: Path) -> None:
    opened = open_reward_model(trained, settings_of(), MODEL)
    assert not any(weight.requires_grad for weight in opened._model.parameters())


@pytest.mark.slow
def test_in_half_precision_replies_that_differ_have_rewards_that_differ(trained: Path) -> None:
    opened = open_reward_model(trained, settings_of(), ModelSettings(device="cpu", dtype="bfloat16"))
    rewards = rewards_of(opened, *(f"reply {n}" for n in range(40)))
    assert len(set(rewards)) == 40


@pytest.mark.slow
def test_it_is_measured_like_a_judge(trained: Path) -> None:
    opened = open_reward_model(trained, settings_of(), MODEL)
    rewards = [reward for _ in range(3) for reward in rewards_of(opened, "yes yes yes", "no no no")]
    table = pd.DataFrame(
        {
            "group_id": [f"g{n}" for n in range(3) for _ in range(2)],
            "rank": [0, 1] * 3,
            "n_characters": [11, 8] * 3,
            "score": reward_scores(rewards),
        }
    )
    assert measure_judge(table).pairwise_accuracy == 1.0
    assert measure_judge(table.assign(rank=[1, 0] * 3)).pairwise_accuracy == 0.0


@pytest.mark.slow
def test_an_interrupted_training_continues_where_it_was(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    whole = train(tiny_model, tmp_path / "whole", save_every=3)
    plain, steps = Trainer.training_step, []

    def dying(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(trainer.state.global_step)
        if len(steps) == 10:
            raise RuntimeError("the machine went down")
        return plain(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", dying)
    with pytest.raises(RuntimeError, match="went down"):
        train(tiny_model, tmp_path / "work", save_every=3)
    begun = len(steps)
    continued = train(tiny_model, tmp_path / "work", save_every=3)
    assert steps[begun] == 3
    ends = [rewards_of(RewardModel(run.loaded, 128, 4), "yes yes yes", "no no no") for run in (whole, continued)]
    assert ends[0] == pytest.approx(ends[1], abs=0.02)


def test_no_pairs_are_refused_naming_the_data(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(EmptyDataError, match=r"data\.ranked_replies"):
        train_reward_model(job(tiny_model, tmp_path / "work"), [], settings_of())


@pytest.mark.slow
def test_prompts_that_leave_no_room_for_a_reply_are_left_out(tiny_model: Path, tmp_path: Path) -> None:
    long = PreferenceExample("long " * 50, "yes", "no")
    run = train_reward_model(job(tiny_model, tmp_path / "a"), [*PAIRS, long], settings_of(epochs=1))
    assert run.n_examples == len(PAIRS)
    with pytest.raises(EmptyDataError, match=r"baselines\.reward_model\.max_length"):
        train_reward_model(job(tiny_model, tmp_path / "b"), [long], settings_of())


def test_a_chat_model_is_not_taken_for_a_reward_model(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="is no reward model"):
        open_reward_model(tiny_model, settings_of(), MODEL)
