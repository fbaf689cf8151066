"""Keeping replies as they were while a model learns to judge.

The paper teaches judging and following instructions in one training (section 3.1.2), so that neither displaces the
other. The ranking objective sees no reply of the model's, and may change what it says at will. Held by the
Kullback-Leibler divergence from the model that training starts from, on the instruction data's replies, it may change
only what it says as a judge. This is Learning without Forgetting (Li and Hoiem 2016, arXiv 1606.09282) on token
distributions, with the judge's task as the new one; it is not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from srlm_pipeline.generation.prefill import left_pad
from srlm_pipeline.training.common import require_rows
from srlm_pipeline.training.sft import SftExample, encode_example

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


# Where a reply begins it is decided what it will be, and there a model strays first: of many replies the beginnings
# hold it better than a few to their end, at the same cost.
BEGINNING = 32
PER_ITEM = 4


@dataclass(frozen=True)
class RetainedReply:
    """The beginning of a reply at which a model is to go on as it was.

    Attributes:
        tokens: Of prompt and reply.
        n_reply: How many of them, at the end, are the reply's.
    """

    tokens: list[int]
    n_reply: int


def draw_retained(
    tokenizer: PreTrainedTokenizerBase, replies: Sequence[SftExample], n_items: int, max_length: int, seed: int
) -> list[list[RetainedReply]]:
    """Draw some replies for each item of a training, each reply once before any comes again.

    Args:
        tokenizer: The model's.
        replies: To draw from.
        n_items: Of the training.
        max_length: Tokens of prompt and reply; longer prompts are left out.
        seed: Of the draw.

    Raises:
        EmptyDataError: If there are none, or none that fits.
    """
    require_rows(replies, "instructions", "eft.retention needs data.ift")
    rows = [row for reply in replies if (row := encode_example(tokenizer, reply, max_length)) is not None]
    require_rows(rows, "instructions", f"none fits into eft.max_length ({max_length} tokens)")
    kept = [_beginning(row["input_ids"], sum(row["completion_mask"])) for row in rows]
    random, n = np.random.default_rng(seed), n_items * PER_ITEM
    rounds = [random.permutation(len(kept)) for _ in range(-(-n // len(kept)))]
    drawn = [kept[place] for places in rounds for place in places][:n]
    return [drawn[start : start + PER_ITEM] for start in range(0, n, PER_ITEM)]


def _beginning(tokens: list[int], n_reply: int) -> RetainedReply:
    kept = min(n_reply, BEGINNING)
    return RetainedReply(tokens[: len(tokens) - n_reply + kept], kept)


def divergence(model: Any, reference: Any, replies: Sequence[RetainedReply], pad_token_id: int) -> torch.Tensor:
    """Return how far a model has strayed from another one at replies: the Kullback-Leibler divergence, in nats.

    The mean, over all tokens of the replies, of KL(reference || model) of the distributions of the next token.
    Gradients flow through the model alone.

    Args:
        model: Causal LM that is trained.
        reference: Causal LM; None: the same with its adapters off.
        replies: At whose tokens.
        pad_token_id: For left padding.
    """
    import torch
    from torch.nn import functional

    ids, mask, positions = left_pad([reply.tokens for reply in replies], pad_token_id, model.device)
    n_reply = torch.tensor([reply.n_reply for reply in replies], device=ids.device)
    longest = int(n_reply.max())
    # What follows the last token is no matter; a shorter reply is the end of its row.
    learned = torch.arange(longest, 0, -1, device=ids.device) <= n_reply[:, None]

    def log_probabilities(network: Any) -> torch.Tensor:
        output = network(
            input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=longest + 1, use_cache=False
        )
        return functional.log_softmax(output.logits[:, :-1][learned].float(), dim=-1)

    with torch.no_grad():
        if reference is None:
            with model.disable_adapter():
                was = log_probabilities(model)
        else:
            was = log_probabilities(reference)
    return functional.kl_div(log_probabilities(model), was, reduction="batchmean", log_target=True)
