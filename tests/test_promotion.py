from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm_pipeline.config import MarginSettings, PromotionSettings
from srlm_pipeline.evaluation.measures import MEASURES, Change, Measure, measure_named
from srlm_pipeline.evaluation.promotion import (
    Compared,
    Decision,
    Evidence,
    Opinion,
    Rule,
    decide_promotion,
    read_decision,
    write_decision,
)

SETTINGS = PromotionSettings()
OTHERS = {"M1": "champion", "sft_baseline": "SFT baseline", "base": "base model"}
GAIN = "better than the champion M1 by a measure that the loop did not train on"
OWN, WINS, EQUAL_LENGTH = (
    "the loop's own opinion of it against M1",
    "wins against the champion M1",
    "wins at equal length",
)
PEOPLE = "people who read blind prefer it to M1"
LONGER, COLLAPSE = "replies did not just get longer", "no sign of collapse"
NO_HARM = {measure.name: f"no harm: {measure.title}" for measure in MEASURES}
DEPENDENT = ("M1, which every later model descends from",)
ONLY_MARGINS = PromotionSettings(
    proven_gain=False,
    min_win_rate=None,
    min_length_controlled_win_rate=None,
    max_length_growth=None,
    monitors=False,
)


def beside(measure: Measure, opponent: str, gain: float = 0.0, sure: float | None = None) -> Compared:
    """Beside one opponent: the gain, which is known to a hundredth; `sure` is what it is at least among many."""
    found = Change(0.5 + gain, 0.5, gain, gain - 0.01, gain + 0.01, 100)
    return Compared(measure, opponent, OTHERS[opponent], found, gain - 0.02 if sure is None else sure)


def unmeasured(measure: Measure, opponent: str) -> Compared:
    return Compared(measure, opponent, OTHERS[opponent], None)


def without(compared: Sequence[Compared], name: str, *opponents: str) -> list[Compared]:
    return [
        unmeasured(c.measure, c.opponent) if c.measure.name == name and c.opponent in opponents else c for c in compared
    ]


def put(compared: Sequence[Compared], new: Compared) -> list[Compared]:
    return [new if (c.measure, c.opponent) == (new.measure, new.opponent) else c for c in compared]


ALIKE = [beside(measure, opponent) for measure in MEASURES for opponent in OTHERS]
BETTER = put(ALIKE, beside(measure_named("closed_tasks"), "M1", 0.1))
LIKED = Opinion(0.7, 0.64, 0.61, 0.66, 200, 0.6)
GOOD = Evidence("M1", LIKED, DEPENDENT, BETTER, None, 1.1)
INDEPENDENT = replace(GOOD, dependences=())


def failed(evidence: Evidence, settings: PromotionSettings = SETTINGS) -> list[str]:
    return [rule.name for rule in decide_promotion(evidence, settings) if rule.passed is False]


def rule(evidence: Evidence, name: str, settings: PromotionSettings = SETTINGS) -> Rule:
    (found,) = [r for r in decide_promotion(evidence, settings) if r.name == name]
    return found


def test_a_good_model_passes_every_rule() -> None:
    rules = decide_promotion(INDEPENDENT, SETTINGS)
    assert [r.name for r in rules] == [GAIN, *NO_HARM.values(), WINS, EQUAL_LENGTH, LONGER, COLLAPSE]
    assert all(r.passed for r in rules)


def test_before_an_arbiter_of_the_loop_a_win_is_only_shown() -> None:
    rules = decide_promotion(GOOD, SETTINGS)
    assert [r.name for r in rules] == [GAIN, *NO_HARM.values(), OWN, LONGER, COLLAPSE]
    assert [r.name for r in rules if r.passed is not True] == [OWN]
    own = rule(GOOD, OWN)
    assert (own.passed, own.value, own.threshold) == (None, 0.64, 0.5)
    assert own.explanation == (
        "win rate 70.0%, with 95 % confidence (one-sided) at least 64.0%: shown, and decides nothing, for the "
        "arbiter is not independent (M1, which every later model descends from); it agrees with 60.0% of the human "
        "preferences it decides"
    )


# No harm


@pytest.mark.parametrize("name", [measure.name for measure in MEASURES if not measure.lenient])
@pytest.mark.parametrize("opponent", OTHERS)
def test_each_measure_alone_refuses_what_may_be_worse_by_more_than_its_margin(name: str, opponent: str) -> None:
    measure, margin = measure_named(name), getattr(SETTINGS.margins, name)
    # Known to a hundredth: a loss that is less than the margin is not yet proof of no harm.
    allowed = put(ALIKE, beside(measure, opponent, 0.01 - margin))
    harmful = put(ALIKE, beside(measure, opponent, 0.0099 - margin))
    assert failed(replace(GOOD, compared=allowed), ONLY_MARGINS) == []
    assert failed(replace(GOOD, compared=harmful), ONLY_MARGINS) == [NO_HARM[name]]
    found = rule(replace(GOOD, compared=harmful), NO_HARM[name])
    assert (found.value, found.threshold) == pytest.approx((-0.0001 - margin, -margin))


@pytest.mark.parametrize("spared", OTHERS)
def test_where_one_opponent_is_enough_only_what_is_worse_than_all_of_them_is_refused(spared: str) -> None:
    measure, margin = measure_named("cut_off"), SETTINGS.margins.cut_off
    assert margin is not None
    worse = [beside(measure, opponent, -0.9) for opponent in OTHERS]
    allowed = put(worse, beside(measure, spared, 0.01 - margin))
    harmful = put(worse, beside(measure, spared, 0.0099 - margin))
    assert failed(replace(GOOD, compared=allowed), ONLY_MARGINS) == []
    assert failed(replace(GOOD, compared=harmful), ONLY_MARGINS) == [NO_HARM["cut_off"]]
    found = rule(replace(GOOD, compared=harmful), NO_HARM["cut_off"])
    assert (found.value, found.threshold) == pytest.approx((-0.0001 - margin, -margin))
    assert f" of {spared} ({OTHERS[spared]})" in found.explanation


def test_the_opponent_that_it_is_worst_against_is_named() -> None:
    measure = measure_named("loops")
    compared = put(put(ALIKE, beside(measure, "sft_baseline", -0.2)), beside(measure, "base", -0.1))
    asked = PromotionSettings(margins=MarginSettings(loops=0.1))
    assert rule(replace(GOOD, compared=compared), NO_HARM["loops"], asked).explanation == (
        "30.0% after 50.0% of sft_baseline (SFT baseline); with 95 % confidence (one-sided) worse by at most 21.0 "
        "points, 10.0 points allowed"
    )


def test_what_is_surely_better_is_said_to_be() -> None:
    compared = [beside(measure_named("human_likelihood"), opponent, 0.3) for opponent in OTHERS]
    asked = PromotionSettings(margins=MarginSettings(human_likelihood=0.2))
    assert rule(replace(GOOD, compared=compared), NO_HARM["human_likelihood"], asked).explanation == (
        "0.80 nats after 0.50 nats of M1 (champion), per token; with 95 % confidence (one-sided) better by at least "
        "0.29 nats, 0.20 nats allowed"
    )


def test_what_was_measured_of_nobody_is_shown_and_refuses_nothing() -> None:
    evidence = replace(GOOD, compared=without(BETTER, "nearness", *OTHERS))
    found = rule(evidence, NO_HARM["nearness"], PromotionSettings(margins=MarginSettings(nearness=0.06)))
    assert (found.passed, found.value, found.threshold) == (None, None, -0.06)
    assert found.explanation == f"not measured: {measure_named('nearness').absent}"
    assert failed(evidence) == []


@pytest.mark.parametrize("name", ["judge", "cut_off"])
@pytest.mark.parametrize("lacking", [("base",), ("M1", "sft_baseline")])
def test_what_could_not_be_compared_with_everybody_is_no_proof(lacking: tuple[str, ...], name: str) -> None:
    evidence = replace(GOOD, compared=without(BETTER, name, *lacking))
    assert failed(evidence) == [NO_HARM[name]]
    assert rule(evidence, NO_HARM[name]).explanation == f"could not be compared with {', '.join(lacking)}"


def test_a_wider_margin_allows_more() -> None:
    evidence = replace(GOOD, compared=put(BETTER, beside(measure_named("verifiable"), "base", -0.25)))
    assert failed(evidence) == [NO_HARM["verifiable"]]
    assert failed(evidence, PromotionSettings(margins=MarginSettings(verifiable=0.26))) == []


def test_whom_a_comparison_tells_nothing_of_is_not_decided_by() -> None:
    judge = measure_named("judge")
    untold = replace(beside(judge, "base", -0.4), untold="base does no better than chance (50.0%)")
    evidence = replace(GOOD, compared=put(BETTER, untold))
    assert failed(evidence) == []
    assert "base" not in rule(evidence, NO_HARM["judge"]).explanation
    # The others are asked all the same.
    harmed = put(evidence.compared, beside(judge, "sft_baseline", -0.2))
    assert failed(replace(GOOD, compared=harmed)) == [NO_HARM["judge"]]
    assert rule(replace(GOOD, compared=harmed), NO_HARM["judge"]).value == pytest.approx(-0.21)
    lacking = without(evidence.compared, "judge", "M1")
    assert failed(replace(GOOD, compared=lacking)) == [NO_HARM["judge"]]
    assert rule(replace(GOOD, compared=lacking), NO_HARM["judge"]).explanation == "could not be compared with M1"


def test_where_no_comparison_tells_anything_the_reasons_are_shown_and_nothing_is_refused() -> None:
    near = measure_named("nearness")
    compared = BETTER
    for count, opponent in enumerate(OTHERS):
        other = beside(near, opponent, -0.4) if count else unmeasured(near, opponent)
        compared = put(compared, replace(other, untold=f"only {count} prompts are fit"))
    evidence = replace(GOOD, compared=compared)
    found = rule(evidence, NO_HARM["nearness"], PromotionSettings(margins=MarginSettings(nearness=0.06)))
    assert (found.passed, found.value, found.threshold) == (None, None, -0.06)
    assert found.explanation == (
        "not decided by: only 0 prompts are fit; only 1 prompts are fit; only 2 prompts are fit"
    )
    assert failed(evidence) == []


def test_even_the_most_lenient_comparison_has_to_tell_something() -> None:
    measure = measure_named("cut_off")
    worse = [beside(measure, opponent, -0.9) for opponent in OTHERS]
    compared = put(worse, replace(beside(measure, "M1", 0.5), untold="it is not known"))
    assert failed(replace(GOOD, compared=compared), ONLY_MARGINS) == [NO_HARM["cut_off"]]


# A proven gain


@pytest.mark.parametrize("name", NO_HARM)
def test_any_measure_can_prove_the_gain(name: str) -> None:
    evidence = replace(GOOD, compared=put(ALIKE, beside(measure_named(name), "M1", 0.05)))
    found = rule(evidence, GAIN)
    assert found.passed is True
    assert found.value == pytest.approx(0.03)
    assert found.explanation.startswith(f"{measure_named(name).title}: ")
    assert failed(evidence) == []


def test_without_a_gain_nothing_is_promoted_and_what_was_nearest_to_one_is_said() -> None:
    compared = put(ALIKE, beside(measure_named("verifiable"), "M1", 0.015))
    found = rule(replace(GOOD, compared=compared), GAIN)
    assert (found.passed, found.threshold) == (False, 0.0)
    assert found.value == pytest.approx(-0.005)
    assert found.explanation == (
        "nothing is proved to be better; nearest to it: verifiable instructions followed, 51.5% after 50.0%, mean over "
        "prompts"
    )
    assert failed(replace(GOOD, compared=compared)) == [GAIN]
    assert rule(replace(GOOD, compared=[]), GAIN).explanation == "nothing is proved to be better"


def test_one_gain_among_many_has_to_be_surer_than_a_single_one() -> None:
    by_chance = beside(measure_named("nearness"), "M1", 0.05, sure=-0.001)
    assert by_chance.change is not None
    assert by_chance.change.least > 0
    assert failed(replace(GOOD, compared=put(ALIKE, by_chance))) == [GAIN]


def test_being_better_than_somebody_else_is_no_gain() -> None:
    compared = put(put(ALIKE, beside(measure_named("judge"), "base", 0.3)), beside(MEASURES[0], "sft_baseline", 0.3))
    assert failed(replace(GOOD, compared=compared)) == [GAIN]


def test_a_gain_over_a_champion_that_knows_nothing_counts_if_it_is_told() -> None:
    judge = measure_named("judge")
    told = replace(beside(judge, "M1", 0.3), untold="M1 does no better than chance (50.0%)")
    assert failed(replace(GOOD, compared=put(ALIKE, told))) == []
    assert rule(replace(GOOD, compared=put(ALIKE, told)), GAIN).explanation == (
        "human-ranked pairs judged right: 80.0% after 50.0%, with 99.7 % confidence (one-sided) better by at least "
        "28.0 points"
    )
    assert failed(replace(GOOD, compared=put(ALIKE, replace(told, sure_gain=None)))) == [GAIN]


def test_gains_are_all_told() -> None:
    compared = put(put(ALIKE, beside(measure_named("loops"), "M1", 0.1)), beside(measure_named("nearness"), "M1", 0.1))
    assert rule(replace(GOOD, compared=compared), GAIN).explanation == (
        "replies that go in circles: 60.0% after 50.0%, with 99.7 % confidence (one-sided) better by at least 8.0 "
        "points; nearness to the reference replies: 0.600 after 0.500, where both replies are fit, with 99.7 % "
        "confidence (one-sided) better by at least 0.080"
    )


# Opinions


@pytest.mark.parametrize("low", [0.0, 0.4, 0.999])
def test_the_loops_own_opinion_neither_promotes_nor_refuses(low: float) -> None:
    said = Opinion(max(low, 0.5), low, low, low, 200)
    assert failed(replace(GOOD, opinion=said)) == []
    assert failed(replace(GOOD, opinion=said, compared=ALIKE)) == [GAIN]
    assert EQUAL_LENGTH not in [r.name for r in decide_promotion(replace(GOOD, opinion=said), SETTINGS)]


@pytest.mark.parametrize(("low", "passed"), [(0.5001, True), (0.5, False), (0.2, False)])
def test_before_an_independent_arbiter_the_interval_and_not_the_win_rate_decides(low: float, passed: bool) -> None:
    evidence = replace(INDEPENDENT, opinion=Opinion(0.9, low, low, 0.6, 200))
    assert failed(evidence) == ([] if passed else [WINS])
    assert (rule(evidence, WINS).value, rule(evidence, WINS).threshold) == (low, 0.5)


def test_an_independent_arbiters_win_is_a_gain_if_it_is_sure_among_many() -> None:
    sure = replace(INDEPENDENT, compared=ALIKE)
    assert failed(sure) == []
    assert (
        rule(sure, GAIN).explanation
        == "the independent arbiters prefer it: 70.0%, with 99.7 % confidence (one-sided) at least 61.0%"
    )
    assert failed(replace(sure, opinion=Opinion(0.7, 0.51, 0.49, 0.66, 200))) == [GAIN]


@pytest.mark.parametrize(("value", "passed"), [(0.51, True), (0.5, False), (None, False)])
def test_what_wins_by_length_alone_is_refused(value: float | None, passed: bool) -> None:
    evidence = replace(INDEPENDENT, opinion=replace(LIKED, length_controlled=value))
    assert failed(evidence) == ([] if passed else [EQUAL_LENGTH])


@pytest.mark.parametrize(("said", "passed"), [(LIKED, True), (Opinion(0.6, 0.5, 0.45, None, 200), False)])
def test_people_are_believed_if_enough_was_read_and_they_prefer_it(said: Opinion, passed: bool) -> None:
    asking = PromotionSettings(min_people_pairs=200)
    assert failed(replace(GOOD, people=said), asking) == ([] if passed else [PEOPLE])
    assert failed(replace(GOOD, people=replace(said, n=199)), asking) == [PEOPLE]
    assert (rule(replace(GOOD, people=said), PEOPLE, asking).value) == said.low


def test_people_who_are_asked_for_and_said_nothing_are_waited_for() -> None:
    asking = PromotionSettings(min_people_pairs=30)
    assert failed(GOOD, asking) == [PEOPLE]
    assert rule(GOOD, PEOPLE, asking).explanation == "0 of 30 pairs were read; `srlm read` shows them"
    assert PEOPLE not in [r.name for r in decide_promotion(GOOD, SETTINGS)]


def test_what_people_say_is_a_gain_even_where_it_is_not_asked_for() -> None:
    evidence = replace(GOOD, compared=ALIKE, people=LIKED)
    assert failed(evidence) == []
    assert (
        rule(evidence, GAIN).explanation
        == "people who read blind prefer it: 70.0%, with 99.7 % confidence (one-sided) at least 61.0%"
    )
    assert failed(replace(evidence, people=replace(LIKED, sure_low=0.5))) == [GAIN]


@pytest.mark.parametrize("who", ["people", "arbiter"])
def test_whom_most_do_not_prefer_has_no_gain_however_little_is_asked_for(who: str) -> None:
    disliked = Opinion(0.45, 0.41, 0.39, 0.45, 300)
    evidence = (
        replace(GOOD, compared=ALIKE, people=disliked)
        if who == "people"
        else replace(INDEPENDENT, compared=ALIKE, opinion=disliked)
    )
    lenient = PromotionSettings(min_win_rate=0.3, min_length_controlled_win_rate=None)
    assert failed(evidence, lenient) == [GAIN]


# The rest


@pytest.mark.parametrize(("growth", "passed"), [(0.1, True), (1.3, True), (1.301, False), (float("inf"), False)])
def test_replies_may_grow_by_the_limit_only(growth: float, passed: bool) -> None:
    assert failed(replace(GOOD, length_growth=growth)) == ([] if passed else [LONGER])


def test_growth_is_told_against_the_longest_of_those_before() -> None:
    assert rule(replace(GOOD, length_growth=2.0), LONGER).explanation == (
        "mean length 2.00 times the longest of those before, 1.30 allowed"
    )


def test_a_failed_monitor_is_named() -> None:
    evidence = replace(GOOD, failed_monitors=("parse rate", "length growth"))
    assert failed(evidence) == [COLLAPSE]
    assert "parse rate, length growth" in rule(evidence, COLLAPSE).explanation


@pytest.mark.parametrize("name", NO_HARM)
def test_a_measure_without_a_margin_has_no_rule(name: str) -> None:
    off = PromotionSettings(margins=MarginSettings.model_validate({name: None}))
    found = [r.name for r in decide_promotion(GOOD, off) if r.name in NO_HARM.values()]
    assert found == [words for other, words in NO_HARM.items() if other != name]


def test_every_rule_can_be_switched_off() -> None:
    off = ONLY_MARGINS.model_copy(update={"margins": MarginSettings(**dict.fromkeys(NO_HARM))})
    assert decide_promotion(INDEPENDENT, off) == ()


def test_every_measure_has_a_margin_and_every_margin_a_measure() -> None:
    assert set(MarginSettings.model_fields) == set(NO_HARM)


@given(
    gains=st.lists(st.floats(-0.3, 0.3), min_size=len(ALIKE), max_size=len(ALIKE)),
    low=st.floats(0, 1),
    controlled=st.none() | st.floats(0, 1),
    growth=st.floats(0, 3),
    independent=st.booleans(),
    worse=st.floats(0, 0.5),
)
def test_worse_figures_never_turn_a_refusal_into_a_promotion(
    gains: list[float], low: float, controlled: float | None, growth: float, independent: bool, worse: float
) -> None:
    def promoted(by: float) -> bool:
        said = Opinion(low - by, low - by, low - by, None if controlled is None else controlled - by, 100)
        evidence = Evidence(
            "M1",
            said,
            () if independent else DEPENDENT,
            [beside(c.measure, c.opponent, gain - by) for c, gain in zip(ALIKE, gains, strict=True)],
            said,
            growth + by,
        )
        return not failed(evidence, PromotionSettings(min_people_pairs=50))

    assert promoted(0.0) or not promoted(worse)


def test_a_decision_is_kept_with_its_rules(tmp_path: Path) -> None:
    evidence = replace(GOOD, compared=without(ALIKE, "nearness", *OTHERS), length_growth=2.0)
    decision = Decision("M2", "abc", "M1", False, decide_promotion(evidence, SETTINGS))
    path = tmp_path / "promotions" / "iter_001.json"
    assert read_decision(path) is None
    write_decision(decision, path)
    assert read_decision(path) == decision
    assert [r.name for r in decision.failures] == [GAIN, LONGER]
