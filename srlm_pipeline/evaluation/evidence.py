"""What speaks for and against a new model, gathered from an iteration's tables. No model is loaded."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from srlm_pipeline.evaluation.head_to_head import HeadToHead
from srlm_pipeline.evaluation.judge_accuracy import agreement_by_prompt
from srlm_pipeline.evaluation.promotion import Difference, Evidence
from srlm_pipeline.evaluation.statistics import paired_difference, win_rate_interval
from srlm_pipeline.evaluation.verifiable.scoring import shares_followed
from srlm_pipeline.store import ProjectStore, iteration_of, model_name
from srlm_pipeline.tables import JUDGE_ACCURACY, read_table

# A two-sided interval of 90 % has the lower end of a one-sided one of 95 %.
_CONFIDENCE = 0.9


def least_win_rate(outcome: HeadToHead) -> float:
    """Return what a win rate is at least, with 95 % confidence: whether a model is better has only one side."""
    return win_rate_interval(outcome.wins, outcome.ties, outcome.losses, _CONFIDENCE)[0]


def failed_monitors(monitors: pd.DataFrame) -> tuple[str, ...]:
    """Return the names of the monitors that did not pass; what could not be measured is no proof of health.

    Args:
        monitors: Table `MONITORS`.
    """
    return tuple(monitors["name"][~monitors["passed"].fillna(False)])


def judgements_of(store: ProjectStore, model: str) -> pd.DataFrame:
    """Return a model's rows of table `JUDGE_ACCURACY`: of its iteration, or of the seed's evaluation.

    Raises:
        TableError: If it has not been measured.
    """
    made_by = iteration_of(model)
    asset = "seed_evaluation" if made_by is None else "judge_accuracy"
    table = read_table(JUDGE_ACCURACY, store.table_path(asset, made_by))
    return table[table["model"] == model]


def judge_difference(new: pd.DataFrame, champion: pd.DataFrame, resamples: int) -> Difference | None:
    """Compare two judges by the share of human-ordered pairs that they order right; None if there are no pairs.

    Args:
        new: Table `JUDGE_ACCURACY` of the new model.
        champion: The champion's, on the same replies.
        resamples: Of the bootstrap over prompts.
    """
    sides = [agreement_by_prompt(table) for table in (new, champion)]
    shared = [group for group in sides[0] if group in sides[1]]
    return _difference([[side[group] for group in shared] for side in sides], resamples) if shared else None


def verifiable_difference(table: pd.DataFrame, new: str, champion: str, resamples: int) -> Difference | None:
    """Compare two models by the share of checkable instructions that their replies follow; None if none are asked.

    Args:
        table: Table `VERIFIABLE` with both models.
        new: Name of the new model.
        champion: The champion's, or that of any other to compare with.
        resamples: Of the bootstrap over prompts.
    """
    if table.empty:
        return None
    sides = [shares_followed(table[table["model"] == model])[:, None] for model in (new, champion)]
    return _difference([list(side) for side in sides], resamples)


def gather_evidence(
    store: ProjectStore,
    iteration: int,
    champion: str,
    against_champion: HeadToHead,
    length_growth: float,
    judgements: pd.DataFrame,
    verifiable: pd.DataFrame,
    monitors: pd.DataFrame,
    resamples: int,
) -> Evidence:
    """Return what promotion looks at.

    Args:
        store: For the champion's judgements.
        iteration: Whose model is looked at.
        champion: Name of the model to be replaced.
        against_champion: Result of their match.
        length_growth: Mean reply length divided by the champion's.
        judgements: Table `JUDGE_ACCURACY` of the iteration.
        verifiable: Table `VERIFIABLE` of the iteration.
        monitors: Table `MONITORS` of the iteration.
        resamples: Of the bootstraps.
    """
    return Evidence(
        champion=champion,
        win_rate=against_champion.win_rate,
        low=least_win_rate(against_champion),
        length_controlled=against_champion.length_controlled,
        judge=judge_difference(judgements, judgements_of(store, champion), resamples),
        verifiable=verifiable_difference(verifiable, model_name(iteration + 1), champion, resamples),
        length_growth=length_growth,
        failed_monitors=failed_monitors(monitors),
    )


def _difference(sides: list[list[NDArray[np.float64]]], resamples: int) -> Difference:
    found = paired_difference(sides[0], sides[1], resamples)
    new, champion = (float(np.concatenate(side).mean()) for side in sides)
    return Difference(new, champion, found.low, found.high)
