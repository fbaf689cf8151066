"""RLHF on a tiny random model: it learns what is rewarded, is held back by KL, continues after an interruption."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from srlm_pipeline.config import LoraSettings, ModelSettings, RlhfSettings
from srlm_pipeline.errors import EmptyDataError
from srlm_pipeline.models.loading import LoadedModel, load_model
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.training.common import TrainingJob
from srlm_pipeline.training.rlhf import (
    end_tokens,
    fitting_prompts,
    prompt_order,
    reward_function,
    train_rlhf,
)

MODEL = ModelSettings(device="cpu", dtype="float32")
PROMPTS = [f"task {n}" for n in range(8)]
COMMON: dict[str, Any] = {
    "lora": LoraSettings(rank=8, alpha=16),
    "learning_rate": 5e-3,
    "batch_size": 16,
    "micro_batch_size": 8,
    "generations": 4,
    "max_length": 64,
    "max_new_tokens": 12,
    "warmup_ratio": 0.0,
    "epochs": 100,
    "max_steps": 12,
    "kl_coefficient": 0.0,
    "missing_end_penalty": 0.0,
}


# The letters from a to f: a good part, but not most, of what the tiny model writes.
LIKED = range(67, 73)


class LikesFewLetters:
    """Rewards the share of liked tokens; stands in for a reward model."""

    def __init__(self) -> None:
        self.read: list[tuple[list[int], list[int]]] = []

    def of_tokens(self, exchanges: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        self.read += exchanges
        return [4.0 * sum(token in LIKED for token in reply) / max(len(reply), 1) for _, reply in exchanges]


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> LoadedModel:
    return load_model(tiny_model, MODEL)


@pytest.fixture
def judge() -> LikesFewLetters:
    return LikesFewLetters()


def job(source: Path, work: Path, model: ModelSettings = MODEL) -> TrainingJob:
    return TrainingJob(source, model, 1, work, "training", NullProgress())


def train(source: Path, reward: LikesFewLetters, work: Path, dtype: str = "float32", **changes: Any) -> Any:
    settings = RlhfSettings(**(COMMON | changes))
    model = ModelSettings(device="cpu", dtype=dtype)
    return train_rlhf(job(source, work, model), PROMPTS, lambda _: reward, settings)  # type: ignore[arg-type, return-value]


def column(run: Any, name: str) -> list[float]:
    return [entry[name] for entry in run.history if name in entry]


def chance_of_the_liked(loaded: LoadedModel) -> float:
    rendered = fitting_prompts(loaded.tokenizer, ["another task"], 100)[0]
    ids = torch.tensor([loaded.tokenizer(rendered, add_special_tokens=False).input_ids])
    with torch.inference_mode():
        shares = loaded.model(ids).logits[0, -1].softmax(-1)
    return float(shares[LIKED.start : LIKED.stop].sum())


def test_the_order_visits_every_prompt_before_any_again_and_ends_at_the_limit() -> None:
    settings = RlhfSettings(batch_size=16, generations=4, max_steps=7, epochs=2)
    order = prompt_order(11, settings, 1)
    assert len(order) == 20, "five steps of four prompts: two prompts do not fill another"
    assert sorted(order[:11]) == list(range(11))
    assert len(set(order[11:])) == 9
    assert order[:11] != order[11:][:11]
    assert order != prompt_order(11, settings, 2)
    assert len(prompt_order(1000, settings, 1)) == 28
    assert len(prompt_order(4, settings.model_copy(update={"epochs": 0.1}), 1)) == 4
    with pytest.raises(EmptyDataError, match=r"3 prompts do not fill one step of 4.*baselines\.rlhf\.batch_size"):
        prompt_order(3, settings, 1)


def test_a_reply_that_was_cut_off_pays_and_one_that_ended_is_read_without_its_end(
    base: LoadedModel, judge: LikesFewLetters
) -> None:
    e, end = base.tokenizer.convert_tokens_to_ids("e"), base.tokenizer.eos_token_id
    assert e in LIKED
    prompt = fitting_prompts(base.tokenizer, ["task"], 100)[0]
    reward = reward_function(judge, base, 1.5)  # type: ignore[arg-type]
    assert reward(prompts=[prompt] * 3, completions=[], completion_ids=[[e, end], [e, e], [end]]) == [4.0, 2.5, 0.0]
    ids = base.tokenizer(prompt, add_special_tokens=False).input_ids
    assert judge.read == [(ids, [e]), (ids, [e, e]), (ids, [])]


def test_every_token_that_ends_a_reply_counts(tiny_model: Path) -> None:
    loaded = load_model(tiny_model, MODEL)
    own = loaded.tokenizer.eos_token_id
    loaded.model.generation_config.eos_token_id = [own, 17]
    assert end_tokens(loaded) == {own, 17}
    loaded.model.generation_config.eos_token_id = None
    assert end_tokens(loaded) == {own}


def test_prompts_without_room_are_left_out(base: LoadedModel) -> None:
    short = fitting_prompts(base.tokenizer, ["task"], 1000)[0]
    length = len(base.tokenizer(short, add_special_tokens=False).input_ids)
    assert fitting_prompts(base.tokenizer, ["task", "task!"], length) == [short]
    assert fitting_prompts(base.tokenizer, ["task"], length - 1) == []


@pytest.mark.slow
@pytest.mark.parametrize(("method", "dtype"), [("lora", "float32"), ("lora", "bfloat16"), ("full", "float32")])
def test_what_is_rewarded_becomes_likelier(
    base: LoadedModel, tiny_model: Path, tmp_path: Path, judge: LikesFewLetters, method: str, dtype: str
) -> None:
    larger = {"batch_size": 32, "micro_batch_size": 16, "max_steps": 16}
    run = train(tiny_model, judge, tmp_path / "work", dtype, method=method, **larger)
    rewards = column(run, "reward")
    assert len(rewards) == 16
    assert sum(rewards[-5:]) > 1.2 * sum(rewards[:5])
    assert chance_of_the_liked(run.loaded) > 1.2 * chance_of_the_liked(base)
    assert len(judge.read) == 16 * 32
    assert type(run.loaded.model).__name__ == "LlamaForCausalLM"


@pytest.mark.slow
def test_the_kl_coefficient_keeps_the_policy_near_its_start(
    tiny_model: Path, tmp_path: Path, judge: LikesFewLetters
) -> None:
    free, held = (train(tiny_model, judge, tmp_path / f"work{beta}", kl_coefficient=beta) for beta in (0.01, 5.0))
    assert column(free, "kl")[0] == pytest.approx(0, abs=1e-5), "the policy starts as its own reference"
    assert column(held, "kl")[-1] < column(free, "kl")[-1] / 2


@pytest.mark.slow
def test_an_interrupted_training_continues_and_ends_where_a_whole_one_ends(
    tiny_model: Path, tmp_path: Path, base: LoadedModel, judge: LikesFewLetters
) -> None:
    class Dying(LikesFewLetters):
        def of_tokens(self, exchanges: Sequence[tuple[list[int], list[int]]]) -> list[float]:
            if len(self.read) == 5 * 16:
                raise RuntimeError("the machine went down")
            return super().of_tokens(exchanges)

    whole = train(tiny_model, judge, tmp_path / "whole", save_every=4, max_steps=8)
    with pytest.raises(RuntimeError, match="went down"):
        train(tiny_model, Dying(), tmp_path / "work", save_every=4, max_steps=8)
    rest = LikesFewLetters()
    continued = train(tiny_model, rest, tmp_path / "work", save_every=4, max_steps=8)
    assert len(rest.read) == 4 * 16, "from the checkpoint of step 4"
    assert rest.read == judge.read[4 * 16 :], "the very replies that an uninterrupted run draws"
    assert chance_of_the_liked(continued.loaded) == pytest.approx(chance_of_the_liked(whole.loaded), rel=1e-2)


@pytest.mark.slow
def test_progress_counts_the_steps(tiny_model: Path, tmp_path: Path, judge: LikesFewLetters) -> None:
    from srlm_pipeline.progress import LogProgress

    lines: list[str] = []
    settings = RlhfSettings(**(COMMON | {"max_steps": 3}))
    progress = LogProgress(lines.append, every=0)
    train_rlhf(replace(job(tiny_model, tmp_path), progress=progress), PROMPTS, lambda _: judge, settings)  # type: ignore[arg-type, return-value]
    assert any("3/3" in line for line in lines), lines


def test_without_prompts_nothing_is_trained(tiny_model: Path, tmp_path: Path, judge: LikesFewLetters) -> None:
    settings = RlhfSettings(**COMMON)
    with pytest.raises(EmptyDataError, match="no prompts"):
        train_rlhf(job(tiny_model, tmp_path), [], lambda _: judge, settings)  # type: ignore[arg-type, return-value]
    with pytest.raises(EmptyDataError, match=r"baselines\.rlhf\.max_length"):
        train_rlhf(job(tiny_model, tmp_path), ["x" * 100], lambda _: judge, settings)  # type: ignore[arg-type, return-value]
