from dataclasses import replace

import pytest

from srlm_pipeline.config import PromotionSettings
from srlm_pipeline.evaluation.promotion import ModelFigures, Rule, decide_promotion

SETTINGS = PromotionSettings(min_win_rate=0.5, max_judge_accuracy_drop=0.05, max_length_growth=1.3)
GOOD = ModelFigures(
    win_rate=0.6, judge_accuracy=0.7, previous_judge_accuracy=0.68, length_mean=110, previous_length_mean=100
)


def failed(figures: ModelFigures, settings: PromotionSettings = SETTINGS) -> list[str]:
    return [rule.name for rule in decide_promotion(figures, settings) if not rule.passed]


def rule(figures: ModelFigures, name: str) -> Rule:
    (found,) = [r for r in decide_promotion(figures, SETTINGS) if r.name == name]
    return found


def test_good_model_passes_every_rule() -> None:
    assert [r.passed for r in decide_promotion(GOOD, SETTINGS)] == [True, True, True]


@pytest.mark.parametrize(("win_rate", "passed"), [(0.5001, True), (0.5, False), (0.2, False)])
def test_win_rate_must_exceed_the_limit(win_rate: float, passed: bool) -> None:
    expected = [] if passed else ["wins against the previous model"]
    assert failed(replace(GOOD, win_rate=win_rate)) == expected


@pytest.mark.parametrize(
    ("before", "now", "passed"),
    [(0.5, 0.9, True), (0.7, 0.7, True), (0.75, 0.71, True), (0.75, 0.69, False), (None, 0.1, True)],
)
def test_judge_accuracy_may_drop_by_the_limit_only(before: float | None, now: float, passed: bool) -> None:
    expected = [] if passed else ["judges as well as before"]
    assert failed(replace(GOOD, judge_accuracy=now, previous_judge_accuracy=before)) == expected


def test_drop_of_exactly_the_limit_is_allowed() -> None:
    assert failed(replace(GOOD, judge_accuracy=0.6, previous_judge_accuracy=0.65)) == []


@pytest.mark.parametrize("before", [None, 0.7])
def test_model_whose_judgements_cannot_be_compared_fails(before: float | None) -> None:
    assert failed(replace(GOOD, judge_accuracy=None, previous_judge_accuracy=before)) == ["judges as well as before"]


@pytest.mark.parametrize(
    ("length", "before", "passed"),
    [(10, 100, True), (130, 100, True), (131, 100, False), (1, 0, False), (0, 0, False)],
)
def test_replies_may_grow_by_the_limit_only(length: float, before: float, passed: bool) -> None:
    expected = [] if passed else ["replies did not just get longer"]
    assert failed(replace(GOOD, length_mean=length, previous_length_mean=before)) == expected


def test_each_rule_is_decided_on_its_own() -> None:
    bad = ModelFigures(0.1, 0.2, 0.9, 500, 100)
    assert len(failed(bad)) == 3
    lenient = PromotionSettings(min_win_rate=0.05, max_judge_accuracy_drop=0.8, max_length_growth=5)
    assert failed(bad, lenient) == []


def test_explanations_give_figures_and_limits() -> None:
    assert rule(GOOD, "wins against the previous model").explanation == "win rate 60.0%, more than 50.0% needed"
    judging = rule(GOOD, "judges as well as before").explanation
    assert judging == "pairwise accuracy 70.0% after 68.0%, a drop of 5.0% is allowed"
    length = rule(GOOD, "replies did not just get longer").explanation
    assert length == "mean length 1.10 times the previous model's, 1.30 allowed"
