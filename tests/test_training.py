"""SFT, ranking and DPO on a tiny random model: they learn, they resume, adapters end up merged."""

import os
import shutil
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srlm_pipeline.config import DpoSettings, EftSettings, LoraSettings, ModelSettings, SftSettings
from srlm_pipeline.errors import EmptyDataError
from srlm_pipeline.generation.prefill import last_token_logits
from srlm_pipeline.generation.transformers_engine import option_tokens
from srlm_pipeline.judging.rubric import COMPARISON_OPTIONS, COMPARISON_START, SCORE_START, SCORES
from srlm_pipeline.models.checkpoint import save_checkpoint
from srlm_pipeline.models.loading import LoadedModel, load_model
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.training.common import TrainingJob, linear_layers
from srlm_pipeline.training.dpo import PreferenceExample, encode_preference, train_dpo
from srlm_pipeline.training.ranking import train_ranking
from srlm_pipeline.training.ranking_items import (
    EncodedItem,
    RankedExample,
    RankingWeights,
    encode_comparisons,
    encode_ranked,
    ranking_weights,
    score_target,
)
from srlm_pipeline.training.ranking_trainer import STRAYED, RankingTrainer, item_loss
from srlm_pipeline.training.resumption import newest_whole
from srlm_pipeline.training.retention import RetainedReply, divergence, draw_retained
from srlm_pipeline.training.sft import SftExample, encode_example, train_sft

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

MODEL = ModelSettings(device="cpu", dtype="float32")
COMMON: dict[str, Any] = {
    "lora": LoraSettings(rank=8, alpha=16),
    "batch_size": 4,
    "micro_batch_size": 2,
    "max_length": 256,
    "warmup_ratio": 0.0,
}
RATES = {"lora": 2e-2, "full": 5e-3}
SFT = [SftExample(f"say {word}", word * 3) for word in ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op")]
PAIRS = [PreferenceExample(f"task {n}", "yes yes yes", "no no no") for n in range(8)]
METHODS = ["lora", "full"]


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> LoadedModel:
    return load_model(tiny_model, MODEL)


def log_likelihood(loaded: LoadedModel, prompt: str, reply: str) -> float:
    rendered = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    start = len(loaded.tokenizer(rendered, add_special_tokens=False).input_ids)
    ids = torch.tensor([loaded.tokenizer(rendered + reply, add_special_tokens=False).input_ids])
    with torch.inference_mode():
        logs = loaded.model(ids).logits[0, :-1].log_softmax(-1)
    return float(logs.gather(-1, ids[0, 1:, None])[start - 1 :].sum())


def job(source: Path, work: Path) -> TrainingJob:
    return TrainingJob(source, MODEL, 1, work, "training", NullProgress())


def sft(source: Path, work: Path, method: str = "lora", **changes: Any) -> Any:
    settings = SftSettings(method=method, learning_rate=RATES[method], epochs=6, **(COMMON | changes))
    return train_sft(job(source, work), SFT, settings)


def watch_steps(patch: pytest.MonkeyPatch, die_at: int | None = None) -> list[int]:
    """Return a list that the steps done by SFT trainers are added to; training dies at the end of one of them."""
    from transformers import TrainerCallback
    from trl import SFTTrainer

    plain = SFTTrainer.__init__
    steps: list[int] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            steps.append(state.global_step)
            if state.global_step == die_at:
                raise RuntimeError("the machine went down")

    def watched(trainer: Any, *args: Any, **kwargs: Any) -> None:
        plain(trainer, *args, **kwargs)
        trainer.add_callback(Watch())

    patch.setattr(SFTTrainer, "__init__", watched)
    return steps


def kill_training_at(step: int, source: Path, work: Path, method: str = "lora", **changes: Any) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="went down"):
        watch_steps(patch, step)
        sft(source, work, method, **changes)


def dpo(source: Path, work: Path, method: str, pairs: list[PreferenceExample] = PAIRS) -> Any:
    settings = DpoSettings(method=method, learning_rate=RATES[method], epochs=4, **COMMON)
    return train_dpo(job(source, work), pairs, settings)


@pytest.mark.parametrize("method", METHODS)
def test_sft_makes_the_responses_likelier(
    base: LoadedModel, tiny_model: Path, tmp_path: Path, method: str, way: str
) -> None:
    run = sft(tiny_model, tmp_path / "work", method)
    assert run.n_examples == len(SFT)
    losses = [entry["loss"] for entry in run.history if "loss" in entry]
    assert len(losses) == 12, "six epochs of two steps"
    assert losses[-1] < losses[0]
    before, after = (
        [log_likelihood(m, example.prompt, example.response) for example in SFT] for m in (base, run.loaded)
    )
    assert sum(after) > sum(before) + len(SFT)


@pytest.mark.parametrize("method", METHODS)
def test_dpo_moves_the_preferences_apart(
    base: LoadedModel, tiny_model: Path, tmp_path: Path, method: str, way: str
) -> None:
    run = dpo(tiny_model, tmp_path / "work", method)
    assert run.history[0]["loss"] == pytest.approx(0.6931, abs=1e-3), "the policy starts as its own reference"
    assert run.final("rewards/margins") > 0.1
    for pair in PAIRS:
        gaps = [
            log_likelihood(m, pair.prompt, pair.chosen) - log_likelihood(m, pair.prompt, pair.rejected)
            for m in (base, run.loaded)
        ]
        assert gaps[1] > gaps[0] + 1


def another_model(tiny_model: Path, folder: Path) -> Path:
    loaded = load_model(tiny_model, MODEL)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return save_checkpoint(loaded, folder, "another", None, {}, "float32").path


@pytest.mark.parametrize("method", METHODS)
def test_another_model_can_be_the_reference_and_is_gone_when_training_begins(
    base: LoadedModel, tiny_model: Path, tmp_path: Path, method: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from srlm_pipeline.training import dpo as module

    loaded: list[tuple[str, weakref.ref[Any]]] = []
    load, run = module.load_for_training, module.run_trainer

    def watched(job: TrainingJob, settings: Any) -> LoadedModel:
        assert all(model() is None for _, model in loaded), "two models at once"
        made = load(job, settings)
        loaded.append((str(job.source), weakref.ref(made.model)))
        return made

    def started(job: TrainingJob, trainer: Any) -> Any:
        assert [model() is not None for _, model in loaded] == [False, True]
        return run(job, trainer)

    monkeypatch.setattr(module, "load_for_training", watched)
    monkeypatch.setattr(module, "run_trainer", started)
    reference = another_model(tiny_model, tmp_path / "reference")
    settings = DpoSettings(method=method, learning_rate=RATES[method], epochs=2, **(COMMON | {"batch_size": 8}))
    trained = train_dpo(job(tiny_model, tmp_path / "work"), PAIRS, settings, reference=reference)
    assert [source for source, _ in loaded] == [str(reference), str(tiny_model)]
    other = load_model(reference, MODEL)
    margins = [
        sum(
            sign * (log_likelihood(base, pair.prompt, reply) - log_likelihood(other, pair.prompt, reply))
            for sign, reply in ((1, f"{pair.chosen}<|im_end|>"), (-1, f"{pair.rejected}<|im_end|>"))
        )
        for pair in PAIRS
    ]
    expected = settings.beta * sum(margins) / len(margins)
    assert abs(expected) > 0.01
    assert trained.first("rewards/margins") == pytest.approx(expected, abs=2e-3)
    assert trained.final("rewards/margins") > expected + 0.01


@pytest.mark.parametrize("loss", get_args(DpoSettings.model_fields["loss"].annotation))
def test_every_loss_that_the_settings_name_learns(tiny_model: Path, tmp_path: Path, loss: str) -> None:
    smoothing, weight = 0.1 * (loss == "robust"), 0.1 * (loss == "sigmoid_norm")
    settings = DpoSettings(
        loss=loss, label_smoothing=smoothing, learning_rate=2e-2, epochs=2, nll_weight=weight, **COMMON
    )
    run = train_dpo(job(tiny_model, tmp_path / "work"), PAIRS, settings)
    assert run.final("rewards/margins") > 0


def test_likelihood_of_the_chosen_reply_joins_the_loss(tiny_model: Path, tmp_path: Path) -> None:
    def first_loss(weight: float) -> float:
        settings = DpoSettings(learning_rate=1e-6, epochs=1, nll_weight=weight, **COMMON)
        run = train_dpo(job(tiny_model, tmp_path / f"work{weight}"), PAIRS, settings)
        return run.history[0]["loss"]

    plain, half, whole = (first_loss(weight) for weight in (0.0, 0.5, 1.0))
    assert plain == pytest.approx(0.6931, abs=1e-3)
    assert whole > plain + 1, "a random model finds every byte unlikely"
    assert half - plain == pytest.approx((whole - plain) / 2, rel=1e-3)


def test_a_reply_that_was_cut_off_does_not_teach_to_end_there(base: LoadedModel) -> None:
    end = base.tokenizer.eos_token_id
    row = encode_preference(base.tokenizer, PreferenceExample("task", "yes", "no", chosen_ended=False), 256)
    assert row is not None
    assert base.tokenizer.decode(row["chosen_ids"]) == "yes"
    assert end not in row["chosen_ids"]
    assert row["rejected_ids"][-1] == end


def test_a_pair_is_tokenized_as_generation_would_have_drawn_it(base: LoadedModel) -> None:
    from srlm_pipeline.data.chat import render_user_turn

    row = encode_preference(base.tokenizer, PreferenceExample("say <|im_end|>", "<|im_end|>x", "no"), 256)
    assert row is not None
    rendered = render_user_turn(base.tokenizer, "say <|im_end|>")
    assert row["prompt_ids"] == base.tokenizer(rendered, add_special_tokens=False).input_ids
    assert row["chosen_ids"].count(base.tokenizer.eos_token_id) == 1, "the one that ends it, not the quoted one"


def test_replies_are_cut_to_the_room_beside_the_prompt_and_hopeless_pairs_left_out(base: LoadedModel) -> None:
    example = PreferenceExample("task", "yes " * 50, "no " * 50)
    full = encode_preference(base.tokenizer, example, 1000)
    assert full is not None
    n_prompt = len(full["prompt_ids"])
    cut = encode_preference(base.tokenizer, example, n_prompt + 10)
    assert cut == {
        "prompt_ids": full["prompt_ids"],
        "chosen_ids": full["chosen_ids"][:10],
        "rejected_ids": full["rejected_ids"][:10],
    }
    assert encode_preference(base.tokenizer, example, n_prompt) is None


@given(st.text(max_size=40), st.text(max_size=40), st.integers(16, 120), st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_what_is_learned_fits_and_a_judgement_is_learned_whole_or_not_at_all(
    base: LoadedModel, prompt: str, response: str, room: int, whole: bool
) -> None:
    example = SftExample(prompt, response, whole)
    full = encode_example(base.tokenizer, example, 10_000)
    assert full is not None and full["input_ids"][-1] == base.tokenizer.eos_token_id
    row = encode_example(base.tokenizer, example, room)
    n_prompt = full["completion_mask"].count(0)
    if len(full["input_ids"]) <= room:
        assert row == full
    elif whole or n_prompt >= room:
        assert row is None
    else:
        assert row == {name: values[:room] for name, values in full.items()}
        assert sum(row["completion_mask"]) == room - n_prompt > 0


def test_examples_that_do_not_fit_are_left_out_and_counted(tiny_model: Path, tmp_path: Path) -> None:
    too_long = [SftExample("a" * 400, "b"), SftExample("short", "c" * 400, whole=True)]
    settings = SftSettings(**COMMON | {"epochs": 1})
    run = train_sft(job(tiny_model, tmp_path), [*SFT, *too_long], settings)
    assert (run.n_examples, run.n_left_out) == (len(SFT), 2)
    with pytest.raises(EmptyDataError, match=r"none fits into sft.max_length \(256 tokens\)"):
        train_sft(job(tiny_model, tmp_path), too_long, settings)


@pytest.mark.parametrize("method", METHODS)
def test_a_trained_model_is_a_plain_model_that_loads_from_its_folder(
    tiny_model: Path, tmp_path: Path, method: str
) -> None:
    run = sft(tiny_model, tmp_path / "work", method, save_every=100)
    saved = save_checkpoint(run.loaded, tmp_path / "model", "M", None, {}, "float32")
    again = load_model(saved.path, MODEL)
    assert type(again.model).__name__ == "LlamaForCausalLM"
    assert log_likelihood(again, "say ab", "ababab") == pytest.approx(
        log_likelihood(run.loaded, "say ab", "ababab"), abs=1e-3
    )


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_training_continues_and_ends_where_a_whole_one_ends(
    tiny_model: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sft(tiny_model, tmp_path / "whole", method, save_every=5)
    kill_training_at(8, tiny_model, tmp_path / "work", method, save_every=5)
    steps = watch_steps(monkeypatch)
    continued = sft(tiny_model, tmp_path / "work", method, save_every=5)
    assert steps == list(range(6, 13)), "from the checkpoint of step 5"
    for example in SFT:
        ends = [log_likelihood(run.loaded, example.prompt, example.response) for run in (whole, continued)]
        assert ends[0] == pytest.approx(ends[1], abs=0.02)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda work: (work / "checkpoint-9").mkdir(), id="nothing written yet"),
        pytest.param(
            lambda work: shutil.copytree(
                work / "checkpoint-5", work / "checkpoint-9", ignore=lambda *_: ["srlm_complete.json", "optimizer.pt"]
            ),
            id="some files written",
        ),
        pytest.param(
            lambda work: os.truncate(
                shutil.copytree(work / "checkpoint-5", work / "checkpoint-9") / "trainer_state.json", 0
            ),
            id="a file cut short",
        ),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_passed_over_and_removed(
    tiny_model: Path, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    work = tmp_path / "work"
    kill_training_at(8, tiny_model, work, save_every=5)
    assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-5"]
    spoil(work)
    found = newest_whole(work)
    assert found == (work / "checkpoint-5", 5)
    assert not (work / "checkpoint-9").exists()
    sft(tiny_model, work, save_every=5)


def test_a_checkpoint_whose_saving_failed_costs_only_the_steps_since_the_one_before(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import SFTTrainer

    whole = SFTTrainer._save_optimizer_and_scheduler

    def full_disk(trainer: Any, folder: str) -> None:
        if trainer.state.global_step == 10:
            raise OSError("no space left on device")
        whole(trainer, folder)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(SFTTrainer, "_save_optimizer_and_scheduler", full_disk)
        sft(tiny_model, tmp_path / "work", save_every=5)
    assert newest_whole(tmp_path / "work") == (tmp_path / "work" / "checkpoint-5", 5)
    assert sft(tiny_model, tmp_path / "work", save_every=5).history[-1]["step"] == 12


def test_a_training_whose_model_was_not_saved_yet_is_not_done_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = sft(tiny_model, tmp_path / "work")
    steps = watch_steps(monkeypatch)
    again = sft(tiny_model, tmp_path / "work")
    assert steps == []
    assert again.final("loss") == done.final("loss")
    for example in SFT:
        ends = [log_likelihood(run.loaded, example.prompt, example.response) for run in (done, again)]
        assert ends[0] == pytest.approx(ends[1], abs=1e-3)


def test_adapters_sit_in_the_upper_layers_alone_if_so_asked(
    base: LoadedModel, tiny_model: Path, tmp_path: Path
) -> None:
    assert {name.split(".")[2] for name in linear_layers(base.model, 0.5)} == {"1"}
    assert {name.split(".")[2] for name in linear_layers(base.model, 1.0)} == {"0", "1"}
    assert len(linear_layers(base.model, 1.0)) == 14, "seven in each of two layers, and not the output projection"
    trained = sft(tiny_model, tmp_path / "work", lora=LoraSettings(rank=8, alpha=16, top_layers=0.5)).loaded.model
    before, after = dict(base.model.named_parameters()), dict(trained.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{name}.weight" for name in linear_layers(base.model, 0.5)}


def test_a_single_step_is_not_spent_on_warming_up(tiny_model: Path, tmp_path: Path, base: LoadedModel) -> None:
    settings = DpoSettings(learning_rate=1e-3, epochs=1, **COMMON | {"batch_size": 16, "micro_batch_size": 4})
    result = train_dpo(job(tiny_model, tmp_path / "work"), PAIRS[:3], settings)
    assert log_likelihood(result.loaded, PAIRS[0].prompt, PAIRS[0].chosen) != log_likelihood(
        base, PAIRS[0].prompt, PAIRS[0].chosen
    )


def test_training_on_nothing_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(EmptyDataError, match="no preference pairs to train on"):
        dpo(tiny_model, tmp_path / "work", "lora", [])


RANKED = [
    RankedExample(f"question {n}", ("a" * 150, "m" * 150, "z" * 150), (0, 1, 2), (5.0, 3.0, None)) for n in range(6)
]


def test_ranking_raises_the_expected_score_of_the_reply_that_people_prefer(tiny_model: Path, tmp_path: Path) -> None:
    settings = EftSettings(
        method="full", learning_rate=5e-3, epochs=20, comparisons_per_prompt=1, **(COMMON | {"max_length": 1024})
    )
    run = train_ranking(job(tiny_model, tmp_path / "work"), RANKED, settings, "short")
    assert run.n_examples == 2 * len(RANKED), "each prompt's ranking, and one comparison"
    item = encode_ranked(run.loaded.tokenizer, RANKED[0], "short", 1024)
    with torch.inference_mode():
        logits = last_token_logits(run.loaded.model, item.sequences, 0).float()
    masses = logits.log_softmax(-1).gather(-1, torch.tensor(item.options)).exp()
    expected = (masses @ torch.arange(6.0)) / masses.sum(-1)
    assert expected[0] > expected[1:].max() + 0.3, "clearly the best, where an untrained model sees no difference"
    assert float(masses[:2].sum(-1).min()) > 0.5, "where there is a human score, probability is drawn to the scores"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_retention_keeps_replies_as_they_were_while_judging_is_learned(
    tiny_model: Path, tmp_path: Path, method: str
) -> None:
    kept = [SftExample(f"question {n}", "a word and another " * 3) for n in range(4)]
    tokenizer = load_model(tiny_model, ModelSettings(dtype="float32")).tokenizer
    replies = draw_retained(tokenizer, kept, 1, 512, 0)[0]
    strayed = {}
    for weight in (0.0, 30.0):
        settings = EftSettings(
            method=method, learning_rate=5e-3, epochs=8, retention=weight, **(COMMON | {"max_length": 1024})
        )
        run = train_ranking(job(tiny_model, tmp_path / f"{weight}"), RANKED, settings, "short", kept)
        base = load_model(tiny_model, ModelSettings(dtype="float32")).model
        strayed[weight] = divergence(run.loaded.model, base, replies, 0).item()
        assert (run.final(STRAYED) is not None) == bool(weight)
    assert 0 < strayed[30.0] < strayed[0.0] / 3


def test_replies_to_be_kept_come_in_turn(tiny_model: Path) -> None:
    tokenizer = load_model(tiny_model, ModelSettings(dtype="float32")).tokenizer
    kept = [SftExample("q", letter * 200) for letter in "abc"]
    drawn = draw_retained(tokenizer, kept, 4, 512, seed=1)
    assert [len(replies) for replies in drawn] == [4] * 4
    times = Counter(tuple(reply.tokens) for replies in drawn for reply in replies)
    assert sorted(times.values()) == [5, 5, 6]
    whole = encode_example(tokenizer, kept[0], 512)
    assert whole is not None
    of_first = next(
        reply for replies in drawn for reply in replies if reply.tokens == whole["input_ids"][: len(reply.tokens)]
    )
    assert len(of_first.tokens) - of_first.n_reply == whole["completion_mask"].index(1), "the prompt is there whole"
    assert of_first.n_reply < sum(whole["completion_mask"]), "and the reply's beginning"


def test_straying_is_the_mean_divergence_at_every_token_of_the_replies(tiny_model: Path) -> None:
    loaded = load_model(tiny_model, ModelSettings(dtype="float32"))
    other = load_model(tiny_model, ModelSettings(dtype="float32")).model
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    replies = [RetainedReply([5, 6, 7, 8, 9], 2), RetainedReply([5, 6, 7], 1), RetainedReply([9, 8, 7, 6, 5, 4], 4)]
    by_hand = []
    for reply in replies:
        ids = torch.tensor([reply.tokens])
        with torch.inference_mode():
            now, was = (network(input_ids=ids).logits[0].log_softmax(-1) for network in (other, loaded.model))
        by_hand += (was.exp() * (was - now)).sum(-1)[-reply.n_reply - 1 : -1].tolist()
    found = divergence(other, loaded.model, replies, 0)
    assert found.item() == pytest.approx(sum(by_hand) / 7, rel=1e-4)
    assert divergence(other, other, replies, 0).item() == pytest.approx(0, abs=1e-6)


def test_retention_without_a_reply_to_keep_is_refused(tiny_model: Path) -> None:
    tokenizer = load_model(tiny_model, ModelSettings(dtype="float32")).tokenizer
    with pytest.raises(EmptyDataError, match=r"none fits into eft\.max_length"):
        draw_retained(tokenizer, [SftExample("long " * 600, "x")], 1, 64, seed=1)
    with pytest.raises(EmptyDataError, match=r"eft\.retention needs data\.ift"):
        draw_retained(tokenizer, [], 1, 64, seed=1)


def test_the_ranking_loss_falls_with_the_right_order_and_rises_with_the_wrong_one() -> None:
    item = EncodedItem([[1], [2]], [list(range(6))] * 2, [0, 1], [None, None], [9, 9])

    def loss(better: float, worse: float) -> float:
        logits = torch.full((2, 6), -20.0)
        logits[0, int(better)], logits[1, int(worse)] = 0.0, 0.0
        return float(item_loss(logits, item, RankingWeights()))

    assert loss(5, 0) < loss(3, 2) < loss(2, 2) < loss(2, 3) < loss(0, 5)


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3)), min_size=2, max_size=5), min_size=1, max_size=6)
)
def test_balanced_weights_give_both_kinds_of_pairs_the_same_sum(groups: list[list[tuple[int, int]]]) -> None:
    examples = [
        RankedExample("q", tuple("x" * n for n, _ in group), tuple(rank for _, rank in group), (None,) * len(group))
        for group in groups
    ]
    weights = ranking_weights(examples, EftSettings(length_balance=True, score_weight=0.5))
    longer = shorter = 0
    for group in groups:
        for length, rank in group:
            for other_length, other in group:
                if rank < other:
                    longer, shorter = longer + (length > other_length), shorter + (length <= other_length)
    if longer and shorter:
        assert weights.better_longer * longer == pytest.approx(weights.better_shorter * shorter)
        assert weights.better_longer * longer + weights.better_shorter * shorter == pytest.approx(longer + shorter)
    else:
        assert weights == RankingWeights(score=0.5)
    assert ranking_weights(examples, EftSettings()) == RankingWeights()


def test_a_pair_counts_by_which_of_its_replies_is_longer() -> None:
    logits = torch.zeros(2, 6)
    plain = float(
        item_loss(logits, EncodedItem([[1]] * 2, [list(range(6))] * 2, [0, 1], [None] * 2, [9, 1]), RankingWeights())
    )
    for lengths, weight in (([9, 1], 3.0), ([1, 9], 0.5), ([9, 9], 0.5)):
        item = EncodedItem([[1]] * 2, [list(range(6))] * 2, [0, 1], [None] * 2, lengths)
        assert float(item_loss(logits, item, RankingWeights(3.0, 0.5))) == pytest.approx(weight * plain)


def test_scores_of_ranked_replies_weigh_as_the_settings_say_and_comparisons_always_count() -> None:
    logits = torch.zeros(2, 6)
    target = [[1.0, 0, 0, 0, 0, 0]] * 2
    ranked = EncodedItem([[1]] * 2, [list(range(6))] * 2, [0, 1], target, [9, 1])
    whole, half, none = (float(item_loss(logits, ranked, RankingWeights(score=w))) for w in (1.0, 0.5, 0.0))
    assert whole - half == pytest.approx(half - none)
    assert half > none
    compared = EncodedItem([[1]] * 2, [[0, 1]] * 2, [], [[1.0, 0.0], [0.0, 1.0]])
    assert float(item_loss(logits, compared, RankingWeights(score=0.0))) > 0


@pytest.mark.parametrize("score", [0.0, 0.4, 1.0, 2.5, 4.999, 5.0])
def test_the_target_distribution_has_the_score_as_its_mean(score: float) -> None:
    target = score_target(score)
    assert sum(target) == pytest.approx(1)
    assert min(target) >= 0
    assert sum(place * share for place, share in enumerate(target)) == pytest.approx(score)


def test_comparisons_come_in_both_orders_with_the_better_reply_as_target(base: LoadedModel) -> None:
    import numpy as np

    items = encode_comparisons(base.tokenizer, RANKED[0], 10, 1024, np.random.default_rng(1))
    assert len(items) == 3, "three ordered pairs of three replies"
    for item in items:
        first, second = (base.tokenizer.decode(sequence) for sequence in item.sequences)
        assert item.targets == [[1.0, 0.0], [0.0, 1.0]]
        a = first.split("<response A>")[1].split("</response A>")[0].strip()
        b = second.split("<response B>")[1].split("</response B>")[0].strip()
        assert a == b
    assert option_tokens(base.tokenizer, "x", COMPARISON_OPTIONS)[1] == items[0].options[0]


def test_a_long_ranked_reply_loses_its_end_and_rubric_question_and_score_stay(base: LoadedModel) -> None:
    long = RankedExample("the question", ("word " * 400, "short"), (0, 1), (4.0, 1.0))
    item = encode_ranked(base.tokenizer, long, "short", 700)
    cut, whole = (base.tokenizer.decode(sequence) for sequence in item.sequences)
    assert len(item.sequences[0]) <= 700
    assert cut.startswith(whole.split("short")[0])
    assert cut.endswith(SCORE_START)
    assert cut.count("word") > 20
    assert item.lengths == [2000, 5], "of the replies as people saw them"


@given(
    st.lists(st.text(max_size=150), min_size=2, max_size=2, unique=True),
    st.integers(600, 900),
)
@settings(max_examples=60)
def test_whatever_is_compared_fits_and_keeps_its_question(base: LoadedModel, replies: list[str], room: int) -> None:
    import numpy as np

    example = RankedExample("the question", (replies[0] * 3, replies[1]), (0, 1), (None, None))
    for item in encode_comparisons(base.tokenizer, example, 1, room, np.random.default_rng(1)):
        for sequence in item.sequences:
            text = base.tokenizer.decode(sequence)
            assert len(sequence) <= room
            assert "the question" in text
            assert text.endswith(COMPARISON_START)


def test_where_the_question_alone_is_too_long_the_score_is_still_asked_for(base: LoadedModel) -> None:
    item = encode_ranked(base.tokenizer, RankedExample("q " * 90, ("a", "b"), (0, 1), (4.0, 1.0)), "short", 100)
    assert [len(sequence) for sequence in item.sequences] == [100, 100]
    assert all(base.tokenizer.decode(sequence).endswith(SCORE_START) for sequence in item.sequences)
    assert len(item.options[0]) == len(SCORES)


def test_the_loss_of_a_batch_is_the_mean_over_its_items(base: LoadedModel, tmp_path: Path) -> None:
    from transformers import TrainingArguments

    items = [encode_ranked(base.tokenizer, example, "short", 1024) for example in RANKED[:2]]
    trainer = RankingTrainer(
        model=base.model,
        args=TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True, remove_unused_columns=False),
        train_dataset=items,
        pad_token_id=0,
        weights=RankingWeights(),
    )
    rows = [(item, ()) for item in items]
    losses = [trainer.compute_loss(base.model, {"rows": [row]}).item() for row in rows]
    assert trainer.compute_loss(base.model, {"rows": rows}).item() == pytest.approx(sum(losses) / 2, rel=1e-5)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 16), st.integers(0, 3))
def test_every_step_sees_its_examples_sorted_and_every_epoch_all(
    lengths: list[int], batch_size: int, epoch: int
) -> None:
    from srlm_pipeline.training.trainers import LengthSortedSampler

    sampler = LengthSortedSampler(lengths, batch_size, seed=5)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths)))
    assert order == list(sampler)
    unsorted = list(LengthSortedSampler([1] * len(lengths), batch_size, seed=5 + epoch))
    for start in range(0, len(order), batch_size):
        step = order[start : start + batch_size]
        assert sorted(step) == sorted(unsorted[start : start + batch_size])
        assert [lengths[i] for i in step] == sorted((lengths[i] for i in step), reverse=True)
