"""Building evaluation fine-tuning data: which judgements a model is taught to write (paper section 3.1.1)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from srlm_pipeline.errors import EmptyDataError
from srlm_pipeline.judging.judges import Judgement
from srlm_pipeline.judging.parser import parse_score
from srlm_pipeline.judging.rubric import MAX_SCORE, SCORE_START
from srlm_pipeline.tables import EFT


@dataclass(frozen=True)
class EftData:
    """Judging data and what was left out.

    Attributes:
        table: Table `EFT`.
        n_groups: Prompts looked at.
        n_kept: Prompts in the table.
        dropped: Prompts left out, by reason.
        n_thinned: Judgement texts left out because too many state the same score.
        n_mismatched: Replies that were written for another prompt.
        n_corrupted: Copies of replies that were made worse.
    """

    table: pd.DataFrame
    n_groups: int
    n_kept: int
    dropped: dict[str, int] = field(default_factory=dict)
    n_thinned: int = 0
    n_mismatched: int = 0
    n_corrupted: int = 0


def eft_from_dataset(ranked: pd.DataFrame) -> EftData:
    """Take scores and rationales as the data gives them; replies without them are kept for their ranks alone.

    Args:
        ranked: Training rows of table `RANKED_REPLIES`.
    """
    rows = ranked.assign(
        judgement=[
            judgement_text(r.rationale, r.score)
            if pd.notna(r.rationale) and r.rationale.strip() and pd.notna(r.score)
            else None
            for r in ranked.itertuples()
        ]
    )
    n_groups = int(ranked["group_id"].nunique())
    return EftData(rows[list(EFT.columns)].reset_index(drop=True), n_groups, n_groups)


def eft_from_ranks(ranked: pd.DataFrame) -> EftData:
    """Give every reply the score that its place in the human order is worth, and no rationale (not in the paper).

    A prompt's places share the range from 5 for the best to 1 for the worst evenly: what was written in good faith is
    seldom beside the point, which 0 is for.

    Args:
        ranked: Training rows of table `RANKED_REPLIES`.
    """
    place = ranked.groupby("group_id")["rank"].rank(method="dense") - 1
    last = place.groupby(ranked["group_id"]).transform("max").clip(lower=1)
    rows = ranked.assign(score=MAX_SCORE - (MAX_SCORE - _WORST_RANKED) * place / last, judgement=None)
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


def thin(data: EftData, max_share: float, seed: int) -> EftData:
    """Drop judgement texts that state the most frequent score, so that a model does not learn to say it always.

    The paper (section 3.1.1) discards part of what receives the most common score, a 4, without saying how much. A
    reply whose text is dropped keeps its score and rank.

    Args:
        data: Judging data.
        max_share: Of one score among all judgement texts.
        seed: Of the choice.
    """
    stated = data.table["judgement"].dropna().map(lambda text: round(parse_score(text) or 0.0))
    if stated.nunique() < 2:
        return data
    score, count = Counter(stated).most_common(1)[0]
    excess = count - int(max_share / (1 - max_share) * (len(stated) - count))
    if excess <= 0:
        return data
    drawn = np.random.default_rng(seed).choice(stated.index[stated == score].to_numpy(), excess, replace=False)
    table = data.table.copy()
    table.loc[drawn, "judgement"] = None
    return replace(data, table=table, n_thinned=excess)


def require_enough(data: EftData, min_prompts: int) -> None:
    """Refuse to train a judge on the few judgements that a model which cannot judge gets right by chance.

    Raises:
        EmptyDataError: With counts, and what to do.
    """
    if data.n_kept < min_prompts:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in data.dropped.items())
        raise EmptyDataError(
            f"of {data.n_groups} prompts with ranked replies the SFT baseline judged {data.n_kept} as people did "
            f"({reasons}); eft.min_prompts asks for {min_prompts}. A model that cannot judge yet can learn it from the "
            "human order directly: set eft.targets to ranks and eft.ranking to true, or lower eft.min_prompts"
        )


def judgement_text(rationale: str, score: float) -> str:
    """Return a judgement as the judge is to write it: the rationale, then the score on a line of its own."""
    return f"{rationale.strip()}\n{SCORE_START}{score:g}"


_WORST_RANKED = 1.0


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
