"""Choosing preference pairs from judged candidates. This is the only place where a pair is chosen."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from srlm_pipeline.tables import PREFERENCE_PAIRS


@dataclass(frozen=True)
class PairSelection:
    """Pairs and what became of the other prompts.

    Attributes:
        pairs: Table `PREFERENCE_PAIRS`.
        n_prompts: Prompts that had candidates.
        n_ties: Prompts whose best and worst scores differ by no more than the margin.
        n_too_few_valid: Prompts with fewer than two distinct candidates that have a score.
    """

    pairs: pd.DataFrame
    n_prompts: int
    n_ties: int
    n_too_few_valid: int

    @property
    def tie_rate(self) -> float:
        """Ties as a share of prompts with at least two scored candidates."""
        comparable = self.n_prompts - self.n_too_few_valid
        return self.n_ties / comparable if comparable else 0.0


def select_best_worst(scored: pd.DataFrame, min_margin: float = 0.0) -> PairSelection:
    """Pair each prompt's best candidate with its worst (paper section 2.3).

    Candidates without a score and empty ones are left out: a judgement that could not be read says nothing
    about the reply. Among equal scores the lower sample number is taken, so that the result is reproducible.

    Args:
        scored: Table `JUDGED_SCORES`.
        min_margin: Differences up to this much are ties and dropped; 0 drops equal scores only.
    """
    rows: list[dict[str, object]] = []
    n_ties = n_too_few = 0
    ordered = scored.sort_values(["prompt_id", "sample"], ignore_index=True)
    for prompt_id, group in ordered.groupby("prompt_id", sort=True):
        usable = group[group["score"].notna() & (group["completion"].str.strip() != "")]
        usable = usable.drop_duplicates("completion")
        if len(usable) < 2:
            n_too_few += 1
            continue
        best = usable.loc[usable["score"].idxmax()]
        worst = usable.loc[usable["score"].idxmin()]
        margin = float(best["score"] - worst["score"])
        if margin <= min_margin:
            n_ties += 1
            continue
        rows.append(
            {
                "prompt_id": prompt_id,
                "prompt": best["prompt"],
                "chosen": best["completion"],
                "rejected": worst["completion"],
                "chosen_finish_reason": best["finish_reason"],
                "rejected_finish_reason": worst["finish_reason"],
                "chosen_score": best["score"],
                "rejected_score": worst["score"],
                "margin": margin,
                "judge": best["judge"],
            }
        )
    pairs = pd.DataFrame(rows, columns=list(PREFERENCE_PAIRS.columns))
    return PairSelection(pairs, int(scored["prompt_id"].nunique()), n_ties, n_too_few)
