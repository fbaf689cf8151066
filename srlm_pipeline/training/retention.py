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

from srlm_pipeline.training.common import require_rows
from srlm_pipeline.training.sft import SftExample, encode_example

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RetainedReply:
    """A reply at which a model is to go on as it was.

    Attributes:
        tokens: Of prompt and reply.
        n_reply: How many of them, at the end, are the reply's.
    """

    tokens: list[int]
    n_reply: int


def draw_retained(
    tokenizer: PreTrainedTokenizerBase, replies: Sequence[SftExample], n: int, max_length: int, seed: int
) -> list[RetainedReply]:
    """Draw replies, each once before any comes again.

    Args:
        tokenizer: The model's.
        replies: To draw from.
        n: How many.
        max_length: Tokens of prompt and reply; longer replies are cut, longer prompts left out.
        seed: Of the draw.

    Raises:
        EmptyDataError: If there are none, or none that fits.
    """
    require_rows(replies, "instructions", "eft.retention needs data.ift")
    rows = [row for reply in replies if (row := encode_example(tokenizer, reply, max_length)) is not None]
    require_rows(rows, "instructions", f"none fits into eft.max_length ({max_length} tokens)")
    random = np.random.default_rng(seed)
    rounds = [random.permutation(len(rows)) for _ in range(-(-n // len(rows)))]
    places = [int(place) for places in rounds for place in places][:n]
    return [RetainedReply(rows[place]["input_ids"], sum(rows[place]["completion_mask"])) for place in places]


def divergence(model: Any, reference: Any, reply: RetainedReply) -> torch.Tensor:
    """Return how far a model has strayed from another one at a reply: the Kullback-Leibler divergence, in nats.

    The mean, over the reply's tokens, of KL(reference || model) of the distributions of the next token. Gradients flow
    through the model alone.

    Args:
        model: Causal LM that is trained.
        reference: Causal LM; None: the same with its adapters off.
        reply: At whose tokens.
    """
    import torch
    from torch.nn import functional

    ids = torch.tensor([reply.tokens], device=model.device)

    def log_probabilities(network: Any) -> torch.Tensor:
        # What follows the last token is no matter.
        logits = network(input_ids=ids, logits_to_keep=reply.n_reply + 1, use_cache=False).logits[0, :-1]
        return functional.log_softmax(logits.float(), dim=-1)

    with torch.no_grad():
        if reference is None:
            with model.disable_adapter():
                was = log_probabilities(model)
        else:
            was = log_probabilities(reference)
    now = log_probabilities(model)
    return functional.kl_div(now, was, reduction="batchmean", log_target=True)
