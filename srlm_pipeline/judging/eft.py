"""Building evaluation fine-tuning data: which judgements a model is taught to write (paper section 3.1.1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from srlm_pipeline.judging.judges import Judgement
from srlm_pipeline.judging.parser import parse_score
from srlm_pipeline.judging.rubric import SCORE_START
from srlm_pipeline.tables import EFT


@dataclass(frozen=True)
class EftData:
    """Judging data and what was left out.

    Attributes:
        table: Table `EFT`.
        n_groups: Prompts looked at.
        n_kept: Prompts with judgements in the table.
        dropped: Prompts left out, by reason.
    """

    table: pd.DataFrame
    n_groups: int
    n_kept: int
    dropped: dict[str, int] = field(default_factory=dict)


def eft_from_dataset(ranked: pd.DataFrame) -> EftData:
    """Take scores and rationales as the data gives them; replies without them are kept for their ranks alone.

    Args:
        ranked: Training rows of table `RANKED_REPLIES`.
    """
    rows = ranked.assign(
        judgement=[
            judgement_text(r.rationale, r.score) if r.rationale and pd.notna(r.score) else None
            for r in ranked.itertuples()
        ]
    )
    n_groups = int(ranked["group_id"].nunique())
    return EftData(rows[list(EFT.columns)].reset_index(drop=True), n_groups, n_groups)


def eft_from_judgements(ranked: pd.DataFrame, judgements: Sequence[Judgement]) -> EftData:
    """Keep a model's own judgements where their order agrees with the human one (paper section 3.1.1).

    Of a reply's sampled judgements the one nearest to their mean stands for it. A prompt is kept if every reply has
    a valid score and every human-ordered pair is scored in that order, strictly.

    Args:
        ranked: Training rows of table `RANKED_REPLIES`.
        judgements: One per row, sampled mode, same order.
    """
    rows = ranked.assign(
        score=[j.score for j in judgements], judgement=[_representative(j) for j in judgements]
    ).reset_index(drop=True)
    kept: list[pd.DataFrame] = []
    dropped = {"no valid score": 0, "order differs from the human one": 0}
    for _, group in rows.groupby("group_id", sort=False):
        if group["score"].isna().any():
            dropped["no valid score"] += 1
        elif not _agrees(group):
            dropped["order differs from the human one"] += 1
        else:
            kept.append(group)
    table = pd.concat(kept, ignore_index=True) if kept else rows.iloc[:0]
    return EftData(table[list(EFT.columns)], int(rows["group_id"].nunique()), len(kept), dropped)


def judgement_text(rationale: str, score: float) -> str:
    """Return a judgement as the judge is to write it: the rationale, then the score on a line of its own."""
    return f"{rationale.strip()}\n{SCORE_START}{score:g}"


def _agrees(group: pd.DataFrame) -> bool:
    pairs = list(zip(group["rank"], group["score"], strict=True))
    return all(a_score > b_score for a_rank, a_score in pairs for b_rank, b_score in pairs if a_rank < b_rank)


def _representative(judgement: Judgement) -> str | None:
    if judgement.score is None:
        return None
    scored = [
        (abs(s - judgement.score), text) for text in json.loads(judgement.raw) if (s := parse_score(text)) is not None
    ]
    return min(scored, key=lambda pair: pair[0])[1].strip()
