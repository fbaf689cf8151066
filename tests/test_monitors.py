"""Every monitor fails when its figure is bad, says so in words, and never passes because things got worse."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_pipeline.config import MonitorSettings
from srlm_pipeline.evaluation.measures import Change
from srlm_pipeline.evaluation.monitors import (
    Count,
    Monitor,
    MonitorFigures,
    ScoreFigures,
    describe_scores,
    monitor_names,
    watch,
)


def beside_m1(new: float, other: float, worse_by_at_most: float) -> Change:
    """A comparison of which only the figures and the lower end matter here."""
    return Change(new, other, 0.0, -worse_by_at_most, 1.0, 100)


HEALTHY = MonitorFigures(
    readable=Count(98, 100),
    without_pair=Count(5, 50),
    scores=ScoreFigures(3.0, Count(80, 200), 0.9),
    length_growth=1.05,
    duplicate_prompts=Count(4, 60),
    variety=beside_m1(0.97, 0.98, 0.02),
    recitals=beside_m1(0.02, 0.01, 0.03),
    judge=beside_m1(0.71, 0.7, 0.04),
    kl=0.1,
)
THRESHOLDS = {
    "parse_rate": "min_parse_rate",
    "tie_rate": "max_tie_rate",
    "score_share": "max_score_share",
    "score_spread": "min_score_std",
    "length_growth": "max_length_growth",
    "duplicate_prompts": "max_duplicate_prompts",
    "variety": "max_variety_drop",
    "recitals": "max_recital_rise",
    "judge_accuracy": "max_judge_accuracy_drop",
    "kl": "max_kl",
}


def spread(std: float | None) -> ScoreFigures:
    return ScoreFigures(3.0, Count(80, 200), std)


def seen(name: str, settings: MonitorSettings | None = None, **figures: Any) -> Monitor:
    (found,) = [m for m in watch(replace(HEALTHY, **figures), settings or MonitorSettings()) if m.name == name]
    return found


def test_a_healthy_iteration_passes_everything() -> None:
    monitors = watch(HEALTHY, MonitorSettings())
    assert [m.name for m in monitors] == list(THRESHOLDS)
    assert all(m.passed is True for m in monitors)


@pytest.mark.parametrize(
    ("name", "figures", "value", "explanation"),
    [
        (
            "parse_rate",
            {"readable": Count(6, 10)},
            0.6,
            "4 of 10 judgements had no readable score, 60 % had one; at least 90 % needed: the judge has forgotten the "
            "format",
        ),
        (
            "tie_rate",
            {"without_pair": Count(30, 40)},
            0.75,
            "30 of 40 prompts (75 %) gave no pair; at most 50 % allowed: the judge no longer tells replies apart",
        ),
        (
            "score_share",
            {"scores": ScoreFigures(3.0, Count(45, 50), 0.4)},
            0.9,
            "45 of 50 replies (90 %) were given 3.0, the most frequent score; at most 80 % allowed: the judge says the "
            "same of nearly everything",
        ),
        (
            "score_spread",
            {"scores": spread(0.004)},
            0.004,
            "the scores have a standard deviation of 0.004 points; at least 0.02 points needed: the judge says nearly "
            "the same of everything",
        ),
        (
            "length_growth",
            {"length_growth": 1.52},
            1.52,
            "replies are 1.52 times as long as the entering model's; at most 1.3 times allowed: longer replies score "
            "better without being better",
        ),
        (
            "duplicate_prompts",
            {"duplicate_prompts": Count(45, 60)},
            0.75,
            "45 of 60 attempts at a new prompt (75 %) were too like a known one; at most 50 % allowed: no new prompts "
            "come to the generator's mind",
        ),
        (
            "variety",
            {"variety": beside_m1(0.7, 0.96, 0.3)},
            0.3,
            "70.0% of the word pairs of a reply's beginning are different, of M1's 96.0%: with 95 % confidence "
            "(one-sided) worse "
            "by at most 30 percentage points; at most 10 percentage points allowed: the model repeats itself",
        ),
        (
            "recitals",
            {"recitals": beside_m1(0.2, 0.05, 0.22)},
            0.22,
            "20.0% of the replies recite or say what others say, of M1's 5.0%: with 95 % confidence (one-sided) "
            "worse by at most "
            "22 percentage points; at most 5 percentage points allowed: the model answers whatever it is asked alike",
        ),
        (
            "judge_accuracy",
            {"judge": beside_m1(0.55, 0.7, 0.18)},
            0.18,
            "the judge puts 55.0% of human-ranked pairs in the right order, M1 70.0%: with 95 % confidence "
            "(one-sided) worse by "
            "at most 18 percentage points; at most 10 percentage points allowed: its scores can be trusted less than "
            "at the start",
        ),
        (
            "kl",
            {"kl": 1.25},
            1.25,
            "the model is 1.25 nats per token away from M1 on its own replies; at most 1 nats per token allowed: it "
            "has left what it was taught",
        ),
    ],
)
def test_what_is_wrong_is_said_in_plain_words(
    name: str, figures: dict[str, Any], value: float, explanation: str
) -> None:
    found = seen(name, **figures)
    assert found.passed is False
    assert found.value == pytest.approx(value)
    assert found.threshold == getattr(MonitorSettings(), THRESHOLDS[name])
    assert found.explanation == explanation
    others = [m for m in watch(replace(HEALTHY, **figures), MonitorSettings()) if m.name != name]
    assert all(m.passed for m in others)


def test_what_passes_is_said_without_a_warning() -> None:
    assert seen("kl").explanation == (
        "the model is 0.1 nats per token away from M1 on its own replies; at most 1 nats per token allowed"
    )


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("parse_rate", {"readable": Count(9, 10)}),
        ("length_growth", {"length_growth": 1.3}),
        ("judge_accuracy", {"judge": beside_m1(0.7, 0.7, 0.8 - 0.7)}),
        ("recitals", {"recitals": beside_m1(0.1, 0.1, 0.05)}),
    ],
)
def test_the_threshold_itself_is_allowed(name: str, figures: dict[str, Any]) -> None:
    assert seen(name, **figures).passed is True


def test_a_figure_just_beyond_its_threshold_is_not_rounded_to_it() -> None:
    found = seen("parse_rate", readable=Count(89_999, 100_000))
    assert found.passed is False
    assert "89.999 % had one; at least 90 % needed" in found.explanation


@pytest.mark.parametrize("name", THRESHOLDS)
def test_what_was_not_measured_neither_passes_nor_fails(name: str) -> None:
    (found,) = [m for m in watch(MonitorFigures(), MonitorSettings()) if m.name == name]
    assert found.passed is None
    assert found.value is None
    assert found.explanation.endswith("could not be measured")


def test_nothing_of_nothing_and_what_is_no_number_are_not_measured() -> None:
    assert seen("parse_rate", readable=Count(0, 0)).passed is None
    assert seen("kl", kl=math.nan).passed is None
    assert seen("score_spread", scores=spread(None)).passed is None
    assert seen("judge_accuracy", judge=None).passed is None
    assert seen("length_growth", length_growth=math.inf).passed is False


@pytest.mark.parametrize(
    ("name", "field"), [("variety", "variety"), ("recitals", "recitals"), ("judge_accuracy", "judge")]
)
def test_what_is_surely_better_than_m1_is_not_worse_by_anything(name: str, field: str) -> None:
    found = seen(name, **{field: beside_m1(0.9, 0.5, -0.2)})
    assert (found.passed, found.value) == (True, 0.0)
    assert "worse by at most 0 percentage points" in found.explanation


@pytest.mark.parametrize("name", THRESHOLDS)
def test_a_monitor_without_a_threshold_is_off(name: str) -> None:
    settings = MonitorSettings.model_validate({THRESHOLDS[name]: None})
    expected = [other for other in THRESHOLDS if other != name]
    assert [m.name for m in watch(HEALTHY, settings)] == expected == monitor_names(settings)


def test_scores_are_described_to_a_tenth() -> None:
    # Of five scores three are 3.0 to a tenth of a point; their standard deviation is that of the scores themselves.
    found = describe_scores([2.96, 3.0, 3.04, None, 1.0, math.nan, 5.0])
    assert found is not None
    assert (found.most_frequent, found.same) == (3.0, Count(3, 5))
    assert found.std == pytest.approx(math.sqrt((0.04**2 + 0.04**2 + 2 * 2**2) / 4))
    assert describe_scores([None, math.nan]) is None
    assert describe_scores([4.0]) == ScoreFigures(4.0, Count(1, 1), None)


SHARES = st.integers(0, 40)
# Which figures make a monitor worse, given how bad it is already: figures of the better and of the worse iteration.
WORSE: dict[str, tuple[st.SearchStrategy[Any], Any, int]] = {
    "parse_rate": (SHARES, lambda x: {"readable": Count(x, 40)}, -1),
    "tie_rate": (SHARES, lambda x: {"without_pair": Count(x, 40)}, 1),
    "score_share": (SHARES, lambda x: {"scores": ScoreFigures(2.0, Count(x, 40), 1.0)}, 1),
    "score_spread": (st.floats(0, 0.05), lambda x: {"scores": spread(x)}, -1),
    "length_growth": (st.floats(0.5, 3) | st.just(math.inf), lambda x: {"length_growth": x}, 1),
    "duplicate_prompts": (SHARES, lambda x: {"duplicate_prompts": Count(x, 40)}, 1),
    "variety": (st.floats(-0.5, 0.5), lambda x: {"variety": beside_m1(0.5, 0.5, x)}, 1),
    "recitals": (st.floats(-0.5, 0.5), lambda x: {"recitals": beside_m1(0.5, 0.5, x)}, 1),
    "judge_accuracy": (st.floats(-0.5, 0.5), lambda x: {"judge": beside_m1(0.5, 0.5, x)}, 1),
    "kl": (st.floats(-0.1, 3), lambda x: {"kl": x}, 1),
}


@pytest.mark.parametrize("name", THRESHOLDS)
@given(data=st.data())
@settings(max_examples=60)
def test_getting_worse_never_turns_failed_into_passed(name: str, data: st.DataObject) -> None:
    strategy, figures, bad = WORSE[name]
    better, worse = sorted([data.draw(strategy), data.draw(strategy)], key=lambda x: bad * x)
    verdicts = [seen(name, **figures(x)).passed for x in (better, worse)]
    assert None not in verdicts
    assert verdicts[0] or not verdicts[1]


@given(st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60)
def test_a_stricter_threshold_never_turns_failed_into_passed(one: float, other: float) -> None:
    lenient, strict = sorted([one, other])
    verdicts = [seen("parse_rate", MonitorSettings(min_parse_rate=t)).passed for t in (lenient, strict)]
    assert verdicts[0] or not verdicts[1]
