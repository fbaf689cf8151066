from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_pipeline.evaluation.judge_accuracy import agreement_by_prompt, measure_judge
from srlm_pipeline.tables import JUDGE_ACCURACY, check_table

SCORES = st.none() | st.sampled_from([0.0, 2.0, 2.5, 5.0])


def judged(*rows: tuple[str, int, int, float | None]) -> pd.DataFrame:
    full = [("m1", *row) for row in rows]
    return check_table(pd.DataFrame(full, columns=list(JUDGE_ACCURACY.columns)), JUDGE_ACCURACY)


@st.composite
def judged_tables(draw: st.DrawFn) -> pd.DataFrame:
    rows = []
    for group in range(draw(st.integers(1, 4))):
        replies = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), SCORES), min_size=1, max_size=4))
        rows += [(f"g{group}", *reply) for reply in replies]
    return judged(*rows)


def test_figures_of_one_group_worked_by_hand() -> None:
    result = measure_judge(judged(("g", 0, 30, 4.0), ("g", 1, 20, 1.0), ("g", 2, 25, 2.0)))
    assert (result.n_groups, result.n_pairs, result.parse_rate) == (1, 3, 1.0)
    assert result.pairwise_accuracy == pytest.approx(2 / 3)
    assert (result.spearman, result.kendall) == pytest.approx((1 / 2, 1 / 3))
    assert (result.exact_match, result.five_best) == (0.0, None)
    # Pairs whose better reply is longer: 30-20 and 30-25, both right; shorter: 20-25, wrong.
    assert result.length_baseline == pytest.approx(2 / 3)
    assert (result.accuracy_better_is_longer, result.accuracy_better_is_shorter) == (1.0, 0.0)
    assert result.length_balanced_accuracy == 0.5
    assert (result.pairwise_low, result.pairwise_high) == (None, None), "one prompt tells no interval"


def test_accuracy_is_a_share_of_pairs_and_correlation_a_mean_over_prompts() -> None:
    result = measure_judge(
        judged(("g", 0, 1, 5), ("g", 1, 1, 3), ("g", 2, 1, 1), ("h", 0, 1, 1), ("h", 1, 1, 2)),
    )
    assert result.pairwise_accuracy == pytest.approx(3 / 4)
    assert (result.spearman, result.kendall, result.exact_match) == pytest.approx((0.0, 0.0, 1 / 2))
    assert (result.pairwise_low, result.pairwise_high) == (0.0, 1.0)


def test_judge_without_an_opinion_reaches_one_half() -> None:
    one = (("g", 0, 9, 3), ("g", 1, 5, 3), ("g", 2, 7, 3))
    result = measure_judge(judged(*one, *(("h", *rest) for _, *rest in one)))
    assert (result.pairwise_accuracy, result.pairwise_low, result.pairwise_high) == (0.5, 0.5, 0.5)
    assert (result.spearman, result.kendall, result.exact_match) == (0.0, 0.0, 0.0)


def test_replies_that_humans_rank_equal_are_not_compared() -> None:
    result = measure_judge(judged(("g", 0, 1, 1), ("g", 0, 1, 5), ("g", 1, 1, 0)))
    assert (result.n_pairs, result.pairwise_accuracy, result.exact_match) == (2, 1.0, 1.0)


def test_pairs_without_two_scores_count_half_and_spoil_the_exact_match() -> None:
    result = measure_judge(judged(("g", 0, 1, 4), ("g", 1, 1, None), ("g", 2, 1, 2), ("h", 0, 1, 3), ("h", 1, 1, 1)))
    # Of four pairs two are right and two have no opinion; among the scores alone the order is the humans'.
    assert (result.n_pairs, result.pairwise_accuracy, result.spearman) == pytest.approx((4, 3 / 4, 1))
    assert (result.parse_rate, result.exact_match) == (0.8, 0.5)


def test_judge_that_cannot_be_read_reaches_one_half() -> None:
    result = measure_judge(judged(("g", 0, 9, None), ("g", 1, 5, None), ("h", 0, 1, 3), ("h", 1, 2, None)))
    assert (result.n_pairs, result.pairwise_accuracy, result.parse_rate) == (2, 0.5, 0.25)
    assert (result.spearman, result.kendall, result.exact_match) == (None, None, 0.0)
    # Of length it is known all the same.
    assert result.length_baseline == 0.5


def test_replies_that_nobody_could_have_ordered_right_are_no_exact_match() -> None:
    assert measure_judge(judged(("g", 0, 1, 4), ("g", 0, 1, 5))).exact_match == 0.0


def test_judge_that_only_sees_length_is_found_out() -> None:
    lengths = [(9, 5, 3), (9, 6, 1), (2, 8, 9)]
    table = judged(*((f"g{g}", r, n, n / 2) for g, own in enumerate(lengths) for r, n in enumerate(own)))
    result = measure_judge(table)
    assert result.pairwise_accuracy == result.length_baseline == pytest.approx(2 / 3)
    assert result.length_balanced_accuracy == 0.5


def test_balance_needs_pairs_of_both_kinds() -> None:
    result = measure_judge(judged(("g", 0, 9, 4), ("g", 1, 5, 1), ("g", 2, 5, 2)))
    assert (result.accuracy_better_is_longer, result.accuracy_better_is_shorter) == (1.0, None)
    assert result.length_balanced_accuracy is None
    assert result.length_baseline == pytest.approx(5 / 6)


def test_of_perfect_scores_the_share_ranked_top_is_counted() -> None:
    result = measure_judge(
        judged(("g", 0, 1, 4.4), ("g", 1, 1, 4.6), ("h", 0, 1, 5), ("h", 0, 1, 4.9), ("h", 2, 1, None), ("i", 3, 1, 5))
    )
    assert result.five_best == pytest.approx(3 / 4)


def test_perfect_score_is_not_top_because_the_best_reply_could_not_be_read() -> None:
    assert measure_judge(judged(("g", 0, 1, None), ("g", 1, 1, 5))).five_best == 0.0


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [("g", 0, 1, None), ("g", 0, 1, None)],
        [("g", 0, 1, 3.0), ("h", 0, 1, 2.0)],
        [("g", 1, 1, 3.0), ("g", 1, 1, 2.0)],
    ],
)
def test_what_could_not_be_compared_is_none_and_no_metric(rows: list[Any]) -> None:
    result = measure_judge(judged(*rows))
    assert result.n_pairs == 0
    missing = {"pairwise_accuracy", "pairwise_low", "pairwise_high", "length_baseline", "spearman", "kendall"}
    assert all(getattr(result, name) is None for name in missing)
    assert not missing & set(result.metrics())
    assert result.metrics()["parse_rate"] == result.parse_rate


@given(judged_tables())
@settings(max_examples=25)
def test_opposite_scores_give_the_opposite_agreement(table: pd.DataFrame) -> None:
    one, other = measure_judge(table), measure_judge(table.assign(score=5 - table["score"]))
    assert (one.n_pairs, one.length_baseline, one.parse_rate) == (
        other.n_pairs,
        other.length_baseline,
        other.parse_rate,
    )
    for name, total in (("pairwise_accuracy", 1), ("accuracy_better_is_longer", 1), ("spearman", 0), ("kendall", 0)):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        assert a is None or a + b == pytest.approx(total)


@given(judged_tables(), st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_order_of_rows_is_irrelevant(table: pd.DataFrame, random: Any) -> None:
    order = list(range(len(table)))
    random.shuffle(order)
    assert measure_judge(table.iloc[order]).metrics() == pytest.approx(measure_judge(table).metrics())


@given(st.permutations(range(5)))
@settings(max_examples=25)
def test_without_ties_kendall_is_accuracy_stretched_to_minus_one(scores: list[int]) -> None:
    result = measure_judge(judged(*(("g", rank, 1, float(score)) for rank, score in enumerate(scores))))
    assert result.kendall == pytest.approx(2 * result.pairwise_accuracy - 1)
    assert result.exact_match == float(scores == [4, 3, 2, 1, 0])


def test_agreement_by_prompt_keeps_every_human_ordered_pair() -> None:
    table = judged(("g", 0, 30, 4.0), ("g", 1, 20, 1.0), ("g", 1, 25, None), ("h", 0, 9, 2.0), ("h", 1, 9, 3.0))
    found = agreement_by_prompt(table)
    assert {group: right.tolist() for group, right in found.items()} == {"g": [1.0, 0.5], "h": [0.0]}


@given(judged_tables())
def test_agreement_by_prompt_and_pairwise_accuracy_are_the_same_figure(table: pd.DataFrame) -> None:
    pairs = [right for of_group in agreement_by_prompt(table).values() for right in of_group]
    accuracy = measure_judge(table).pairwise_accuracy
    assert accuracy == (pytest.approx(sum(pairs) / len(pairs)) if pairs else None)
