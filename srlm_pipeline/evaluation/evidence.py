"""What speaks for and against a new model, gathered from assessments and matches. No model is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd

from srlm_pipeline.config import PromotionSettings
from srlm_pipeline.evaluation.assessment import Assessment
from srlm_pipeline.evaluation.matches import length_ratio
from srlm_pipeline.evaluation.measures import change, why_not_compared
from srlm_pipeline.evaluation.opponents import ROLE_NAMES, Role
from srlm_pipeline.evaluation.promotion import CONFIDENCE, Compared, Opinion, asked_measures, sure_confidence
from srlm_pipeline.evaluation.statistics import win_rate_interval


def compare_all(
    new: Assessment,
    others: Mapping[Role, Assessment],
    settings: PromotionSettings,
    resamples: int,
    trained: Collection[str] = (),
) -> list[Compared]:
    """Compare a new model with those that it must not be worse than, by every measure that has a margin.

    Args:
        new: The new model.
        others: By role; a model that is two of them is compared once.
        settings: `against` and `margins` are read.
        resamples: Of the bootstraps.
        trained: Names of measures in which a gain is not asked for, because the loop trains on them.
    """
    roles: list[Role] = ["champion", *settings.against]
    named = {others[role].model: others[role] for role in roles}
    found = []
    for measure in asked_measures(settings):
        for name, other in named.items():
            in_words = ", ".join(ROLE_NAMES[role] for role in roles if others[role].model == name)
            untold = why_not_compared(other, new, measure, resamples)
            # Over one that does no better than chance a gain is one all the same, if it is above chance.
            counts = not untold or (measure.chance is not None and not why_not_compared(new, other, measure, resamples))
            # A gain is asked for over the champion alone.
            asked_gain = counts and other is others["champion"] and measure.name not in trained
            gain = change(new, other, measure, sure_confidence(settings), resamples) if asked_gain else None
            found.append(
                Compared(
                    measure,
                    name,
                    in_words,
                    change(new, other, measure, CONFIDENCE, resamples),
                    gain.least if gain else None,
                    untold,
                )
            )
    return found


def length_growth(new: Assessment, others: Mapping[Role, Assessment]) -> float:
    """Return a model's mean reply length divided by the longest among others', told on the evaluation prompts.

    Args:
        new: The model.
        others: By role.
    """
    mine = new.evaluation_replies()
    return min(length_ratio(mine, other.evaluation_replies()) for other in others.values())


def opinion(
    counts: tuple[int, int, int],
    settings: PromotionSettings,
    length_controlled: float | None = None,
    agrees: float | None = None,
) -> Opinion | None:
    """Return what arbiters or readers say of a new model; None if they said nothing.

    Args:
        counts: Wins, ties and losses.
        settings: `margins` tell how many measures are asked beside.
        length_controlled: Win rate, had the replies the same length.
        agrees: How often arbiters agree with human preferences.
    """
    wins, ties, losses = counts
    n = wins + ties + losses
    if not n:
        return None
    low, sure_low = (least_win_rate(*counts, confidence) for confidence in (CONFIDENCE, sure_confidence(settings)))
    return Opinion((wins + ties / 2) / n, low, sure_low, length_controlled, n, agrees)


def least_win_rate(wins: int, ties: int, losses: int, confidence: float = CONFIDENCE) -> float:
    """Return what a win rate is at least: whether a model is better has only one side."""
    return win_rate_interval(wins, ties, losses, 2 * confidence - 1)[0]


def failed_monitors(monitors: pd.DataFrame) -> tuple[str, ...]:
    """Return the names of the monitors that did not pass; what could not be measured is no proof of health.

    Args:
        monitors: Table `MONITORS`.
    """
    return tuple(monitors["name"][~monitors["passed"].fillna(False)])
