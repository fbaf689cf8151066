"""Length control finds what simulated matches were made with."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special
from simulations import SimulatedMatch, simulated_match, true_win_rate

from srlm_pipeline.evaluation.length_control import LengthControlledWinRate, length_controlled_win_rate
from srlm_pipeline.evaluation.statistics import win_rate_interval

PROMPTS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 3000), st.integers(0, 3000)), min_size=1, max_size=30
)


def controlled(match: SimulatedMatch, confidence: float = 0.95) -> LengthControlledWinRate:
    return length_controlled_win_rate(match.points, match.lengths, match.opponent_lengths, confidence)


def test_a_model_that_is_only_longer_is_no_better() -> None:
    rng = np.random.default_rng(0)
    matches = [simulated_match(rng, 250, length_weight=1.6, longer_by=1) for _ in range(40)]
    found = [controlled(match) for match in matches]
    assert np.mean([match.points.mean() for match in matches]) > 0.67
    assert np.mean([f.win_rate for f in found]) == pytest.approx(0.5, abs=0.025)
    assert np.mean([f.length_weight for f in found]) == pytest.approx(1.6, abs=0.15)


def test_a_model_that_is_better_and_shorter_is_seen() -> None:
    rng = np.random.default_rng(1)
    matches = [simulated_match(rng, 250, lead=0.8, length_weight=1.6, longer_by=-1) for _ in range(40)]
    assert np.mean([match.points.mean() for match in matches]) < 0.52
    assert np.mean([controlled(match).win_rate for match in matches]) == pytest.approx(true_win_rate(0.8), abs=0.025)


def test_where_length_has_no_influence_little_changes() -> None:
    rng = np.random.default_rng(2)
    matches = [simulated_match(rng, 250, lead=0.4) for _ in range(40)]
    differences = [controlled(match).win_rate - match.points.mean() for match in matches]
    assert np.mean(differences) == pytest.approx(0, abs=0.003)
    assert np.abs(differences).max() < 0.02


def test_at_equal_lengths_it_is_the_win_rate_with_one_tie_more() -> None:
    found = length_controlled_win_rate([1.0] * 6 + [0.5] * 2 + [0.0] * 2, [100] * 10, [100] * 10)
    assert found.win_rate == pytest.approx((7 + 0.5) / 11)
    assert found.length_weight == pytest.approx(0)


def test_fit_agrees_with_another_way_to_compute_it() -> None:
    """The same penalised likelihood, written out and minimised by a general method."""
    match = simulated_match(np.random.default_rng(3), 60, lead=0.3, length_weight=1, longer_by=0.5, indecision=0.4)
    difference = match.lengths - match.opponent_lengths
    x = np.tanh(difference / difference.std(ddof=1))

    def loss(weights: np.ndarray) -> float:
        lead, slope = weights
        log_odds = lead + slope * x
        data = np.logaddexp(0, -log_odds) @ match.points + np.logaddexp(0, log_odds) @ (1 - match.points)
        tie_at_equal_length = (np.logaddexp(0, lead) + np.logaddexp(0, -lead)) / 2
        no_effect_of_length = np.logaddexp(0, slope) + np.logaddexp(0, -slope)
        return float(data + tie_at_equal_length + no_effect_of_length)

    best = optimize.minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}).x
    found = controlled(match)
    assert found.win_rate == pytest.approx(special.expit(best[0]), abs=1e-5)
    assert found.length_weight == pytest.approx(best[1], abs=1e-4)


def test_leaving_out_difficulty_changes_nothing_on_average() -> None:
    # Weights that AlpacaEval publishes for Mixtral-8x7B-Instruct-v0.1 against GPT-4 Turbo.
    lead, length_weight, difficulty_weight = -1.608, 1.765, 1.149
    rng = np.random.default_rng(4)
    found = []
    for _ in range(20):
        match = simulated_match(rng, 805, lead, length_weight, longer_by=-0.5, difficulty_weight=difficulty_weight)
        found.append(controlled(match).win_rate)
    truth = special.expit(lead + difficulty_weight * rng.normal(size=200_000)).mean()
    assert np.mean(found) == pytest.approx(truth, abs=0.015)


@pytest.mark.parametrize(
    ("prompts", "lead", "length_weight", "longer_by", "indecision"),
    [(30, 0.4, 1.6, 1, 0.5), (60, 0.0, 0.0, 0, 0.0), (100, 1.5, 1.6, 0.5, 0.5), (250, 0.0, 1.6, 1, 0.5)],
)
def test_interval_holds_the_truth_as_often_as_it_says(
    prompts: int, lead: float, length_weight: float, longer_by: float, indecision: float
) -> None:
    rng = np.random.default_rng(5)
    truth, held = true_win_rate(lead, indecision), 0
    for _ in range(300):
        found = controlled(simulated_match(rng, prompts, lead, length_weight, longer_by, indecision))
        held += found.low <= truth <= found.high
    assert held / 300 >= 0.92


def test_where_all_replies_are_longer_it_cannot_be_told_why_they_win() -> None:
    points, shorter = [1.0] * 190 + [0.0] * 60, np.random.default_rng(6).integers(500, 1500, 250)
    for longer in (shorter + 300, shorter + 300 + np.arange(250) % 5):
        found = length_controlled_win_rate(points, longer, shorter)
        assert found.low < 0.3
        assert found.high > 0.9
    low, high = win_rate_interval(190, 0, 60)
    assert 0.5 < low < high < 0.85


@pytest.mark.parametrize("n", [1, 2, 30, 250])
@pytest.mark.parametrize("longer_by", [-400, 0, 400])
def test_uniform_results_give_figures_that_can_be_believed(n: int, longer_by: int) -> None:
    theirs = np.random.default_rng(7).integers(500, 1500, n)
    mine = np.maximum(theirs + longer_by + np.random.default_rng(8).integers(-300, 300, n), 0)
    won = length_controlled_win_rate([1.0] * n, mine, theirs)
    assert 0.5 < won.win_rate < 1
    assert 0 < won.low < won.win_rate < won.high < 1
    undecided = length_controlled_win_rate([0.5] * n, mine, theirs)
    assert undecided.win_rate == pytest.approx(0.5)
    assert undecided.low < 0.5 < undecided.high


def test_results_that_length_alone_decides_are_taken_as_such() -> None:
    differences = np.array([-300, -200, -100, 100, 200, 300] * 20)
    found = length_controlled_win_rate((differences > 0).astype(float), 1000 + differences, [1000] * 120)
    assert found.win_rate == pytest.approx(0.5)
    assert 3 < found.length_weight < 20


def test_ties_leave_less_to_chance_than_wins_and_losses() -> None:
    # A tie at one half has no variance; without length differences the priors hardly count.
    widths = []
    for n_ties in (0, 300):
        points = [0.5] * n_ties + [1.0, 0.0] * ((400 - n_ties) // 2)
        found = length_controlled_win_rate(points, [9] * 400, [9] * 400)
        widths.append(special.logit(found.high) - special.logit(found.low))
    assert widths[1] / widths[0] == pytest.approx((100 / 400) ** 0.5, rel=0.02)


@given(PROMPTS)
@settings(max_examples=60)
def test_swapping_the_sides_mirrors_everything(prompts: list[tuple[float, int, int]]) -> None:
    points, mine, theirs = zip(*prompts, strict=True)
    one = length_controlled_win_rate(points, mine, theirs)
    other = length_controlled_win_rate([1 - p for p in points], theirs, mine)
    assert (other.win_rate, other.low, other.high) == pytest.approx(
        (1 - one.win_rate, 1 - one.high, 1 - one.low), abs=1e-6
    )
    assert other.length_weight == pytest.approx(one.length_weight, abs=1e-5)
    assert 0 < one.low <= one.win_rate <= one.high < 1


def test_more_confidence_is_a_wider_interval() -> None:
    match = simulated_match(np.random.default_rng(9), 100, lead=0.3)
    narrow, wide = controlled(match, 0.8), controlled(match, 0.99)
    assert wide.low < narrow.low < narrow.win_rate < narrow.high < wide.high


@pytest.mark.parametrize(("points", "mine", "theirs"), [([], [], []), ([1.0], [3], []), ([1.0], [3, 4], [5, 6])])
def test_a_match_needs_prompts_and_their_lengths(points: list[float], mine: list[int], theirs: list[int]) -> None:
    with pytest.raises(ValueError, match=r"prompts|lengths"):
        length_controlled_win_rate(points, mine, theirs)
