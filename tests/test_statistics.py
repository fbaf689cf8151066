import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from srlm_pipeline.evaluation.statistics import bootstrap_interval, sign_test

GROUPS = st.lists(
    st.lists(st.sampled_from([0.0, 0.5, 1.0]) | st.floats(-10, 10), min_size=1, max_size=4), min_size=1, max_size=8
).map(lambda groups: [np.array(g) for g in groups])


@pytest.mark.parametrize(
    ("wins", "losses", "p_value"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (1, 5, 14 / 64), (9, 1, 22 / 1024), (7, 7, 1.0)],
)
def test_p_values_worked_by_hand(wins: int, losses: int, p_value: float) -> None:
    assert sign_test(wins, losses) == pytest.approx(p_value)


@given(st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
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
@settings(max_examples=60, deadline=None)
def test_interval_lies_between_the_extreme_group_means(groups: list[np.ndarray]) -> None:
    low, high = bootstrap_interval(groups, resamples=200)
    means = [float(g.mean()) for g in groups]
    assert low <= high
    assert min(means) - 1e-9 <= low
    assert high <= max(means) + 1e-9


@given(GROUPS, st.floats(0.5, 4), st.floats(-5, 5))
@settings(max_examples=60, deadline=None)
def test_interval_moves_with_scale_and_shift(groups: list[np.ndarray], scale: float, shift: float) -> None:
    low, high = bootstrap_interval(groups, resamples=200)
    moved = bootstrap_interval([scale * g + shift for g in groups], resamples=200)
    assert moved == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-6)
