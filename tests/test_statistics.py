import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from simulations import simulated_results

from srlm_pipeline.evaluation.statistics import (
    bootstrap_interval,
    effective_votes,
    paired_difference,
    paired_shares,
    pairwise_agreement,
    sign_test,
    win_rate_interval,
)

COUNTS = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
GROUPS = st.lists(
    st.lists(st.sampled_from([0.0, 0.5, 1.0]) | st.floats(-10, 10), min_size=1, max_size=4), min_size=2, max_size=8
).map(lambda groups: [np.array(g) for g in groups])


@pytest.mark.parametrize(
    ("wins", "losses", "p_value"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (1, 5, 14 / 64), (9, 1, 22 / 1024), (7, 7, 1.0)],
)
def test_p_values_worked_by_hand(wins: int, losses: int, p_value: float) -> None:
    assert sign_test(wins, losses) == pytest.approx(p_value)


@given(st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=60)
def test_p_value_is_twice_the_smaller_binomial_tail(wins: int, losses: int) -> None:
    total = wins + losses
    tail = sum(math.comb(total, k) for k in range(min(wins, losses) + 1)) / 2**total
    assert sign_test(wins, losses) == pytest.approx(min(1.0, 2 * tail))
    assert sign_test(losses, wins) == pytest.approx(sign_test(wins, losses))


def test_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).normal(0.4, 1, 60)
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=8000, rng=1).confidence_interval
    interval = bootstrap_interval([np.array([v]) for v in values], resamples=8000)
    assert interval == pytest.approx((expected.low, expected.high), abs=0.02)


def test_interval_is_of_the_mean_over_values_not_over_groups() -> None:
    # Draws of the two groups: both the large one (0), both the small one (1), or one of each: 3 of 12 values.
    groups = [np.zeros(9), np.ones(3)]
    resampled = {0.0, 0.25, 1.0}
    low, high = bootstrap_interval(groups, resamples=1)
    assert low == high
    assert low in resampled
    assert {bootstrap_interval(groups, resamples=1, seed=s)[0] for s in range(20)} == resampled
    assert bootstrap_interval(groups) == (0.0, 1.0)


@pytest.mark.parametrize("groups", [[], [np.ones(3)]])
def test_one_prompt_has_no_interval(groups: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="an interval takes two"):
        bootstrap_interval(groups)
    if groups:
        with pytest.raises(ValueError, match="an interval takes two"):
            paired_difference(groups, groups)


def test_only_the_tails_are_left_out() -> None:
    # All one hundred prompts lost but five: the resampled share is binomial with mean 0.05.
    groups = [np.array([float(n < 5)]) for n in range(100)]
    expected = (stats.binom.ppf(0.025, 100, 0.05) / 100, stats.binom.ppf(0.975, 100, 0.05) / 100)
    assert bootstrap_interval(groups, resamples=20000) == pytest.approx(expected, abs=0.0101)


def test_repeated_values_of_one_prompt_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=12)
    once = bootstrap_interval([np.array([v]) for v in values])
    tenfold = bootstrap_interval([np.full(10, v) for v in values])
    as_if_independent = bootstrap_interval([np.array([v]) for v in np.repeat(values, 10)])
    assert tenfold == pytest.approx(once)
    assert as_if_independent[1] - as_if_independent[0] < 0.6 * (once[1] - once[0])


def test_seed_decides_the_draws() -> None:
    groups = [np.array([v]) for v in np.random.default_rng(1).normal(size=15)]
    assert bootstrap_interval(groups, seed=4) == bootstrap_interval(groups, seed=4)
    assert bootstrap_interval(groups, seed=4) != bootstrap_interval(groups, seed=5)


@given(GROUPS)
@settings(max_examples=60)
def test_interval_lies_between_the_extreme_group_means(groups: list[np.ndarray]) -> None:
    low, high = bootstrap_interval(groups, resamples=200)
    means = [float(g.mean()) for g in groups]
    assert low <= high
    assert min(means) - 1e-9 <= low
    assert high <= max(means) + 1e-9


@given(GROUPS, st.floats(0.5, 4), st.floats(-5, 5))
@settings(max_examples=60)
def test_interval_moves_with_scale_and_shift(groups: list[np.ndarray], scale: float, shift: float) -> None:
    low, high = bootstrap_interval(groups, resamples=200)
    moved = bootstrap_interval([scale * g + shift for g in groups], resamples=200)
    assert moved == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-6)


def singles(values: np.ndarray | list[float]) -> list[np.ndarray]:
    return [np.array([float(v)]) for v in values]


def test_interval_of_few_groups_is_as_wide_as_it_must_be() -> None:
    # Percentiles without expansion hold the truth in 87 % of these cases.
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(500):
        low, high = bootstrap_interval([rng.normal(0.3, 1, 2) for _ in range(8)], resamples=500, seed=seed)
        held += low <= 0.3 <= high
    assert held / 500 >= 0.92


@pytest.mark.parametrize("n", [30, 60])
def test_win_rate_interval_holds_the_truth_as_often_as_it_says(n: int) -> None:
    """Every outcome of n prompts, weighed with its probability: no simulation."""
    outcomes = np.array([(w, n - w - x, x) for w in range(n + 1) for x in range(n + 1 - w)])
    ends = np.array([win_rate_interval(*map(int, outcome)) for outcome in outcomes])
    for better, ties in product((0.5, 0.6, 0.75, 0.9, 0.99), (0.0, 0.02, 0.2, 0.5, 0.9)):
        shares = np.array([(1 - ties) * better, ties, (1 - ties) * (1 - better)])
        weights = stats.multinomial.pmf(outcomes, n, shares)
        truth = shares[0] + ties / 2
        assert weights[ends[:, 0] > truth + 1e-12].sum() <= 0.025
        assert weights[(ends[:, 0] <= truth + 1e-12) & (ends[:, 1] >= truth - 1e-12)].sum() >= 0.945


@given(COUNTS)
@settings(max_examples=200)
def test_win_rate_interval_and_sign_test_say_the_same(counts: tuple[int, int, int]) -> None:
    wins, ties, losses = counts
    low, high = win_rate_interval(wins, ties, losses)
    assert (low > 0.5 or high < 0.5) == (sign_test(wins, losses) < 0.05)


@given(COUNTS)
@settings(max_examples=100)
def test_win_rate_interval_is_mirrored_when_the_sides_are_swapped(counts: tuple[int, int, int]) -> None:
    low, high = win_rate_interval(*counts)
    assert win_rate_interval(*counts[::-1]) == pytest.approx((1 - high, 1 - low))


@given(COUNTS.filter(any))
@settings(max_examples=100)
def test_win_rate_interval_lies_around_the_win_rate_and_narrows_with_prompts(counts: tuple[int, int, int]) -> None:
    wins, ties, _ = counts
    low, high = win_rate_interval(*counts)
    assert 0 <= low <= (wins + ties / 2) / sum(counts) <= high <= 1
    assert low < high
    surer, less_sure = win_rate_interval(*(4 * c for c in counts)), win_rate_interval(*counts, confidence=0.8)
    for inner in (surer, less_sure):
        assert inner[1] - inner[0] < high - low


@pytest.mark.parametrize(("wins", "losses"), [(0, 7), (3, 4), (30, 2), (250, 0)])
def test_without_ties_the_interval_is_nearly_clopper_and_pearsons(wins: int, losses: int) -> None:
    exact = stats.binomtest(wins, wins + losses).proportion_ci()
    low, high = win_rate_interval(wins, 0, losses)
    # Another match may have ties: what is wider, a little, is that.
    assert exact.low - 0.12 * (exact.high - exact.low) <= low <= exact.low + 1e-9
    assert exact.high - 1e-9 <= high <= exact.high + 0.12 * (exact.high - exact.low)


def test_win_rate_interval_of_uniform_results_worked_by_hand() -> None:
    # Clopper and Pearson: of 30 of 30 the true share is at least 0.025^(1/30).
    least = 0.025 ** (1 / 30)
    assert win_rate_interval(0, 0, 0) == (0.0, 1.0)
    assert win_rate_interval(0, 30, 0) == pytest.approx((0.5 - (1 - least) / 2, 0.5 + (1 - least) / 2))
    all_won = 1 - math.hypot(1 - least, (least - 0.5) * (1 - least))
    assert win_rate_interval(30, 0, 0) == pytest.approx((all_won, 1.0))


def lower_bounds_above_half(better: float, ties: float, prompts: int = 250, confidence: float = 0.95) -> float:
    results = simulated_results(1000, prompts, better, ties, seed=11)
    found = {tuple(r): win_rate_interval(*map(int, r), confidence)[0] > 0.5 for r in np.unique(results, axis=0)}
    return float(np.mean([found[tuple(r)] for r in results]))


@pytest.mark.parametrize("prompts", [30, 250])
@pytest.mark.parametrize("ties", [0.0, 0.2, 0.5])
@pytest.mark.parametrize(("confidence", "nominal"), [(0.95, 0.025), (0.9, 0.05)])
def test_equal_models_are_seldom_taken_for_better(ties: float, prompts: int, confidence: float, nominal: float) -> None:
    by_chance = 2 * math.sqrt(nominal * (1 - nominal) / 1000)
    assert lower_bounds_above_half(0.5, ties, prompts, confidence) <= nominal + by_chance
    assert lower_bounds_above_half(0.5, ties, prompts) <= 0.05


def test_a_better_model_is_found() -> None:
    assert lower_bounds_above_half(0.6, 0.0) >= 0.85
    # A win rate of 60 % with a fifth of ties: 62.5 % of the decided prompts.
    assert lower_bounds_above_half(0.625, 0.2) >= 0.85


def test_paired_difference_leaves_out_what_both_share() -> None:
    rng = np.random.default_rng(2)
    shared = rng.normal(0, 3, 40)
    a, b = singles(shared + 0.5 + rng.normal(0, 0.1, 40)), singles(shared)
    found = paired_difference(a, b)
    assert found.value == pytest.approx(0.5, abs=0.05)
    assert 0.4 < found.low < found.value < found.high < 0.6
    back = paired_difference(b, a)
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_paired_difference_of_pairs_is_that_of_differences() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.random(30), rng.random(30)
    low, high = bootstrap_interval(singles(a - b))
    assert paired_difference(singles(a), singles(b)) == pytest.approx(((a - b).mean(), low, high))


def test_paired_difference_weighs_groups_by_their_values() -> None:
    # Three of four against one of two; the second group could not be measured for b.
    a = [np.array([1.0, 1.0, 0.0]), np.array([1.0])]
    b = [np.array([1.0, 0.0]), np.array([])]
    assert paired_difference(a, b).value == pytest.approx(3 / 4 - 1 / 2)


def test_paired_difference_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        ease = rng.normal(size=20)
        a, b = ([rng.normal(e + lead, 1, n) for e in ease] for lead, n in ((0.2, 4), (0.0, 3)))
        found = paired_difference(a, b, resamples=500, seed=seed)
        held += found.low <= 0.2 <= found.high
    assert held / 300 >= 0.92


def test_paired_difference_with_more_confidence_is_wider() -> None:
    rng = np.random.default_rng(3)
    a, b = singles(rng.random(30)), singles(rng.random(30))
    one_sided, usual = paired_difference(a, b, confidence=0.9), paired_difference(a, b)
    assert one_sided.value == usual.value
    assert usual.low < one_sided.low < usual.value < one_sided.high < usual.high
    assert paired_difference(a, b, confidence=0.95) == usual


@pytest.mark.parametrize(("a", "b"), [([[1.0]], []), ([[1.0]], [[]]), ([], [])])
def test_nothing_cannot_be_paired(a: list[list[float]], b: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"paired|no value"):
        paired_difference([np.array(x) for x in a], [np.array(x) for x in b])


OUTCOMES = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1, max_size=60)


def test_paired_shares_worked_by_hand() -> None:
    # Of ten items three only the first has, one only the second.
    a, b = np.array([1.0] * 5 + [0.0] * 5), np.array([1.0] * 2 + [0.0] * 7 + [1.0])
    found = paired_shares(a, b)
    assert found.value == pytest.approx(0.2)
    # At both ends the score test is at its limit; the likeliest share is found by trying all.
    shares = np.linspace(1e-6, 1, 200001)
    for end, sign in ((found.low, 1), (found.high, -1)):
        possible = shares[(shares + end > 0) & (2 * shares + end < 1)]
        likelihood = 3 * np.log(possible + end) + np.log(possible) + 6 * np.log(1 - 2 * possible - end)
        share = possible[likelihood.argmax()]
        statistic = (3 - 1 - 10 * end) / math.sqrt(10 * (2 * share + end * (1 - end)))
        assert statistic == pytest.approx(sign * 1.96, abs=1e-3)


@given(OUTCOMES)
@settings(max_examples=60)
def test_paired_shares_are_mirrored_when_the_sides_are_swapped(outcomes: list[tuple[float, float]]) -> None:
    a, b = np.array(outcomes).T
    there, back = paired_shares(a, b), paired_shares(b, a)
    assert there == pytest.approx((-back.value, -back.high, -back.low))
    assert -1 <= there.low < there.high <= 1
    surer = paired_shares(a, b, 0.99)
    assert surer.low <= there.low
    assert surer.high >= there.high


def test_paired_shares_are_no_point_where_all_items_are_alike() -> None:
    nobody, everybody = np.zeros(40), np.ones(40)
    for alike in (nobody, everybody):
        found = paired_shares(alike, alike)
        assert found.value == 0
        assert found.low == -found.high < -0.03
    assert paired_shares(everybody, nobody).high == 1


@pytest.mark.parametrize(("only_first", "only_second"), [(0.02, 0.02), (0.1, 0.02), (0.3, 0.1), (0.25, 0.25)])
def test_paired_shares_hold_the_truth_about_as_often_as_they_say(only_first: float, only_second: float) -> None:
    rng = np.random.default_rng(8)
    truth, held, below, above = only_first - only_second, [], [], []
    for _ in range(1000):
        drawn = rng.random(150)
        # The rest of the items both have, or neither: which does not matter.
        a, b = drawn < only_first, (drawn >= only_first) & (drawn < only_first + only_second)
        found = paired_shares(a.astype(float), b.astype(float), 0.9)
        held.append(found.low <= truth <= found.high)
        below.append(found.high < truth)
        above.append(found.low > truth)
    assert np.mean(held) >= 0.9 - 2 * math.sqrt(0.9 * 0.1 / 1000)
    # Where hardly any item differs, one side errs more often than the other.
    assert max(np.mean(below), np.mean(above)) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1000) + 0.02


def test_shares_of_nothing_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        paired_shares(np.array([]), np.array([]))


def test_a_jury_of_twins_has_one_vote_and_independent_jurors_have_all() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(20_000, 1))
    assert effective_votes(np.repeat(one, 4, axis=1)) == pytest.approx(1)
    assert effective_votes(rng.normal(size=(20_000, 4))) == pytest.approx(4, rel=0.03)
    assert effective_votes(one) == 1


def test_effective_votes_worked_by_hand() -> None:
    # Correlation 1/2 between two: 4 / (2 + 2 * 1/2). With weights 3 and 1: 16 / (9 + 1 + 2 * 3 / 2).
    a, b = np.array([1.0, 1, -1, -1, 1, 1, -1, -1]), np.array([1.0, 1, -1, -1, 1, -1, 1, -1])
    votes = np.column_stack([a, b])
    assert effective_votes(votes) == pytest.approx(4 / 3)
    assert effective_votes(votes, [3, 1]) == pytest.approx(16 / 13)
    # Scales do not matter, nor does a juror who always says the same.
    assert effective_votes(np.column_stack([100 * a, b, np.ones(8)])) == pytest.approx(4 / 3)
    assert effective_votes(np.ones((8, 3))) == 0
    # Of jurors who judged different comparisons it is not known that they are independent.
    apart = np.array([[1, np.nan], [-1, np.nan], [np.nan, 1], [np.nan, -1]])
    assert effective_votes(apart) == 1


VOTES = (
    st.integers(1, 5)
    .flatmap(
        lambda jurors: st.lists(
            st.lists(st.sampled_from([-1.0, 0.0, 1.0, math.nan]), min_size=jurors, max_size=jurors),
            min_size=1,
            max_size=12,
        )
    )
    .map(np.array)
)


@given(VOTES, st.data())
@settings(max_examples=150)
def test_effective_votes_lie_between_one_and_the_number_of_jurors(votes: np.ndarray, data: st.DataObject) -> None:
    n = votes.shape[1]
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=n, max_size=n))
    varied = sum(len(np.unique(column[~np.isnan(column)])) > 1 for column in votes.T)
    found = effective_votes(votes, weights)
    assert found == 0 if varied == 0 else 1 - 1e-9 <= found <= varied + 1e-9


def test_agreement_of_jurors_worked_by_hand() -> None:
    verdicts = np.array([[1, 1, np.nan], [1, -1, np.nan], [0, 0, 1.0], [-1, -1, -1]])
    assert pairwise_agreement(verdicts) == pytest.approx(
        np.array([[1, 3 / 4, 1 / 2], [3 / 4, 1, 1 / 2], [1 / 2, 1 / 2, 1]])
    )
    apart = pairwise_agreement(np.array([[1, np.nan], [np.nan, 1]]))
    assert np.isnan(apart[0, 1])
    assert apart[0, 0] == 1
