import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fakes import FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from srlm_pipeline.evaluation.arbiters import Comparison, ComparisonArbiter, ScoreArbiter
from srlm_pipeline.evaluation.head_to_head import HeadToHead, play_match, summarise
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.judging.judges import DistributionJudge
from srlm_pipeline.progress import NullProgress, ProgressReporter
from srlm_pipeline.tables import WIN_RATES, check_table

VERDICTS = st.tuples(st.sampled_from(["win", "tie", "loss"]), st.sampled_from(["win", "tie", "loss"]))
# Quarters, so that sums are exact.
QUARTERS = st.integers(-8, 8).map(lambda n: n / 4)


class FakeArbiter:
    """Prefers by a rule, plus so much for whatever stands first."""

    name = "fake"

    def __init__(self, better_by: Callable[[Comparison], float], for_first: float = 0.0) -> None:
        self._better_by, self._for_first = better_by, for_first
        self.seen: list[Comparison] = []

    def prefer_first(self, comparisons: Sequence[Comparison], progress: ProgressReporter) -> NDArray[np.float64]:
        self.seen += comparisons
        return np.array([self._better_by(c) + self._for_first for c in comparisons], dtype=float)


def by_length(comparison: Comparison) -> float:
    return float(len(comparison.first) - len(comparison.second))


def match(
    arbiter: FakeArbiter | ScoreArbiter | ComparisonArbiter,
    model: Sequence[str],
    opponent: Sequence[str],
    tie_margin: float = 0.0,
) -> tuple[pd.DataFrame, HeadToHead]:
    prompts = [(f"p{n}", f"prompt {n}") for n in range(len(model))]
    table, result = play_match(prompts, model, opponent, "m0", arbiter, NullProgress(), tie_margin)
    return check_table(table, WIN_RATES), result


def verdicts(table: pd.DataFrame) -> list[tuple[str, str]]:
    wide = table.pivot(index="prompt_id", columns="order", values="verdict")
    return list(zip(wide["model_first"], wide["opponent_first"], strict=True))


def counts(result: HeadToHead) -> tuple[int, int, int]:
    return result.wins, result.ties, result.losses


def table_of(*pairs: tuple[str, str]) -> pd.DataFrame:
    rows = [
        (f"p{n:03d}", "m0", order, verdict, 0.0, "[]")
        for n, pair in enumerate(pairs)
        for order, verdict in zip(("model_first", "opponent_first"), pair, strict=True)
    ]
    return check_table(pd.DataFrame(rows, columns=list(WIN_RATES.columns)), WIN_RATES)


def equally_long(table: pd.DataFrame) -> dict[str, tuple[int, int]]:
    return dict.fromkeys(table["prompt_id"], (10, 10))


def grades(prefix: str) -> list[int]:
    return [int(n) for n in re.findall(r"grade=(\d)", prefix)]


def weigh_score(prefix: str) -> list[float]:
    (grade,) = grades(prefix)
    return [0.5 if score == grade else 0.0 for score in range(6)]


def scoring(engine: FakeEngine, journal: Journal | None = None) -> ScoreArbiter:
    return ScoreArbiter(DistributionJudge(engine, "short"), journal)


def test_every_prompt_is_shown_in_both_orders_with_its_own_text() -> None:
    arbiter = FakeArbiter(by_length)
    match(arbiter, ["mine 0", "mine 1"], ["theirs 0", "theirs 1"])
    assert sorted(arbiter.seen, key=lambda c: (c.prompt, c.first)) == [
        Comparison("prompt 0", "mine 0", "theirs 0"),
        Comparison("prompt 0", "theirs 0", "mine 0"),
        Comparison("prompt 1", "mine 1", "theirs 1"),
        Comparison("prompt 1", "theirs 1", "mine 1"),
    ]


def test_better_replies_win_and_worse_ones_lose() -> None:
    table, result = match(FakeArbiter(by_length), ["long", "x", "same"], ["s", "longer", "size"])
    assert verdicts(table) == [("win", "win"), ("loss", "loss"), ("tie", "tie")]
    assert list(table["preference"]) == [3, 3, -5, -5, 0, 0]
    assert (counts(result), result.win_rate, result.disagreement) == ((1, 1, 1), 0.5, 0.0)


def test_contradicting_orders_are_a_tie_and_counted_as_disagreement() -> None:
    # First place wins prompt 0 and second place prompt 1, so that there is no bias on average to be calibrated away.
    def by_place(c: Comparison) -> float:
        return {"prompt 0": 1.0, "prompt 1": -1.0}.get(c.prompt, by_length(c))

    table, result = match(FakeArbiter(by_place), ["a", "b", "long"], ["c", "d", "x"])
    assert verdicts(table) == [("win", "loss"), ("loss", "win"), ("win", "win")]
    assert counts(result) == (1, 2, 0)
    assert (result.win_rate, result.disagreement) == pytest.approx((2 / 3, 2 / 3))


@pytest.mark.parametrize("bias", [100.0, -100.0])
def test_preference_for_a_place_is_calibrated_away_and_reported(bias: float) -> None:
    replies = ["long", "x", "longest"], ["s", "longer", "y"]
    fair, biased = match(FakeArbiter(by_length), *replies), match(FakeArbiter(by_length, bias), *replies)
    pd.testing.assert_frame_equal(biased[0], fair[0])
    assert counts(biased[1]) == (2, 0, 1)
    assert (fair[1].position_bias, biased[1].position_bias) == (0.0, math.copysign(1, bias))


def test_identical_replies_tie_whatever_the_arbiter_says() -> None:
    table, result = match(FakeArbiter(lambda c: 5.0 if c.prompt == "prompt 0" else -5.0), ["a", "b"], ["a", "c"])
    assert verdicts(table)[0] == ("tie", "tie")
    assert (counts(result), result.disagreement) == ((0, 2, 0), 0.5)


@pytest.mark.parametrize(
    ("margin", "expected"), [(0.0, (2, 0, 1)), (1.0, (1, 1, 1)), (2.0, (1, 2, 0)), (9.0, (0, 3, 0))]
)
def test_preferences_up_to_the_margin_are_ties(margin: float, expected: tuple[int, int, int]) -> None:
    _, result = match(FakeArbiter(by_length), ["aaaa", "aa", "a"], ["b", "b", "bbb"], margin)
    assert counts(result) == expected


def test_replies_and_prompts_must_be_equally_many() -> None:
    with pytest.raises(ValueError, match="zip"):
        play_match([("p", "text")], ["a", "b"], ["c"], "m0", FakeArbiter(by_length), NullProgress())


@given(st.lists(st.tuples(QUARTERS, QUARTERS), min_size=1, max_size=8), QUARTERS)
@settings(max_examples=25)
def test_opponents_result_is_the_mirror_image(preferences: list[tuple[float, float]], bias: float) -> None:
    # What the arbiter says when the first named reply of a prompt stands first, and when it stands second.
    told = {("m", n): a for n, (a, _) in enumerate(preferences)} | {("o", n): b for n, (_, b) in enumerate(preferences)}
    mine, theirs = ([f"{side} {n}" for n in range(len(preferences))] for side in "mo")

    def arbiter() -> FakeArbiter:
        return FakeArbiter(lambda c: told[c.first[0], int(c.first[2:])], bias)

    (_, one), (_, other) = match(arbiter(), mine, theirs), match(arbiter(), theirs, mine)
    assert counts(one) == counts(other)[::-1]
    assert sum(counts(one)) == len(preferences)
    assert one.win_rate + other.win_rate == pytest.approx(1)
    assert (one.low + other.high, one.high + other.low) == pytest.approx((1, 1))
    assert (one.p_value, one.disagreement) == pytest.approx((other.p_value, other.disagreement))


def test_figures_of_a_match_worked_by_hand() -> None:
    table = table_of(
        *[("win", "win")] * 5, ("loss", "loss"), ("win", "loss"), ("loss", "win"), ("tie", "tie"), ("win", "tie")
    )
    result = summarise(table, equally_long(table))
    assert counts(result) == (5, 4, 1)
    assert (result.win_rate, result.decided_win_rate, result.disagreement) == pytest.approx((0.7, 5 / 6, 0.2))
    assert result.p_value == pytest.approx(14 / 64)
    assert 0.4 < result.low < 0.7 < result.high < 0.95
    # Clopper and Pearson's interval of 5 out of 6, from their tables.
    assert (result.decided_low, result.decided_high) == pytest.approx((0.3588, 0.9958), abs=1e-4)


def test_match_without_a_decision_has_no_decided_win_rate() -> None:
    table = table_of(("tie", "tie"), ("win", "loss"))
    result = summarise(table, equally_long(table))
    assert (result.decided_win_rate, result.win_rate, result.p_value) == (None, 0.5, 1.0)
    assert result.low < 0.5 < result.high, "two prompts do not prove that the models are equal"
    assert result.length_controlled == pytest.approx(0.5)
    assert "decided_win_rate" not in result.metrics()
    assert result.metrics()["ties"] == 2.0


@given(st.lists(VERDICTS, min_size=1, max_size=10), st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_prompts_count_only_if_both_orders_say_so(pairs: list[tuple[str, str]], random) -> None:
    table = table_of(*pairs)
    result = summarise(table, equally_long(table))
    assert (result.wins, result.losses) == (pairs.count(("win", "win")), pairs.count(("loss", "loss")))
    assert result.ties == len(pairs) - result.wins - result.losses
    assert result.win_rate == pytest.approx((result.wins + result.ties / 2) / len(pairs))
    order = list(range(len(table)))
    random.shuffle(order)
    assert summarise(table.iloc[order], equally_long(table)) == result


def test_what_wins_by_length_alone_does_not_win_at_equal_length() -> None:
    longer = [("win", "win")] * 40 + [("loss", "loss")] * 20
    table = table_of(*longer)
    lengths = {key: (200, 100) if n < 40 else (100, 200) for n, key in enumerate(table["prompt_id"].unique())}
    result = summarise(table, lengths)
    assert result.win_rate == pytest.approx(2 / 3)
    assert result.length_controlled == pytest.approx(0.5, abs=0.1)


def test_comparison_arbiter_reads_the_log_odds_of_the_first_reply() -> None:
    engine = FakeEngine(weigh=lambda prefix: [0.6, 0.2] if grades(prefix) == [4, 1] else [0.1, 0.4])
    comparison = Comparison("the question", "grade=4", "grade=1")
    preferences = ComparisonArbiter(engine).prefer_first([comparison, comparison.swap()], NullProgress())
    assert preferences == pytest.approx([math.log(3), -math.log(4)])
    assert all("the question" in p and p.endswith("ASSISTANT Better response: ") for p in engine.prefixes)


def test_comparison_arbiter_is_finite_where_the_model_gives_no_probability() -> None:
    engine = FakeEngine(weigh=lambda prefix: [0.0, 0.0] if "neither" in prefix else [0.0, 1.0])
    comparisons = [Comparison("q", "neither", "x"), Comparison("q", "a", "b")]
    neither, second = ComparisonArbiter(engine).prefer_first(comparisons, NullProgress())
    assert neither == 0
    assert -np.inf < second < -100


def test_model_that_prefers_the_first_place_can_still_decide() -> None:
    def weigh(prefix: str) -> list[float]:
        first, second = grades(prefix)
        odds = math.exp((first - second) + 6)
        return [odds / (1 + odds), 1 / (1 + odds)]

    replies = ["grade=4", "grade=2", "grade=3"], ["grade=1", "grade=5", "grade=3 too"]
    table, result = match(ComparisonArbiter(FakeEngine(weigh=weigh)), *replies, tie_margin=1e-6)
    assert (counts(result), result.position_bias) == ((1, 1, 1), 1.0)
    assert list(table["preference"]) == pytest.approx([3, 3, -3, -3, 0, 0], abs=1e-9)


def test_score_arbiter_compares_expected_scores_and_judges_each_different_reply_once() -> None:
    engine = FakeEngine(weigh=weigh_score)
    table, result = match(scoring(engine), ["grade=4", "grade=2"], ["grade=1", "grade=2"])
    assert list(table["preference"]) == [3, 3, 0, 0]
    assert counts(result) == (1, 1, 0)
    assert len(engine.prefixes) == len(set(engine.prefixes)) == 3


def test_same_reply_to_another_prompt_is_judged_for_itself() -> None:
    engine = FakeEngine(weigh=lambda prefix: [0, 0, 0, 0, 0, 1] if "prompt 0" in prefix else [1, 0, 0, 0, 0, 0])
    comparisons = [Comparison(f"prompt {n}", "same", "other") for n in range(2)]
    assert list(scoring(engine).prefer_first(comparisons, NullProgress())) == [0, 0]
    assert len(engine.prefixes) == 4


def test_score_arbiter_judges_nothing_that_its_journal_holds(tmp_path: Path) -> None:
    first = FakeEngine(weigh=weigh_score)
    replies = ["grade=4", "grade=2"], ["grade=1", "grade=3"]
    before, _ = match(scoring(first, Journal(tmp_path)), *replies)
    again = FakeEngine(weigh=weigh_score)
    after, _ = match(scoring(again, Journal(tmp_path)), *replies)
    pd.testing.assert_frame_equal(after, before)
    assert (len(first.prefixes), again.prefixes) == (4, [])
    match(scoring(again, Journal(tmp_path)), ["grade=4", "grade=2"], ["grade=1", "grade=5"])
    assert [grades(prefix) for prefix in again.prefixes] == [[5]]


def test_reply_that_could_not_be_scored_is_preferred_to_nothing() -> None:
    engine = FakeEngine(weigh=lambda prefix: [0.0] * 6 if "unreadable" in prefix else weigh_score(prefix))
    _, result = match(scoring(engine), ["unreadable", "grade=3"], ["grade=5", "grade=1"])
    assert counts(result) == (1, 1, 0)


def test_equal_scores_of_different_replies_are_no_disagreement() -> None:
    scores = {"a": 0.1, "b": 0.2, "c": 0.0, "z": 0.0}
    arbiter = FakeArbiter(lambda c: scores[c.first] - scores[c.second])
    table, result = match(arbiter, ["a", "b", "c"], ["z", "z", "z"])
    assert verdicts(table)[2] == ("tie", "tie")
    assert result.disagreement == 0.0
