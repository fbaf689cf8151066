"""Scores of a policy's candidates (paper section 2.3, step 3)."""

from __future__ import annotations

import pandas as pd

from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.judging.judges import Judge, JudgeItem
from srlm_pipeline.progress import ProgressReporter
from srlm_pipeline.tables import JUDGED_SCORES


def score_candidates(
    judge: Judge, candidates: pd.DataFrame, progress: ProgressReporter, journal: Journal | None = None
) -> pd.DataFrame:
    """Return table `JUDGED_SCORES`.

    Args:
        judge: Who scores.
        candidates: Table `CANDIDATES`.
        progress: Where progress is shown.
        journal: Finished judgements.
    """
    items = [JudgeItem(f"{r.prompt_id}#{r.sample}", r.prompt, r.completion) for r in candidates.itertuples()]
    judgements = judge.judge(items, progress, journal)
    said = ("score", "n_valid", "n_invalid", "spread", "disagreement", "passed", "opinion", "raw")
    table = candidates.assign(judge=judge.name, **{name: [getattr(j, name) for j in judgements] for name in said})
    numbers = ("score", "spread", "disagreement", "passed", "opinion")
    # Candidates of earlier versions lack the tokens that were drawn.
    columns = [name for name in JUDGED_SCORES.columns if name in table]
    return table[columns].astype(dict.fromkeys(numbers, float))
