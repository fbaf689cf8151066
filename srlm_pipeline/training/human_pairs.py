"""Preference pairs from human rankings: what people said, where the loop has its own judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from srlm_pipeline.training.dpo import PreferenceExample
from srlm_pipeline.training.ranking_items import ordered_pairs


def all_ordered_pairs(ranked: pd.DataFrame) -> list[PreferenceExample]:
    """Return every pair of replies to one prompt that people put in an order, as reward models are trained on.

    Ouyang et al. 2022 (arXiv 2203.02155), section 3.5: all comparisons among the replies to a prompt.

    Args:
        ranked: Rows of table `RANKED_REPLIES`; equal ranks are no pair.
    """
    return _pairs(ranked, ordered_pairs)


def best_worst_pairs(ranked: pd.DataFrame) -> list[PreferenceExample]:
    """Return each prompt's best reply against its worst, as the loop pairs its own replies (paper section 2.3).

    Args:
        ranked: Rows of table `RANKED_REPLIES`; prompts whose replies all have one rank give no pair.
    """

    def extremes(ranks: Sequence[int]) -> list[tuple[int, int]]:
        best, worst = min(ranks), max(ranks)
        return [(ranks.index(best), ranks.index(worst))] if best < worst else []

    return _pairs(ranked, extremes)


def rehearsed_pairs(ranked: pd.DataFrame, n_own: int, share: float, seed: int) -> list[PreferenceExample]:
    """Draw human pairs to be mixed with a model's own, so that what people taught is not forgotten.

    The experience replay of DICE (Chen et al. 2024, arXiv 2406.09760), which mixes offline human pairs into every
    round.

    Args:
        ranked: Training rows of table `RANKED_REPLIES`.
        n_own: Pairs that the model made.
        share: Of all pairs together that are human ones, in [0, 1).
        seed: Of the draw.

    Returns:
        Different pairs in random order; all that there are where fewer than are needed.
    """
    pairs = best_worst_pairs(ranked)
    wanted = min(len(pairs), round(n_own * share / (1 - share)))
    drawn = np.random.default_rng(seed).permutation(len(pairs))[:wanted]
    return [pairs[place] for place in drawn]


def _pairs(ranked: pd.DataFrame, choose: Callable[[Sequence[int]], list[tuple[int, int]]]) -> list[PreferenceExample]:
    examples = []
    for _, group in ranked.groupby("group_id", sort=True):
        prompt, texts = str(group["prompt"].iloc[0]), group["text"].tolist()
        ranks = [int(rank) for rank in group["rank"]]
        examples += [PreferenceExample(prompt, texts[better], texts[worse]) for better, worse in choose(ranks)]
    return examples
