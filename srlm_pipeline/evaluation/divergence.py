"""How far a model has moved from the seed model, measured on what it says itself.

For texts y drawn from a policy, log policy(y) - log seed(y) is on average the Kullback-Leibler divergence of the policy
from the seed. Greedy replies are not drawn: on them it says how much more probable the policy finds what it says than
the seed does. Either way it is near 0 for the seed itself and grows without bound as the two part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from srlm_pipeline.acceleration.allocation import trim_freed_memory
from srlm_pipeline.data.chat import tokenize_exchange
from srlm_pipeline.generation.prefill import left_pad
from srlm_pipeline.models.loading import LoadedModel
from srlm_pipeline.progress import ProgressReporter


@dataclass(frozen=True)
class ReplyLogProbabilities:
    """How probable a model finds replies.

    Attributes:
        sums: Natural logarithm of each reply's probability, shape (replies,).
        n_tokens: Of each reply, the end token included where the reply came to its end; same shape.
    """

    sums: NDArray[np.float64]
    n_tokens: NDArray[np.int64]


@dataclass(frozen=True)
class Divergence:
    """Estimated divergence of a policy from the seed model.

    Attributes:
        nats_per_token: Summed log-ratio divided by the number of tokens.
        standard_error: Over replies; None for a single one.
        n_tokens: Of all replies.
    """

    nats_per_token: float
    standard_error: float | None
    n_tokens: int


def reply_log_probabilities(
    loaded: LoadedModel,
    replies: pd.DataFrame,
    batch_size: int,
    progress: ProgressReporter,
    description: str = "measuring the distance from M1",
) -> ReplyLogProbabilities:
    """Return how probable a model finds replies. One model at a time needs to be in memory.

    Args:
        loaded: The model.
        replies: `prompt`, `reply` and `finish_reason` of table `REPLIES`, written by whomever.
        batch_size: Replies that are read together.
        progress: Where progress is shown.
        description: Shown with the progress.
    """
    import torch

    exchanges = [
        tokenize_exchange(loaded.tokenizer, row.prompt, row.reply, row.finish_reason == "stop")
        for row in replies.itertuples()
    ]
    sums = np.zeros(len(exchanges))
    # Alike lengths together: less padding.
    order = sorted((i for i, (_, reply) in enumerate(exchanges) if reply), key=lambda i: -sum(map(len, exchanges[i])))
    with torch.inference_mode(), progress.task(description, len(order), "replies") as task:
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            sums[places] = _batch_sums(loaded, [exchanges[i] for i in places])
            task.advance(len(places))
            trim_freed_memory()
    return ReplyLogProbabilities(sums, np.array([len(reply) for _, reply in exchanges], dtype=np.int64))


def _batch_sums(loaded: LoadedModel, exchanges: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    import torch

    model, device = loaded.model, loaded.model.device
    ids, mask, positions = left_pad(
        [prompt + reply for prompt, reply in exchanges], int(loaded.tokenizer.pad_token_id or 0), device
    )
    # The logits that predict a reply stand one place before it. An index, not a number: see `last_position_only`.
    longest, width = max(len(reply) for _, reply in exchanges), ids.shape[1]
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=torch.arange(width - longest - 1, width - 1, device=device),
    ).logits
    sums = []
    for row, (_, reply) in enumerate(exchanges):
        # Row by row: in float32 the logits of a whole batch may be larger than the model.
        own = logits[row, -len(reply) :].float()
        chosen = own.gather(-1, ids[row, -len(reply) :, None]).squeeze(-1)
        sums.append(float((chosen - own.logsumexp(-1)).double().sum()))
    return sums


def divergence(policy: ReplyLogProbabilities, seed: ReplyLogProbabilities) -> Divergence | None:
    """Estimate how far a policy has moved, from what both models make of the policy's own replies.

    The standard error is that of a ratio of means (Cochran 1977, section 6): tokens of one reply are not independent.

    Args:
        policy: Of the policy's replies under the policy.
        seed: Of the same replies under the seed model.

    Returns:
        None if there are no tokens.

    Raises:
        ValueError: If the replies are not the same, or the two models' tokenizers differ.
    """
    if not np.array_equal(policy.n_tokens, seed.n_tokens):
        raise ValueError("the two models do not see the same replies as the same number of tokens")
    total = int(policy.n_tokens.sum())
    if not total:
        return None
    ratios = policy.sums - seed.sums
    per_token = float(ratios.sum() / total)
    n = len(ratios)
    error = float(np.sqrt(((ratios - per_token * policy.n_tokens) ** 2).sum() * n / (n - 1)) / total) if n > 1 else None
    return Divergence(per_token, error, total)
