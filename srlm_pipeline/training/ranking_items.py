"""What the ranking objective is trained on: ranked replies as token ids, as the judge will see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from srlm_pipeline.config import EftSettings
from srlm_pipeline.data.chat import render_user_turn
from srlm_pipeline.judging.rubric import (
    COMPARISON_OPTIONS,
    COMPARISON_START,
    SCORE_START,
    SCORES,
    Rubric,
    comparison_prompt,
    judge_prompt,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RankedExample:
    """The replies to one prompt.

    Attributes:
        prompt: The user's instruction.
        replies: Texts.
        ranks: Human rank of each, 0 = best.
        scores: Human score of each in 0..5; None where there is none.
    """

    prompt: str
    replies: tuple[str, ...]
    ranks: tuple[int, ...]
    scores: tuple[float | None, ...]


@dataclass(frozen=True)
class EncodedItem:
    """One training item: sequences of one group whose next-token choices are trained together.

    Attributes:
        sequences: Token ids of each prefix.
        options: For each prefix the token ids of its options.
        ranks: Rank of each prefix within the group; empty for a comparison.
        targets: Desired distribution over the options for each prefix; None to leave it free.
        lengths: Of the judged reply of each prefix, in characters; empty for a comparison.
    """

    sequences: list[list[int]]
    options: list[list[int]]
    ranks: list[int]
    targets: list[list[float] | None]
    lengths: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class RankingWeights:
    """What the parts of the ranking stage's loss weigh.

    Attributes:
        better_longer: A pair whose better reply is the longer one.
        better_shorter: Any other pair.
        score: The cross-entropy to the scores of ranked replies.
        retention: The divergence, in nats per token, at replies that are to be kept.
    """

    better_longer: float = 1.0
    better_shorter: float = 1.0
    score: float = 1.0
    retention: float = 0.0


def encode_ranked(
    tokenizer: PreTrainedTokenizerBase, example: RankedExample, rubric: Rubric, max_length: int
) -> EncodedItem:
    """Encode every reply of a prompt as the distribution judge would see it, its end cut off where it is too long."""

    def render(reply: str) -> str:
        return render_user_turn(tokenizer, judge_prompt(rubric, example.prompt, reply, "direct"), SCORE_START)

    prefixes = [_fitting(tokenizer, render, [reply], max_length) for reply in example.replies]
    sequences, options = _encode(tokenizer, prefixes, SCORES, max_length)
    targets = [score_target(score) if score is not None else None for score in example.scores]
    return EncodedItem(sequences, options, list(example.ranks), targets, [len(reply) for reply in example.replies])


def ranking_weights(examples: Sequence[RankedExample], settings: EftSettings) -> RankingWeights:
    """Return the weights that the settings ask for.

    People prefer the longer of two replies three times out of four, and a small model learns that before anything
    else. Balanced, pairs won by the longer reply count as much in sum as those won by a shorter one, and the mean
    weight stays one; where either kind is missing there is nothing to balance.

    Args:
        examples: All that will be trained on.
        settings: `length_balance`, `score_weight` and `retention` are read.
    """
    won_by_longer = [
        len(example.replies[better]) > len(example.replies[worse])
        for example in examples
        for better, worse in ordered_pairs(example.ranks)
    ]
    share = sum(won_by_longer) / len(won_by_longer) if won_by_longer else 0.0
    balanced = settings.length_balance and 0 < share < 1
    longer, shorter = (0.5 / share, 0.5 / (1 - share)) if balanced else (1.0, 1.0)
    return RankingWeights(longer, shorter, settings.score_weight, settings.retention)


def ordered_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """Return the places (better, worse) of all pairs that people put in an order."""
    return [(a, b) for a, better in enumerate(ranks) for b, worse in enumerate(ranks) if better < worse]


def encode_comparisons(
    tokenizer: PreTrainedTokenizerBase,
    example: RankedExample,
    n_pairs: int,
    max_length: int,
    random: np.random.Generator,
) -> list[EncodedItem]:
    """Encode some ordered pairs of a prompt as the comparison arbiter would see them, each in both orders."""
    pairs = ordered_pairs(example.ranks)

    def render(first: str, second: str) -> str:
        return render_user_turn(tokenizer, comparison_prompt(example.prompt, first, second), COMPARISON_START)

    items: list[EncodedItem] = []
    for place in random.permutation(len(pairs))[:n_pairs]:
        better, worse = (example.replies[i] for i in pairs[place])
        orders = ((better, worse), (worse, better))
        prefixes = [_fitting(tokenizer, render, order, max_length) for order in orders]
        sequences, options = _encode(tokenizer, prefixes, COMPARISON_OPTIONS, max_length)
        items.append(EncodedItem(sequences, options, [], [[1.0, 0.0], [0.0, 1.0]]))
    return items


def score_target(score: float) -> list[float]:
    """Return a distribution over 0..5 whose mean is the score: its two neighbouring integers share the mass."""
    low = min(int(score), len(SCORES) - 2)
    target = [0.0] * len(SCORES)
    target[low], target[low + 1] = 1 - (score - low), score - low
    return target


def _fitting(
    tokenizer: PreTrainedTokenizerBase, render: Callable[..., str], replies: Sequence[str], max_length: int
) -> str:
    """Render replies; of what is too long so much of each beginning as fits, for rubric and question must stay."""

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    texts = list(replies)
    while (excess := len(tokens(render(*texts))) - max_length) > 0 and any(texts):
        encoded = [tokens(text) for text in texts]
        longest = max(range(len(texts)), key=lambda place: len(encoded[place]))
        # Half of it where there are several, so that the longest does not end up the shortest.
        kept = encoded[longest][: -max(1, excess // min(len(texts), 2))] if excess < len(encoded[longest]) else []
        # A character that was cut in two would come back as several tokens, and nothing would get shorter.
        texts[longest] = str(tokenizer.decode(kept)).rstrip("\ufffd")
    return render(*texts)


def _encode(
    tokenizer: PreTrainedTokenizerBase, prefixes: list[str], options: tuple[str, ...], max_length: int
) -> tuple[list[list[int]], list[list[int]]]:
    from srlm_pipeline.generation.transformers_engine import option_tokens

    split = [option_tokens(tokenizer, prefix, options) for prefix in prefixes]
    # Where even the question is too long, what is cut is the beginning: the score is asked for at the end.
    return [ids[-max_length:] for ids, _ in split], [tokens for _, tokens in split]
