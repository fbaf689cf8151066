"""How well a judge's scores agree with human rankings (paper section 3.2, "reward modeling").

Judging is by group: the replies to one prompt, with human ranks (0 = best) and the judge's scores. A pair of replies
without two valid scores counts one half, like two equal ones: a judge that cannot be read has no opinion.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy import stats

from srlm_pipeline.evaluation.statistics import bootstrap_interval
from srlm_pipeline.judging.rubric import MAX_SCORE


@dataclass(frozen=True)
class JudgeAccuracy:
    """Agreement of one judge with human rankings; shares are in 0..1, None where nothing could be compared.

    Attributes:
        pairwise_accuracy: Share of human-ordered pairs that the judge orders the same way; equal and unreadable scores
            count half, so that a judge without an opinion reaches one half.
        pairwise_low: Lower end of the 95 % bootstrap interval, prompts resampled; None with fewer than two.
        pairwise_high: Its upper end.
        length_baseline: The same share for "the longer reply is better".
        length_balanced_accuracy: Mean of the accuracy over pairs whose better reply is the longer one and over
            pairs whose better reply is the shorter one; length alone reaches one half.
        accuracy_better_is_longer: The first of the two.
        accuracy_better_is_shorter: The second.
        five_best: Of the replies that were given a perfect 5 (after rounding), the share that humans ranked top.
        exact_match: Share of prompts whose whole order agrees.
        spearman: Mean rank correlation over prompts; 0 where all scores are equal.
        kendall: Mean Kendall tau-b over prompts; 0 where all scores are equal.
        parse_rate: Share of replies with a valid score.
        n_groups: Prompts.
        n_pairs: Compared pairs.
    """

    pairwise_accuracy: float | None
    pairwise_low: float | None
    pairwise_high: float | None
    length_baseline: float | None
    length_balanced_accuracy: float | None
    accuracy_better_is_longer: float | None
    accuracy_better_is_shorter: float | None
    five_best: float | None
    exact_match: float | None
    spearman: float | None
    kendall: float | None
    parse_rate: float
    n_groups: int
    n_pairs: int

    def metrics(self) -> dict[str, float]:
        """Return the figures that exist, by name."""
        return {name: float(value) for name, value in asdict(self).items() if value is not None}


def measure_judge(table: pd.DataFrame) -> JudgeAccuracy:
    """Compare scores with human ranks.

    Args:
        table: Table `JUDGE_ACCURACY` of one model: group_id, rank, n_characters, score (null where invalid).
    """
    agreement: list[list[float]] = []
    longer: list[float] = []
    shorter: list[float] = []
    length: list[float] = []
    exact: list[float] = []
    rho: list[float] = []
    tau: list[float] = []
    perfect: list[float] = []
    for _, group in table.groupby("group_id", sort=True):
        scored = group.dropna(subset=["score"])
        of_group: list[float] = []
        replies = list(zip(group["rank"], group["score"], group["n_characters"], strict=True))
        for (rank_a, score_a, length_a), (rank_b, score_b, length_b) in itertools.combinations(replies, 2):
            if rank_a == rank_b:
                continue
            sign = 1 if rank_a < rank_b else -1
            right = _agreement(sign * (score_a - score_b))
            of_group.append(right)
            longer_by = sign * (length_a - length_b)
            length.append(_agreement(longer_by))
            if longer_by > 0:
                longer.append(right)
            elif longer_by < 0:
                shorter.append(right)
        agreement.append(of_group)
        top = group["rank"].min()
        perfect += [float(rank == top) for rank, score, _ in replies if score >= MAX_SCORE - 0.5]
        if len(scored) >= 2 and scored["rank"].nunique() >= 2:
            ranks, scores = scored["rank"].to_numpy(), scored["score"].to_numpy()
            rho.append(_correlation(stats.spearmanr, -ranks, scores))
            tau.append(_correlation(stats.kendalltau, -ranks, scores))
        exact.append(float(len(scored) == len(group) and bool(of_group) and min(of_group) == 1.0))
    pairs = [right for of_group in agreement for right in of_group]
    groups = [np.asarray(g) for g in agreement if g]
    low, high = bootstrap_interval(groups) if len(groups) > 1 else (None, None)
    by_length = [m for m in (_mean(longer), _mean(shorter)) if m is not None]
    return JudgeAccuracy(
        pairwise_accuracy=_mean(pairs),
        pairwise_low=low,
        pairwise_high=high,
        length_baseline=_mean(length),
        length_balanced_accuracy=_mean(by_length) if len(by_length) == 2 else None,
        accuracy_better_is_longer=_mean(longer),
        accuracy_better_is_shorter=_mean(shorter),
        five_best=_mean(perfect),
        exact_match=_mean(exact),
        spearman=_mean(rho),
        kendall=_mean(tau),
        parse_rate=float(table["score"].notna().mean()) if len(table) else 0.0,
        n_groups=int(table["group_id"].nunique()),
        n_pairs=len(pairs),
    )


def agreement_by_prompt(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return for every prompt how its pairs of replies are ordered: 1 as humans do, 0 the other way, 0.5 equal.

    Two judges' figures can be compared prompt by prompt so; a pair without two valid scores counts as equal.

    Args:
        table: Table `JUDGE_ACCURACY` of one model.
    """
    found: dict[str, np.ndarray] = {}
    for group_id, group in table.groupby("group_id", sort=True):
        replies = zip(group["rank"], group["score"], strict=True)
        right = [
            _agreement(better[1] - worse[1])
            for better, worse in itertools.permutations(replies, 2)
            if better[0] < worse[0]
        ]
        if right:
            found[str(group_id)] = np.array(right)
    return found


def _agreement(difference: float) -> float:
    return 1.0 if difference > 0 else 0.0 if difference < 0 else 0.5


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _correlation(measure: object, a: np.ndarray, b: np.ndarray) -> float:
    if len(set(b.tolist())) < 2:
        return 0.0
    return float(measure(a, b).statistic)  # type: ignore[operator]
