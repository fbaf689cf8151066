"""Intervals and tests for what is measured by prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

DEFAULT_RESAMPLES = 2000


def bootstrap_interval(
    groups: Sequence[NDArray[np.float64]], resamples: int = DEFAULT_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean over all values, groups resampled.

    Values of one prompt are not independent of each other, so whole prompts are drawn.

    Args:
        groups: One array of values per prompt, none empty.
        resamples: Bootstrap samples.
        seed: Of the resampling.
    """
    sums = np.array([g.sum() for g in groups], dtype=float)
    counts = np.array([len(g) for g in groups], dtype=float)
    drawn = np.random.default_rng(seed).integers(0, len(groups), (resamples, len(groups)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p-value that wins and losses are equally likely; ties left out."""
    decided = wins + losses
    return float(stats.binomtest(wins, decided).pvalue) if decided else 1.0
