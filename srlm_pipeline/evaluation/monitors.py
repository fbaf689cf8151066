"""Signs that the loop feeds on itself, each with its figures, its threshold and a verdict in plain words.

A loop that judges its own replies can go on raising its score while the replies, the prompts or the judgements wither.
None of these figures comes from that score.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from srlm_pipeline.config import MonitorSettings
from srlm_pipeline.evaluation.measures import Change

# 0.8 - 0.7 is a little more than 0.1.
_ROUNDING = 1e-9
# Units in which shares are written.
_PERCENT, _POINTS = " %", " percentage points"


@dataclass(frozen=True)
class Count:
    """So many of so many.

    Attributes:
        n: That have the property.
        of: In all.
    """

    n: int
    of: int

    @property
    def share(self) -> float | None:
        """In 0..1; None of nothing."""
        return self.n / self.of if self.of else None


@dataclass(frozen=True)
class ScoreFigures:
    """How a judge's scores are distributed.

    Attributes:
        most_frequent: The most frequent score, to a tenth of a point: expected scores are never quite equal.
        same: Replies that have it, of all with a score.
        std: Standard deviation, unrounded; None for a single score.
    """

    most_frequent: float
    same: Count
    std: float | None


@dataclass(frozen=True)
class MonitorFigures:
    """What one iteration shows; None where something could not be measured.

    Attributes:
        readable: Judgements with a readable score.
        without_pair: Prompts whose candidates gave no pair.
        scores: Of the candidates.
        length_growth: Mean length of evaluation replies, divided by the entering model's.
        duplicate_prompts: Attempts at a new prompt that were turned away as too like a known one.
        variety: Different word pairs within a reply, compared with M1's.
        recitals: Replies that recite, or say what replies to other prompts say, compared with M1's.
        judge: Pairs of the held-out human rankings that are judged right, compared with M1's.
        kl: Estimated divergence from M1, in nats per token.
    """

    readable: Count | None = None
    without_pair: Count | None = None
    scores: ScoreFigures | None = None
    length_growth: float | None = None
    duplicate_prompts: Count | None = None
    variety: Change | None = None
    recitals: Change | None = None
    judge: Change | None = None
    kl: float | None = None


@dataclass(frozen=True)
class Monitor:
    """One sign and what it says.

    Attributes:
        name: Short, fit for the name of a check.
        passed: None if it could not be measured.
        value: What was measured.
        threshold: What it is compared with.
        explanation: One sentence with the figures, and what a failure means.
    """

    name: str
    passed: bool | None
    value: float | None
    threshold: float
    explanation: str


@dataclass(frozen=True)
class _Sign:
    """What is known of a figure before it is compared.

    Attributes:
        name: The monitor's.
        threshold: None if it is switched off.
        least: Whether the threshold is the least that is needed; else the most that is allowed.
        value: None if it could not be measured.
        subject: What is measured, as the subject of a sentence.
        fact: What was found; `{}` stands for the value.
        meaning: What a failure means.
        unit: That follows value and threshold.
    """

    name: str
    threshold: float | None
    least: bool
    value: float | None
    subject: str
    fact: str
    meaning: str
    unit: str


def describe_scores(scores: Iterable[float | None]) -> ScoreFigures | None:
    """Return how scores are distributed; None if there are none.

    Args:
        scores: None or not a number where a reply has no valid score.
    """
    valid = [float(score) for score in scores if score is not None and not math.isnan(score)]
    if not valid:
        return None
    ((most_frequent, n),) = Counter(round(score, 1) for score in valid).most_common(1)
    std = float(np.std(valid, ddof=1)) if len(valid) > 1 else None
    return ScoreFigures(most_frequent, Count(n, len(valid)), std)


def monitor_names(settings: MonitorSettings) -> list[str]:
    """Return the names of the monitors that are not switched off."""
    return [sign.name for sign in _signs(MonitorFigures(), settings) if sign.threshold is not None]


def watch(figures: MonitorFigures, settings: MonitorSettings) -> list[Monitor]:
    """Compare every figure with its threshold; monitors that are switched off are left out.

    Args:
        figures: What was measured.
        settings: The thresholds.
    """
    return [_compare(sign, sign.threshold) for sign in _signs(figures, settings) if sign.threshold is not None]


def _signs(figures: MonitorFigures, settings: MonitorSettings) -> list[_Sign]:
    readable, without_pair = figures.readable or Count(0, 0), figures.without_pair or Count(0, 0)
    turned_away = figures.duplicate_prompts or Count(0, 0)
    scores = figures.scores or ScoreFigures(0.0, Count(0, 0), None)
    return [
        _Sign(
            "parse_rate",
            settings.min_parse_rate,
            True,
            readable.share,
            "the share of judgements with a readable score",
            f"{readable.of - readable.n} of {readable.of} judgements had no readable score, {{}} had one",
            "the judge has forgotten the format",
            _PERCENT,
        ),
        _Sign(
            "tie_rate",
            settings.max_tie_rate,
            False,
            without_pair.share,
            "the share of prompts without a pair",
            f"{without_pair.n} of {without_pair.of} prompts ({{}}) gave no pair",
            "the judge no longer tells replies apart",
            _PERCENT,
        ),
        _Sign(
            "score_share",
            settings.max_score_share,
            False,
            scores.same.share,
            "the share of the most frequent score",
            f"{scores.same.n} of {scores.same.of} replies ({{}}) were given {scores.most_frequent:.1f}, the most "
            "frequent score",
            "the judge says the same of nearly everything",
            _PERCENT,
        ),
        _Sign(
            "score_spread",
            settings.min_score_std,
            True,
            scores.std,
            "the spread of the scores",
            "the scores have a standard deviation of {}",
            "the judge says nearly the same of everything",
            " points",
        ),
        _Sign(
            "length_growth",
            settings.max_length_growth,
            False,
            figures.length_growth,
            "the growth of the replies",
            "replies are {} as long as the entering model's",
            "longer replies score better without being better",
            " times",
        ),
        _Sign(
            "duplicate_prompts",
            settings.max_duplicate_prompts,
            False,
            turned_away.share,
            "the share of invented prompts that are too like a known one",
            f"{turned_away.n} of {turned_away.of} attempts at a new prompt ({{}}) were too like a known one",
            "no new prompts come to the generator's mind",
            _PERCENT,
        ),
        _compared(
            "variety",
            settings.max_variety_drop,
            figures.variety,
            "the drop of the variety within replies",
            "{new} of the word pairs of a reply's beginning are different, of M1's {other}",
            "the model repeats itself",
        ),
        _compared(
            "recitals",
            settings.max_recital_rise,
            figures.recitals,
            "the rise of recitals and stock replies",
            "{new} of the replies recite or say what others say, of M1's {other}",
            "the model answers whatever it is asked alike",
        ),
        _compared(
            "judge_accuracy",
            settings.max_judge_accuracy_drop,
            figures.judge,
            "the drop of the judge's accuracy",
            "the judge puts {new} of human-ranked pairs in the right order, M1 {other}",
            "its scores can be trusted less than at the start",
        ),
        _Sign(
            "kl",
            settings.max_kl,
            False,
            figures.kl,
            "the distance from M1",
            "the model is {} away from M1 on its own replies",
            "it has left what it was taught",
            " nats per token",
        ),
    ]


def _compared(name: str, threshold: float | None, found: Change | None, subject: str, fact: str, meaning: str) -> _Sign:
    """Return a sign that is a comparison with M1: by how much the model is worse at most, with 95 % confidence."""
    if found is None:
        return _Sign(name, threshold, False, None, subject, "", meaning, _POINTS)
    told = fact.format(new=f"{found.new:.1%}", other=f"{found.other:.1%}")
    # Doubled braces are left for the value.
    return _Sign(
        name,
        threshold,
        False,
        max(0.0, -found.least),
        subject,
        f"{told}: with 95 % confidence (one-sided) worse by at most {{}}",
        meaning,
        _POINTS,
    )


def _compare(sign: _Sign, threshold: float) -> Monitor:
    value = sign.value
    if value is None or math.isnan(value):
        return Monitor(sign.name, None, None, threshold, f"{sign.subject} could not be measured")
    better_by = value - threshold if sign.least else threshold - value
    passed = better_by >= -_ROUNDING
    scale = 100.0 if sign.unit in (_PERCENT, _POINTS) else 1.0
    found, limit = _tell_apart(value * scale, threshold * scale)
    asked = f"at least {limit}{sign.unit} needed" if sign.least else f"at most {limit}{sign.unit} allowed"
    sentence = f"{sign.fact.format(found + sign.unit)}; {asked}"
    return Monitor(sign.name, passed, value, threshold, sentence if passed else f"{sentence}: {sign.meaning}")


def _tell_apart(value: float, limit: float) -> tuple[str, str]:
    """Write two numbers with as many digits as it takes to see which is larger."""
    for digits in range(3, 10):
        texts = f"{value:.{digits}g}", f"{limit:.{digits}g}"
        if texts[0] != texts[1]:
            break
    return texts if texts[0] != texts[1] else (f"{value:.3g}", f"{limit:.3g}")
