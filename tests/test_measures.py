import numpy as np
import pytest
from assessed import assessed
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_pipeline.checks.vital_signs import SIGNS
from srlm_pipeline.evaluation.assessment import Assessment
from srlm_pipeline.evaluation.measures import (
    MEASURES,
    SHOWN,
    VARIETY,
    Measure,
    amount,
    change,
    figure,
    measure_named,
    why_not_compared,
)
from srlm_pipeline.evaluation.statistics import exact_interval, paired_shares

LESS_IS_BETTER = {*SIGNS, "unfit", "cut_off", "human_likelihood"}
WHOLE = assessed(
    "M2",
    ["to be or not to be", "so it goes", "yes", "no"],
    closed=[1, 0, 1],
    followed=[2, 1],
    scores=[(4, 1), (3, 3), (None, 2), (1, 5)],
    nats=[1.0, 2.0, 6.0],
    nearness=[0.5, 0.25, None, 0.75],
    cut_off=[True, False, False, False],
    loops=[True, True, False, False],
    refuses=[False, False, True, False],
)
EVERY = pytest.mark.parametrize("measure", [*SHOWN, VARIETY], ids=lambda measure: measure.name)


def with_figures(measure: Measure, *values: float) -> Assessment:
    """A model whose items have these values, of 0 and 1, in one measure."""
    if measure.name in (*SIGNS, "cut_off"):
        return assessed("m", **{measure.name: [bool(v) for v in values]})  # type: ignore[arg-type]
    if measure.name == "unfit":
        return assessed("m", recites=[bool(v) for v in values])
    if measure.name == "judge":
        return assessed("m", loops=[False], scores=[(v, 1 - v) for v in values])
    if measure.name == "variety":
        return assessed("m", ["all of it different" if v else "a a a" for v in values])
    given = {
        "closed_tasks": "closed",
        **dict.fromkeys(("verifiable", "verifiable_seen", "verifiable_unseen"), "followed"),
        "human_likelihood": "nats",
    }
    name = given.get(measure.name, measure.name)
    return assessed("m", **{"loops": [False], name: [2 * int(v) if name == "followed" else v for v in values]})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "n"),
    [
        # Of four replies to evaluation prompts and two to verifiable ones.
        ("unfit", 3 / 6, 6),
        ("loops", 2 / 6, 6),
        ("refuses", 1 / 6, 6),
        ("empty", 0.0, 6),
        ("cut_off", 1 / 4, 4),
        ("closed_tasks", 2 / 3, 3),
        ("verifiable", 3 / 4, 2),
        ("nearness", 0.5, 3),
        ("human_likelihood", 3.0, 3),
        ("judge", (1 + 0.5 + 0.5 + 0) / 4, 4),
    ],
)
def test_figures_worked_by_hand(name: str, value: float, n: int) -> None:
    found = figure(WHOLE, measure_named(name), 200)
    assert found.value == pytest.approx(value)
    assert (found.n, found.note) == (n, "")
    assert found.low is not None
    assert found.high is not None
    assert found.low <= value <= found.high


def test_variety_is_that_of_a_replys_beginning() -> None:
    # "to be" comes twice among five pairs; the other replies say nothing twice.
    assert figure(WHOLE, VARIETY, 50).value == pytest.approx((4 / 5 + 3) / 4)
    opening = " ".join(f"word{n}" for n in range(64))
    assert figure(assessed("m", [f"{opening} so so so so"]), VARIETY, 50).value == 1


def test_a_share_of_items_has_an_exact_interval() -> None:
    found = figure(WHOLE, measure_named("closed_tasks"))
    assert (found.low, found.high) == pytest.approx(exact_interval(2, 3))
    none = figure(WHOLE, measure_named("empty"))
    assert none.low == 0
    assert none.high == pytest.approx(exact_interval(0, 6)[1])


@EVERY
def test_one_item_tells_no_interval_unless_it_is_a_shares(measure: Measure) -> None:
    of_one = assessed("m", ["so so it goes"], followed=[2], scores=[(3, 3)], nats=[1.5], nearness=[0.5], closed=[1])
    found = figure(of_one, measure, 50)
    assert found.value is not None
    if found.low is not None and found.high is not None:
        assert found.high - found.low > 0.1
    else:
        assert change(of_one, of_one, measure, resamples=50) is None
    if measure.name == "judge":
        assert why_not_compared(of_one, of_one, measure, 50).startswith("1 prompt is too few")


@EVERY
def test_what_nobody_was_asked_for_has_no_figure_and_says_why(measure: Measure) -> None:
    nothing = assessed("m", closed=[1]) if measure.name != "closed_tasks" else assessed("m", loops=[False])
    nothing = Assessment(
        "m",
        "",
        nothing.replies if measure.name == "closed_tasks" else nothing.replies.iloc[:0],
        nothing.verifiable,
        nothing.judgements,
        nothing.likelihood,
    )
    found = figure(nothing, measure)
    assert (found.value, found.low, found.high, found.n, found.note) == (None, None, None, 0, measure.absent)
    assert measure.absent
    assert change(nothing, WHOLE, measure) is None
    assert change(WHOLE, nothing, measure) is None


@EVERY
def test_whoever_has_more_of_what_is_good_gains(measure: Measure) -> None:
    more, less = with_figures(measure, *[1] * 30, *[0] * 10), with_figures(measure, *[1] * 10, *[0] * 30)
    found = change(more, less, measure, resamples=200)
    assert found is not None
    sign = 1 if measure.higher_is_better else -1
    assert found.gain * sign > 0
    assert found.gain == pytest.approx(sign * (found.new - found.other))
    assert (found.least > 0) == (found.gain > 0) == (found.most > 0)
    assert found.least < found.gain < found.most
    assert measure.higher_is_better == (measure.name not in LESS_IS_BETTER)


@EVERY
def test_compared_with_itself_nothing_is_gained(measure: Measure) -> None:
    # Of the replies above one alone is fit, and one tells no interval.
    same = with_figures(measure, 1, 0, 1) if measure.pairing == "both_fit" else WHOLE
    found = change(same, same, measure, resamples=100)
    assert found is not None
    assert found.gain == 0
    assert found.new == found.other
    if measure.pairing == "plain":
        assert found.new == figure(same, measure, 100).value
    assert found.least <= 0 <= found.most


@EVERY
def test_the_other_way_round_the_gain_is_a_loss(measure: Measure) -> None:
    one, other = with_figures(measure, 1, 1, 0, 1, 1), with_figures(measure, 0, 1, 1, 0, 0)
    there, back = change(one, other, measure, resamples=500), change(other, one, measure, resamples=500)
    assert there is not None
    assert back is not None
    assert (there.gain, there.least, there.most) == pytest.approx((-back.gain, -back.most, -back.least))


def test_only_items_that_both_were_measured_on_are_compared() -> None:
    new, other = assessed("M2", nearness=[0.9, 0.8, None, 0.1]), assessed("M1", nearness=[0.7, 0.7, 0.6])
    found = change(new, other, measure_named("nearness"), resamples=100)
    assert found is not None
    assert (found.new, found.other, found.gain, found.n) == pytest.approx((0.85, 0.7, 0.15, 2))
    apart = assessed("M1", nearness=[None, None, 0.5])
    assert change(new, apart, measure_named("nearness")) is None


def test_differences_are_paired_item_by_item() -> None:
    # Whatever is hard is hard for both: the difference is the same everywhere, and so known exactly.
    hard = np.linspace(0, 5, 20)
    new, other = assessed("M2", loops=[False], nats=list(hard + 1)), assessed("M1", loops=[False], nats=list(hard + 2))
    found = change(new, other, measure_named("human_likelihood"), resamples=200)
    assert found is not None
    assert (found.gain, found.least, found.most) == pytest.approx((1, 1, 1))


def test_shares_are_compared_as_pairs_of_the_same_items() -> None:
    a, b = [1, 1, 0, 1, 0, 1], [1, 0, 0, 0, 1, 1]
    found = change(assessed("M2", loops=a), assessed("M1", loops=b), measure_named("loops"), confidence=0.9)
    ends = paired_shares(np.array(a, dtype=float), np.array(b, dtype=float), 0.8)
    assert found is not None
    assert (found.gain, found.least, found.most) == (-ends.value, -ends.high, -ends.low)
    # Nobody loops: that it cannot be worse is not known for that.
    never = assessed("M2", loops=[False] * 20)
    alike = change(never, never, measure_named("loops"))
    assert alike is not None
    assert alike.least < -0.01


@given(st.floats(0.6, 0.99), st.floats(0.6, 0.99))
@settings(max_examples=20)
def test_more_confidence_says_less(one: float, other: float) -> None:
    less, more = sorted([one, other])
    for name in ("closed_tasks", "verifiable"):
        a, b = with_figures(measure_named(name), 1, 1, 1, 0, 1), with_figures(measure_named(name), 0, 1, 0, 0, 1)
        wide, narrow = (change(a, b, measure_named(name), c, 100) for c in (more, less))
        assert wide is not None
        assert narrow is not None
        assert wide.least <= narrow.least + 1e-12
        assert wide.most >= narrow.most - 1e-12


# What two models' items tell of each other


def test_the_first_measure_is_whether_anything_is_wrong_and_two_signs_count_once() -> None:
    assert MEASURES[0].name == "unfit"
    every = {sign: [n in (place, 7) for n in range(9)] for place, sign in enumerate(SIGNS)}
    assert len(SIGNS) < 7
    assert figure(assessed("m", **every), measure_named("unfit")).value == pytest.approx((len(SIGNS) + 1) / 9)


def test_signs_excuse_each_other_nearness_asks_for_fit_replies_and_nothing_else_is_paired_otherwise() -> None:
    pairings = {measure.name: measure.pairing for measure in [*MEASURES, VARIETY] if measure.pairing != "plain"}
    assert pairings == {**dict.fromkeys(SIGNS, "excused"), "nearness": "both_fit"}
    assert [measure.name for measure in MEASURES if measure.lenient] == ["cut_off"]
    assert [(measure.name, measure.chance) for measure in MEASURES if measure.chance is not None] == [("judge", 0.5)]


def test_who_copies_the_prompt_gains_nothing_for_not_going_in_circles() -> None:
    copies, circles = assessed("M2", echoes=[True] * 4), assessed("M1", loops=[True] * 4)
    for new, other in ((copies, circles), (circles, copies)):
        for name in ("loops", "echoes", "unfit"):
            found = change(new, other, measure_named(name))
            assert found is not None
            assert (found.gain, found.n) == (0, 4)


def test_a_sign_counts_where_the_other_reply_is_fit_whichever_model_shows_it() -> None:
    # Circles beside a copy, beside a fit reply; a copy and a fit reply beside circles; both fit; both in circles.
    one = assessed("M2", loops=[True, True, False, False, False, True], echoes=[False, False, True])
    two = assessed("M1", loops=[False, False, True, True, False, True], echoes=[True])
    circles, copies = measure_named("loops"), measure_named("echoes")
    even = change(one, two, circles)
    assert even is not None
    assert (even.gain, even.n) == (0, 6)
    ends = paired_shares(np.array([0.0, 1, 0, 0, 0, 0]), np.array([0.0, 0, 0, 1, 0, 0]), 0.9)
    assert (even.least, even.most) == pytest.approx((-ends.high, -ends.low))
    nothing = change(one, two, copies)
    assert nothing is not None
    # Shown as each is; held against each other nothing is left.
    assert (nothing.new, nothing.other) == pytest.approx((1 / 6, 1 / 6))
    assert nothing.gain == 0
    fit = assessed("M0", loops=[False] * 6)
    for sign, count in ((circles, 3), (copies, 1)):
        worse, better = change(one, fit, sign), change(fit, one, sign)
        assert worse is not None
        assert better is not None
        assert (worse.gain, better.gain) == pytest.approx((-count / 6, count / 6))


def test_a_reply_that_is_wrong_in_two_ways_is_worse_than_a_fit_one_in_both() -> None:
    both, fit = assessed("M2", loops=[True, False], refuses=[True, False]), assessed("M1", loops=[False] * 2)
    for name in ("loops", "refuses", "unfit"):
        found = change(both, fit, measure_named(name))
        assert found is not None
        assert (found.new, found.other, found.gain) == (0.5, 0, -0.5)


def test_nearness_is_compared_where_both_replies_are_fit() -> None:
    near = measure_named("nearness")
    new = assessed("M2", nearness=[0.0] * 3 + [0.9] * 22, loops=[True] * 3)
    other = assessed("M1", nearness=[0.5] * 3 + [0.99] * 2 + [0.5] * 20, refuses=[False] * 3 + [True] * 2)
    found = change(new, other, near, resamples=50)
    assert found is not None
    assert (found.new, found.other, found.gain, found.n) == pytest.approx((0.9, 0.5, 0.4, 20))
    back = change(other, new, near, resamples=50)
    assert back is not None
    assert (back.gain, back.n) == pytest.approx((-0.4, 20))
    assert why_not_compared(other, new, near, 50) == ""
    circling = assessed("M2", nearness=[0.9] * 25, loops=[True] * 25)
    assert change(circling, other, near) is None
    assert why_not_compared(other, circling, near, 50) == "only 0 prompts have fit replies of both M2 and M1"


def test_too_few_prompts_with_fit_replies_tell_nothing_of_nearness() -> None:
    near = measure_named("nearness")
    new = assessed("M2", nearness=[0.9] * 25, loops=[True] * 3)
    other = assessed("M1", nearness=[0.5] * 25, refuses=[False] * 3 + [True] * 3)
    assert why_not_compared(other, new, near, 50) == "only 19 prompts have fit replies of both M2 and M1"
    assert why_not_compared(new, other, near, 50) == "only 19 prompts have fit replies of both M1 and M2"
    # That nobody measured it is another reason.
    assert why_not_compared(other, assessed("M2", loops=[False] * 30), near, 50) == ""
    assert why_not_compared(assessed("M1", loops=[False] * 30), new, near, 50) == ""


@pytest.mark.parametrize(
    ("right", "untold"),
    [
        (30, ""),
        (27, ""),
        (26, "M1 does no better than chance (50.0%)"),
        (20, "M1 does no better than chance (50.0%)"),
        (2, "M1 does no better than chance (50.0%)"),
    ],
)
def test_who_does_not_provably_judge_better_than_chance_has_nothing_to_lose(right: int, untold: str) -> None:
    def judges(name: str, count: int) -> Assessment:
        return assessed(name, loops=[False], scores=[(1, 0)] * count + [(0, 1)] * (40 - count))

    assert (exact_interval(right, 40)[0] > 0.5) == (not untold)
    for mine in (0, 20, 40):
        assert why_not_compared(judges("M1", right), judges("M2", mine), measure_named("judge"), 100) == untold
    assert why_not_compared(assessed("M1", loops=[False]), judges("M2", 40), measure_named("judge"), 100) == ""


@EVERY
def test_a_comparison_tells_something_unless_chance_or_unfit_replies_forbid(measure: Measure) -> None:
    alike = with_figures(measure, *[0] * 3)
    assert bool(why_not_compared(alike, alike, measure, 50)) == (measure.name in ("judge", "nearness"))


@pytest.mark.parametrize(
    ("value", "unit", "text"), [(0.1234, "share", "12.3%"), (0.1234, "cosine", "0.123"), (1.234, "nats", "1.23 nats")]
)
def test_figures_have_their_units(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text  # type: ignore[arg-type]


def test_measures_are_found_by_their_names_which_are_all_different() -> None:
    assert len({measure.name for measure in MEASURES}) == len(MEASURES)
    assert all(measure_named(measure.name) is measure for measure in MEASURES)
    assert {measure.name for measure in MEASURES} >= set(SIGNS)
    with pytest.raises(KeyError):
        measure_named("beauty")
