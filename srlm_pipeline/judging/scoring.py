"""Scores of a policy's candidates (paper section 2.3, step 3)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.judging.judges import Judge, JudgeItem
from srlm_pipeline.judging.parser import Form, read_score
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


def score_forms(raw: Iterable[str]) -> dict[Form, float]:
    """Return in which forms scores are written: the share of each among written judgements, the most frequent first.

    Judgements that are read from probabilities are written in none. One that was cut off counts by what it says.

    Args:
        raw: As table `JUDGED_SCORES` keeps what judges said.
    """
    forms = Counter(read_score(text).form for said in raw for text in _written(json.loads(said)))
    return {form: count / forms.total() for form, count in forms.most_common()}


def _written(said: Any) -> Iterator[str]:
    """Return the judgements in words: a list of texts, or of a panel's members with such lists."""
    for entry in said if isinstance(said, list) else ():
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict) and isinstance(entry.get("raw"), str):
            yield from _written(json.loads(entry["raw"]))
