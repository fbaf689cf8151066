"""The distance from the seed model, on a model small enough to check every token."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from srlm_pipeline.config import ModelSettings
from srlm_pipeline.data.chat import tokenize_exchange
from srlm_pipeline.evaluation.divergence import ReplyLogProbabilities, divergence, reply_log_probabilities
from srlm_pipeline.generation.engine import GenerationRequest, Sampling
from srlm_pipeline.generation.transformers_engine import TransformersEngine
from srlm_pipeline.models.loading import LoadedModel, load_model
from srlm_pipeline.progress import NullProgress

CPU = ModelSettings(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def seed_model(tiny_model: Path, way: str) -> LoadedModel:
    return load_model(tiny_model, CPU)


def changed(folder: Path, strength: float) -> LoadedModel:
    """The tiny model with other likings among the letters; whole letters survive being decoded and encoded again."""
    import torch

    loaded = load_model(folder, CPU)
    torch.manual_seed(1)
    letters = loaded.tokenizer.convert_tokens_to_ids([*"abcdefghijklmnopqrstuvwxyz"])
    with torch.no_grad():
        loaded.model.lm_head.weight[letters, 0] += strength * torch.randn(len(letters))
    return loaded


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> LoadedModel:
    return changed(tiny_model, 0.3)


def written_by(loaded: LoadedModel, n: int = 24) -> pd.DataFrame:
    engine = TransformersEngine(loaded.model, loaded.tokenizer, "tiny", batch_size=8)
    prompts = [f"question number {i}" for i in range(n)]
    requests = [GenerationRequest(str(i), engine.render(p), seed=i) for i, p in enumerate(prompts)]
    done = engine.generate(requests, Sampling(temperature=1.0, top_p=1.0, max_new_tokens=24))
    return pd.DataFrame(
        {
            "prompt": prompts,
            "reply": [c.text for c in done],
            "n_tokens": [c.n_tokens for c in done],
            "finish_reason": [c.finish_reason for c in done],
        }
    )


def measured(loaded: LoadedModel, replies: pd.DataFrame, batch_size: int = 8) -> ReplyLogProbabilities:
    return reply_log_probabilities(loaded, replies, batch_size, NullProgress())


def test_a_model_has_no_distance_from_itself(seed_model: LoadedModel) -> None:
    replies = written_by(seed_model)
    found = divergence(measured(seed_model, replies), measured(seed_model, replies))
    assert found is not None
    assert found.nats_per_token == pytest.approx(0, abs=1e-9)
    assert found.standard_error == pytest.approx(0, abs=1e-9)


def test_a_changed_model_has_a_distance_that_grows_with_the_change(
    tiny_model: Path, seed_model: LoadedModel, policy: LoadedModel
) -> None:
    found = []
    for model in (changed(tiny_model, 0.1), policy):
        replies = written_by(model)
        found.append(divergence(measured(model, replies), measured(seed_model, replies)))
    near, far = found
    assert near is not None
    assert far is not None
    assert far.standard_error is not None
    assert far.nats_per_token > 5 * far.standard_error > 0
    assert 0 < near.nats_per_token < far.nats_per_token / 3


def test_the_estimate_agrees_with_the_distributions_themselves(seed_model: LoadedModel, policy: LoadedModel) -> None:
    """The divergence of the whole next-token distributions, averaged over the places that were visited."""
    import torch

    replies = written_by(policy, 60)
    estimate = divergence(measured(policy, replies), measured(seed_model, replies))
    exact = []
    for row in replies.itertuples():
        prompt, reply = tokenize_exchange(policy.tokenizer, row.prompt, row.reply, row.finish_reason == "stop")
        with torch.no_grad():
            own, first = (
                loaded.model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                for loaded in (policy, seed_model)
            )
        exact += (own.exp() * (own - first)).sum(-1).tolist()
    assert estimate is not None
    assert estimate.standard_error is not None
    assert estimate.nats_per_token == pytest.approx(np.mean(exact), abs=3 * estimate.standard_error)
    assert estimate.standard_error < 0.1 * estimate.nats_per_token


def test_sums_are_those_of_single_tokens(seed_model: LoadedModel) -> None:
    import torch

    replies = pd.DataFrame(
        {
            "prompt": ["how?", "a much longer question than the other one", "why?"],
            "reply": ["so so", "like this", ""],
            "finish_reason": ["stop", "length", "length"],
        }
    )
    found = measured(seed_model, replies, batch_size=2)
    expected = []
    for row in replies.itertuples():
        prompt, reply = tokenize_exchange(seed_model.tokenizer, row.prompt, row.reply, row.finish_reason == "stop")
        total = 0.0
        for place, token in enumerate(reply):
            with torch.no_grad():
                logits = seed_model.model(torch.tensor([prompt + reply[:place]])).logits[0, -1]
            total += float(logits.log_softmax(-1)[token])
        expected.append((total, len(reply)))
    assert found.sums == pytest.approx([total for total, _ in expected], abs=1e-4)
    assert found.n_tokens.tolist() == [n for _, n in expected] == [6, 9, 0]


def test_batches_do_not_matter(policy: LoadedModel) -> None:
    replies = written_by(policy, 9)
    one, other = measured(policy, replies, batch_size=1), measured(policy, replies, batch_size=9)
    assert one.sums == pytest.approx(other.sums, abs=1e-4)


def test_ratio_and_error_worked_by_hand() -> None:
    # Log-ratios 2 and 4 over 1 and 3 tokens: 6 / 4, residuals 0.5 and -0.5.
    policy = ReplyLogProbabilities(np.array([-1.0, -3.0]), np.array([1, 3]))
    seed = ReplyLogProbabilities(np.array([-3.0, -7.0]), np.array([1, 3]))
    found = divergence(policy, seed)
    assert found is not None
    assert (found.nats_per_token, found.n_tokens) == (1.5, 4)
    assert found.standard_error == pytest.approx(np.sqrt(2 * (0.25 + 0.25)) / 4)
    single = divergence(*(ReplyLogProbabilities(x.sums[:1], x.n_tokens[:1]) for x in (policy, seed)))
    assert single is not None
    assert (single.nats_per_token, single.standard_error) == (2.0, None)


def test_without_tokens_there_is_no_distance() -> None:
    empty = ReplyLogProbabilities(np.zeros(2), np.zeros(2, dtype=np.int64))
    assert divergence(empty, empty) is None


def test_other_tokens_are_refused() -> None:
    one = ReplyLogProbabilities(np.zeros(2), np.array([3, 4]))
    with pytest.raises(ValueError, match="same number of tokens"):
        divergence(one, replace(one, n_tokens=np.array([3, 5])))
