"""Choosing what the next model learns from. This is the only place where a pair is chosen.

Candidates without a score and empty ones are left out throughout: a judgement that could not be read says nothing
about the reply. Among equals the lower sample number is taken, so that the result is reproducible.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from srlm_pipeline.checks.vital_signs import CUT_OFF
from srlm_pipeline.config import PairSettings
from srlm_pipeline.tables import PREFERENCE_PAIRS

Unfit = Literal["scored", "rejected"]


@dataclass(frozen=True)
class PairSelection:
    """Pairs, or positive examples, and what became of the other prompts.

    Attributes:
        pairs: Table `PREFERENCE_PAIRS`.
        n_prompts: Prompts that had candidates.
        n_ties: Prompts whose chosen and rejected scores differ by no more than the margin.
        n_too_few_valid: Prompts with fewer distinct candidates that have a score than are needed: two for a pair,
            one for a positive example.
        n_too_low: Prompts none of whose candidates was good enough for a positive example.
        n_unfit: Prompts none of whose candidates may be chosen, something being wrong with each at first sight.
        n_failed: Prompts whose checks no candidate passes that is liked as well.
    """

    pairs: pd.DataFrame
    n_prompts: int
    n_ties: int
    n_too_few_valid: int
    n_too_low: int = 0
    n_unfit: int = 0
    n_failed: int = 0

    @property
    def tie_rate(self) -> float:
        """Ties as a share of prompts that had a candidate to be chosen and one to be rejected."""
        comparable = self.n_prompts - self.n_too_few_valid - self.n_unfit - self.n_failed
        return self.n_ties / comparable if comparable else 0.0


def select(scored: pd.DataFrame, settings: PairSettings) -> PairSelection:
    """Choose as the settings ask for.

    Args:
        scored: Table `JUDGED_SCORES`.
        settings: Strategy, margin, length control, what becomes of unfit replies, least score.
    """
    if settings.strategy == "positive_only":
        return select_positives(scored, settings.min_score, settings.unfit)
    return select_best_worst(scored, settings.min_margin, settings.length_control, settings.unfit)


def select_best_worst(
    scored: pd.DataFrame, min_margin: float = 0.0, length_control: float = 0.0, unfit: Unfit = "scored"
) -> PairSelection:
    """Pair each prompt's best candidate with its worst (paper section 2.3).

    With length control (Meta-Rewarding, Wu et al. 2024, section 2.2) candidates whose scores are close to the best
    count as best too, and the shortest of them is chosen; likewise the longest of those close to the worst is rejected.

    A judge can come to like replies that go in circles. Where unfit replies are rejected, only a fit one is chosen, and
    an unfit one is rejected wherever there is one, whatever the scores say. One that only the token limit cut off is
    not chosen either, but rejected for its score alone: a pair whose one fault is its length teaches to say less.

    Where programs judged along, both have to agree: chosen is a reply that passes all checks of its prompt and is liked
    by the other judges, rejected is one that fails or is disliked. Liked means scored no lower than the prompt's median
    (programs and judges together were found to beat either: RLCF, arXiv 2507.18624; AutoIF, arXiv 2406.13542).

    Args:
        scored: Table `JUDGED_SCORES`.
        min_margin: Differences between chosen and rejected up to this much are ties and dropped; 0 drops equal scores
            only.
        length_control: What is close, as a share of the distance between best and worst, in [0, 0.5).
        unfit: Whether replies with signs are scored like any other, or rejected.
    """
    rows: list[dict[str, object]] = []
    n_ties = n_too_few = n_unfit = n_failed = 0
    for usable in _usable_by_prompt(scored):
        if len(usable) < 2:
            n_too_few += 1
            continue
        wrong = (usable["signs"] != "") & (unfit == "rejected")
        faulty = wrong & (usable["signs"] != CUT_OFF)
        fit, worse = usable[~wrong], usable[faulty] if faulty.any() else usable
        if fit.empty:
            n_unfit += 1
            continue
        if usable["passed"].notna().any():
            good = (usable["passed"] == 1) & (usable["opinion"] >= usable["opinion"].median())
            fit, worse = fit[good[fit.index]], worse[(~good | faulty)[worse.index]]
            if fit.empty or worse.empty:
                n_failed += 1
                continue
        reach = length_control * (usable["score"].max() - usable["score"].min())
        chosen = _nearest(fit, fit["score"] >= fit["score"].max() - reach, length_control, shortest=True)
        rejected = _nearest(worse, worse["score"] <= worse["score"].min() + reach, length_control, shortest=False)
        margin = float(chosen["score"] - rejected["score"])
        if margin <= min_margin and not faulty.any():
            n_ties += 1
            continue
        rows.append(
            {
                **_chosen(chosen, "best_worst"),
                "length_control": length_control,
                "min_margin": min_margin,
                "rejected_sample": rejected["sample"],
                "rejected": rejected["completion"],
                "rejected_finish_reason": rejected["finish_reason"],
                "rejected_score": rejected["score"],
                "margin": margin,
                "rejected_passed": rejected["passed"],
                "rejected_for": rejected["signs"] if faulty.any() else "",
                "rejected_token_ids": rejected.get("token_ids"),
            }
        )
    return PairSelection(
        _table(rows), int(scored["prompt_id"].nunique()), n_ties, n_too_few, n_unfit=n_unfit, n_failed=n_failed
    )


def select_positives(scored: pd.DataFrame, min_score: float, unfit: Unfit = "scored") -> PairSelection:
    """Take every reply that is good enough, and nothing to prefer it to (paper section 2.4, positive examples only).

    Replies that the token limit cut off, or that fail a check, are no examples of a perfect reply, whatever they score.

    Args:
        scored: Table `JUDGED_SCORES`.
        min_score: The paper's is a perfect 5.
        unfit: Whether replies with signs may be good enough.
    """
    rows: list[dict[str, object]] = []
    n_too_few = n_too_low = 0
    for usable in _usable_by_prompt(scored):
        # Whatever was not checked may be good enough.
        allowed = ((usable["signs"] == "") | (unfit == "scored")) & ~(usable["passed"] < 1)
        good = usable[(usable["score"] >= min_score) & (usable["finish_reason"] == "stop") & allowed]
        n_too_few += usable.empty
        n_too_low += good.empty and not usable.empty
        rows += [
            {**_chosen(reply, "positive_only"), "length_control": 0.0, "min_margin": 0.0, "rejected_for": ""}
            for _, reply in good.iterrows()
        ]
    return PairSelection(_table(rows), int(scored["prompt_id"].nunique()), 0, n_too_few, n_too_low)


def _nearest(replies: pd.DataFrame, near: pd.Series, length_control: float, shortest: bool) -> pd.Series:
    """Return the first of the best, or of the worst; under length control the shortest, or the longest."""
    # Without control the lengths of equals do not matter: the first of them is taken.
    lengths = replies["completion"].str.len() if length_control else replies["score"] * 0
    return replies.loc[lengths[near].idxmin() if shortest else lengths[near].idxmax()]


def _usable_by_prompt(scored: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield each prompt's distinct candidates that have a score and a text, by sample number."""
    ordered = scored.sort_values(["prompt_id", "sample"], ignore_index=True)
    for _, group in ordered.groupby("prompt_id", sort=True):
        yield group[group["score"].notna() & (group["completion"].str.strip() != "")].drop_duplicates("completion")


def _chosen(reply: pd.Series, strategy: str) -> dict[str, object]:
    return {
        "prompt_id": reply["prompt_id"],
        "prompt": reply["prompt"],
        "strategy": strategy,
        "chosen_sample": reply["sample"],
        "chosen": reply["completion"],
        "chosen_finish_reason": reply["finish_reason"],
        "chosen_score": reply["score"],
        "chosen_passed": reply["passed"],
        "judge": reply["judge"],
        "chosen_token_ids": reply.get("token_ids"),
    }


def _table(rows: list[dict[str, object]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(PREFERENCE_PAIRS.columns))
    numbers = ("rejected_score", "margin", "chosen_passed", "rejected_passed")
    return table.astype({"rejected_sample": "Int64", **dict.fromkeys(numbers, float)})
