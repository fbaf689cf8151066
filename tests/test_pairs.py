from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_pipeline.config import PairSettings
from srlm_pipeline.preference.pairs import PairSelection, select, select_best_worst, select_positives
from srlm_pipeline.tables import JUDGED_SCORES, PREFERENCE_PAIRS, check_table

SCORES = st.none() | st.sampled_from([0.0, 1.0, 2.5, 3.0, 5.0]) | st.floats(0, 5)
COMPLETIONS = st.sampled_from(["", " ", "\n", "good", "bad", "long reply", "same", "same"]) | st.text(max_size=6)


def scored(
    *rows: tuple[str, int, str, float | None],
    signs: dict[int, str] | None = None,
    checked: dict[int, tuple[float, float | None]] | None = None,
) -> pd.DataFrame:
    """Candidates as prompt, sample, text and score; by the number of the sample, what is wrong with them, and what
    share of the checks they pass and what judges think of them."""
    full: list[dict[str, Any]] = [
        {
            "prompt_id": prompt_id,
            "sample": sample,
            "prompt": f"prompt of {prompt_id}",
            "completion": completion,
            "n_tokens": 3,
            "finish_reason": "length" if sample % 2 else "stop",
            "signs": (signs or {}).get(sample, ""),
            "judge": "judge@abc",
            "score": score,
            "n_valid": int(score is not None),
            "n_invalid": int(score is None),
            "spread": None,
            "disagreement": None,
            "passed": (checked or {}).get(sample, (None, None))[0],
            "opinion": (checked or {}).get(sample, (None, None))[1],
            "raw": "[]",
        }
        for prompt_id, sample, completion, score in rows
    ]
    return check_table(pd.DataFrame(full, columns=list(JUDGED_SCORES.columns)), JUDGED_SCORES)


SIGNS = st.sampled_from(["loops", "echoes,cut_off", "cut_off"])


@st.composite
def judged_tables(draw: st.DrawFn) -> pd.DataFrame:
    rows = []
    signs = draw(st.dictionaries(st.integers(0, 4), SIGNS, max_size=4))
    for prompt in range(draw(st.integers(0, 4))):
        candidates = draw(st.lists(st.tuples(COMPLETIONS, SCORES), min_size=1, max_size=5))
        rows += [(f"p{prompt}", sample, text, score) for sample, (text, score) in enumerate(candidates)]
    return scored(*rows, signs=signs)


def usable_candidates(table: pd.DataFrame, prompt_id: str) -> dict[str, float]:
    own = table[(table["prompt_id"] == prompt_id) & table["score"].notna()].sort_values("sample", ascending=False)
    return {str(r.completion): float(r.score) for r in own.itertuples() if str(r.completion).strip()}


def same(one: PairSelection, other: PairSelection) -> bool:
    counts = (one.n_prompts, one.n_ties, one.n_too_few_valid) == (other.n_prompts, other.n_ties, other.n_too_few_valid)
    return counts and one.pairs.equals(other.pairs)


def test_best_is_paired_with_worst() -> None:
    selection = select_best_worst(
        scored(("p", 0, "mid", 3), ("p", 1, "worst", 1), ("p", 2, "best", 5), ("p", 3, "low", 2))
    )
    (pair,) = selection.pairs.to_dict("records")
    assert (pair["chosen"], pair["rejected"]) == ("best", "worst")
    assert (pair["chosen_score"], pair["rejected_score"], pair["margin"]) == (5, 1, 4)
    assert (pair["chosen_finish_reason"], pair["rejected_finish_reason"]) == ("stop", "length")
    assert (pair["prompt_id"], pair["prompt"], pair["judge"]) == ("p", "prompt of p", "judge@abc")
    assert (selection.n_prompts, selection.n_ties, selection.n_too_few_valid) == (1, 0, 0)


def test_equal_scores_are_a_tie() -> None:
    selection = select_best_worst(scored(("p", 0, "a", 3), ("p", 1, "b", 3)))
    assert selection.pairs.empty
    assert (selection.n_ties, selection.tie_rate) == (1, 1.0)


@pytest.mark.parametrize(("margin", "n_pairs"), [(0.0, 1), (0.75, 1), (1.0, 0), (2.0, 0)])
def test_differences_up_to_the_margin_are_ties(margin: float, n_pairs: int) -> None:
    selection = select_best_worst(scored(("p", 0, "a", 3), ("p", 1, "b", 2)), margin)
    assert (len(selection.pairs), selection.n_ties) == (n_pairs, 1 - n_pairs)


@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
def test_empty_replies_are_neither_chosen_nor_rejected(blank: str) -> None:
    selection = select_best_worst(
        scored(("p", 0, blank, 0), ("p", 1, "a", 2), ("p", 2, "b", 4), ("p", 3, blank + " ", 5))
    )
    (pair,) = selection.pairs.to_dict("records")
    assert (pair["chosen"], pair["rejected"]) == ("b", "a")


def test_reply_without_score_is_not_taken_for_a_bad_one() -> None:
    selection = select_best_worst(scored(("p", 0, "unread", None), ("p", 1, "a", 2), ("p", 2, "b", 4)))
    assert set(selection.pairs[["chosen", "rejected"]].to_numpy().ravel()) == {"a", "b"}


def test_prompt_with_one_scored_reply_gives_no_pair_and_is_no_tie() -> None:
    selection = select_best_worst(scored(("p", 0, "a", 5), ("p", 1, "b", None), ("q", 0, "x", 1), ("q", 1, "y", 2)))
    assert list(selection.pairs["prompt_id"]) == ["q"]
    assert (selection.n_prompts, selection.n_ties, selection.n_too_few_valid, selection.tie_rate) == (2, 0, 1, 0.0)


def test_repeated_reply_is_not_paired_with_itself() -> None:
    selection = select_best_worst(scored(("p", 0, "same", 1), ("p", 1, "same", 5)))
    assert selection.pairs.empty
    assert selection.n_too_few_valid == 1


def test_among_equal_scores_the_lower_sample_is_taken() -> None:
    rows = [("p", 3, "d", 1), ("p", 0, "a", 5), ("p", 2, "c", 5), ("p", 1, "b", 1)]
    for order in (rows, rows[::-1]):
        (pair,) = select_best_worst(scored(*order)).pairs.to_dict("records")
        assert (pair["chosen"], pair["rejected"]) == ("a", "b")


def test_no_candidates_give_an_empty_table_with_the_declared_columns() -> None:
    selection = select_best_worst(scored())
    assert (len(selection.pairs), selection.n_prompts, selection.tie_rate) == (0, 0, 0.0)
    assert list(check_table(selection.pairs, PREFERENCE_PAIRS).columns) == list(PREFERENCE_PAIRS.columns)


def test_judged_table_is_not_changed() -> None:
    table = scored(("p", 1, "a", 3), ("p", 0, "b", 2))
    before = table.copy()
    select_best_worst(table)
    pd.testing.assert_frame_equal(table, before)


@given(judged_tables(), st.sampled_from([0.0, 0.5, 2.0]))
@settings(max_examples=60)
def test_chosen_scores_more_than_rejected_and_both_have_their_own_score(table: pd.DataFrame, margin: float) -> None:
    selection = select_best_worst(table, margin)
    pairs = check_table(selection.pairs, PREFERENCE_PAIRS)
    for pair in pairs.itertuples():
        usable = usable_candidates(table, str(pair.prompt_id))
        assert pair.chosen_score > pair.rejected_score
        assert pair.margin > margin
        assert pair.chosen != pair.rejected
        assert usable[str(pair.chosen)] == pair.chosen_score == max(usable.values())
        assert usable[str(pair.rejected)] == pair.rejected_score == min(usable.values())


@given(judged_tables(), st.sampled_from([0.0, 0.5]))
@settings(max_examples=60)
def test_every_prompt_is_a_pair_a_tie_or_has_too_few_scores(table: pd.DataFrame, margin: float) -> None:
    selection = select_best_worst(table, margin)
    ids = list(table["prompt_id"].unique())
    usable = {prompt_id: usable_candidates(table, prompt_id) for prompt_id in ids}
    too_few = [i for i in ids if len(usable[i]) < 2]
    ties = [i for i in ids if i not in too_few and max(usable[i].values()) - min(usable[i].values()) <= margin]
    assert (selection.n_prompts, selection.n_too_few_valid, selection.n_ties) == (len(ids), len(too_few), len(ties))
    assert set(selection.pairs["prompt_id"]) == set(ids) - set(too_few) - set(ties)
    assert 0 <= selection.tie_rate <= 1


@given(judged_tables(), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_order_of_rows_is_irrelevant(table: pd.DataFrame, random: Any) -> None:
    order = list(range(len(table)))
    random.shuffle(order)
    shuffled = table.iloc[order]
    assert same(select_best_worst(table), select_best_worst(shuffled))
    assert same(select_best_worst(table), select_best_worst(shuffled.reset_index(drop=True)))


def test_row_labels_are_irrelevant() -> None:
    table = scored(("p", 0, "a", 5), ("p", 1, "b", 1), ("p", 2, "c", 3))
    labelled = table.set_axis([0, 0, 0])
    assert same(select_best_worst(table), select_best_worst(labelled))


def test_length_control_takes_the_shortest_of_the_best_and_the_longest_of_the_worst() -> None:
    table = scored(
        ("p", 0, "best and long, by far the longest of all", 5.0),
        ("p", 1, "nearly best", 4.6),
        ("p", 2, "bad", 1.0),
        ("p", 3, "bad, at length", 1.4),
        ("p", 4, "mid", 3.0),
    )
    chosen = [
        tuple(select_best_worst(table, 0.0, rho).pairs.loc[0, ["chosen_sample", "rejected_sample", "length_control"]])
        for rho in (0.0, 0.05, 0.11)
    ]
    assert chosen == [(0, 2, 0.0), (0, 2, 0.05), (1, 3, 0.11)]
    (pair,) = select_best_worst(table, 0.5, 0.11).pairs.to_dict("records")
    assert pair["margin"] == pytest.approx(4.6 - 1.4), "of the replies that are compared, not of the extremes"
    assert (pair["min_margin"], pair["strategy"]) == (0.5, "best_worst")


@given(judged_tables(), st.floats(0, 0.49))
@settings(max_examples=60)
def test_length_control_never_lengthens_the_chosen_or_shortens_the_rejected(table: pd.DataFrame, rho: float) -> None:
    plain, controlled = (select_best_worst(table, 0.0, r).pairs.set_index("prompt_id") for r in (0.0, rho))
    assert list(plain.index) == list(controlled.index), "with a margin of nought no pair is lost"
    for prompt_id, pair in controlled.iterrows():
        usable = usable_candidates(table, str(prompt_id))
        best, worst = max(usable.values()), min(usable.values())
        assert pair["chosen_score"] >= best - rho * (best - worst)
        assert pair["rejected_score"] <= worst + rho * (best - worst)
        assert pair["chosen_score"] > pair["rejected_score"]
        if rho:
            assert len(pair["chosen"]) <= len(plain.loc[prompt_id, "chosen"])
            assert len(pair["rejected"]) >= len(plain.loc[prompt_id, "rejected"])


def test_an_unfit_reply_is_scored_like_any_other_unless_it_is_to_be_rejected() -> None:
    table = scored(("p", 0, "fit", 2.0), ("p", 1, "in circles", 5.0), ("p", 2, "bad", 1.0), signs={1: "loops"})
    (plain,) = select(table, PairSettings()).pairs.to_dict("records")
    assert (plain["chosen"], plain["rejected"], plain["rejected_for"]) == ("in circles", "bad", "")
    (pair,) = select(table, PairSettings(unfit="rejected")).pairs.to_dict("records")
    assert (pair["chosen"], pair["rejected"], pair["rejected_for"]) == ("fit", "in circles", "loops")
    assert pair["margin"] == -3.0


def test_a_reply_that_was_only_cut_off_is_not_chosen_and_rejected_for_its_score_alone() -> None:
    replies = [("p", 0, "whole", 2.0), ("p", 1, "cut", 5.0), ("p", 2, "bad", 1.0)]
    (pair,) = select_best_worst(scored(*replies, signs={1: "cut_off"}), unfit="rejected").pairs.to_dict("records")
    assert (pair["chosen"], pair["rejected"], pair["rejected_for"]) == ("whole", "bad", "")
    better = scored(*replies[:2], signs={1: "cut_off"})
    assert select_best_worst(better, unfit="rejected").n_ties == 1, "it is no worse than what could be chosen"
    looping = scored(*replies, signs={1: "loops,cut_off"})
    (pair,) = select_best_worst(looping, unfit="rejected").pairs.to_dict("records")
    assert (pair["rejected"], pair["rejected_for"]) == ("cut", "loops,cut_off")


def test_where_every_reply_is_fit_scores_decide_and_where_none_is_there_is_no_pair() -> None:
    fit = scored(("p", 0, "good", 4.0), ("p", 2, "bad", 1.0))
    assert same(select_best_worst(fit, unfit="rejected"), select_best_worst(fit))
    none = scored(("p", 0, "good", 4.0), ("p", 2, "bad", 1.0), signs={0: "loops", 2: "echoes"})
    selection = select_best_worst(none, unfit="rejected")
    assert selection.pairs.empty
    assert (selection.n_unfit, selection.n_ties, selection.tie_rate) == (1, 0, 0.0)


@given(judged_tables(), st.sampled_from([0.0, 0.5]), st.sampled_from([0.0, 0.3]))
@settings(max_examples=60)
def test_no_unfit_reply_is_chosen_and_some_unfit_one_is_rejected_where_there_is_one(
    table: pd.DataFrame, margin: float, rho: float
) -> None:
    selection = select_best_worst(table, margin, rho, "rejected")
    pairs = check_table(selection.pairs, PREFERENCE_PAIRS)
    signs = {(r.prompt_id, r.sample): r.signs for r in table.itertuples()}
    for pair in pairs.itertuples():
        assert signs[pair.prompt_id, pair.chosen_sample] == ""
        wrong = signs[pair.prompt_id, pair.rejected_sample]
        assert pair.rejected_for == ("" if wrong == "cut_off" else wrong)
        assert pair.rejected_for or pair.margin > margin
    found = len(pairs) + selection.n_ties + selection.n_too_few_valid + selection.n_unfit
    assert found == selection.n_prompts


def test_a_checked_pair_needs_program_and_judge() -> None:
    """The judge likes `flattery`, which fails; the program lets `dull` pass, which the judge dislikes."""
    rows = [("p", 0, "flattery", 3.5), ("p", 1, "dull", 3.0), ("p", 2, "good", 4.5), ("p", 3, "bad", 1.0)]
    told = {0: (0.5, 4.5), 1: (1.0, 1.0), 2: (1.0, 4.0), 3: (0.0, 2.0)}
    (pair,) = select_best_worst(scored(*rows, checked=told)).pairs.to_dict("records")
    assert (pair["chosen"], pair["rejected"]) == ("good", "bad")
    assert (pair["chosen_passed"], pair["rejected_passed"]) == (1.0, 0.0)
    # Without `good`, nothing passes and is liked as well.
    selection = select_best_worst(scored(rows[0], rows[1], rows[3], checked={0: told[0], 1: told[1], 3: told[3]}))
    assert selection.pairs.empty
    assert (selection.n_failed, selection.n_ties, selection.tie_rate) == (1, 0, 0.0)


def test_where_all_pass_the_disliked_one_is_rejected() -> None:
    table = scored(("p", 0, "a", 4.0), ("p", 1, "b", 4.8), ("p", 2, "c", 4.5), checked={
        0: (1.0, 3.0), 1: (1.0, 4.6), 2: (1.0, 4.0),
    })  # fmt: skip
    (pair,) = select_best_worst(table).pairs.to_dict("records")
    assert (pair["chosen"], pair["rejected"]) == ("b", "a")


def test_a_reply_that_only_programs_could_score_is_liked_by_nobody() -> None:
    table = scored(("p", 0, "a", 5.0), ("p", 1, "b", 1.0), checked={0: (1.0, None), 1: (0.0, 2.0)})
    assert select_best_worst(table).n_failed == 1


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 5), st.booleans()), min_size=2, max_size=6),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from(["scored", "rejected"]),
)
@settings(max_examples=150)
def test_whatever_is_checked_chosen_passes_and_is_liked_and_rejected_is_not_both(
    replies: list[tuple[float, float, bool]], length_control: float, unfit: Any
) -> None:
    rows = [("p", n, f"reply {'x' * n}", (5 * passed + liked) / 2) for n, (passed, liked, _) in enumerate(replies)]
    table = scored(
        *rows,
        signs={n: "loops" for n, (_, _, wrong) in enumerate(replies) if wrong},
        checked={n: (passed, liked) for n, (passed, liked, _) in enumerate(replies)},
    )
    median = float(pd.Series([liked for _, liked, _ in replies]).median())
    selection = select_best_worst(table, length_control=length_control, unfit=unfit)
    assert len(selection.pairs) + selection.n_ties + selection.n_unfit + selection.n_failed == 1
    for pair in selection.pairs.itertuples():
        passed, liked, wrong = replies[pair.chosen_sample]
        assert passed == 1 and liked >= median and not (wrong and unfit == "rejected")
        passed, liked, wrong = replies[pair.rejected_sample]
        assert passed < 1 or liked < median or (wrong and unfit == "rejected")


def test_a_reply_that_fails_a_check_is_no_positive_example() -> None:
    table = scored(("p", 0, "a", 4.5), ("p", 2, "b", 4.6), checked={0: (1.0, 4.0), 2: (0.9, 4.8)})
    assert select_positives(table, 4.0).pairs["chosen"].tolist() == ["a"]


def test_no_positive_example_is_unfit_where_such_replies_are_rejected() -> None:
    table = scored(("p", 0, "round and round", 5.0), ("p", 2, "straight", 5.0), signs={0: "loops"})
    assert list(select_positives(table, 5.0).pairs["chosen"]) == ["round and round", "straight"]
    assert list(select_positives(table, 5.0, "rejected").pairs["chosen"]) == ["straight"]


def test_positive_examples_are_all_good_replies_that_came_to_their_end() -> None:
    table = scored(
        ("p", 0, "perfect", 5.0),
        ("p", 1, "perfect but cut off", 5.0),
        ("p", 2, "perfect too", 5.0),
        ("p", 4, "perfect", 5.0),
        ("q", 0, "mediocre", 3.0),
        ("r", 0, "unread", None),
    )
    selection = select_positives(table, 5.0)
    pairs = check_table(selection.pairs, PREFERENCE_PAIRS)
    assert list(pairs["chosen"]) == ["perfect", "perfect too"]
    assert set(pairs["strategy"]) == {"positive_only"}
    assert pairs[["rejected", "rejected_score", "rejected_sample", "margin"]].isna().all(axis=None)
    assert (selection.n_prompts, selection.n_too_low, selection.n_too_few_valid, selection.tie_rate) == (3, 1, 1, 0.0)


@given(judged_tables(), st.floats(0, 5))
@settings(max_examples=60)
def test_every_prompt_gives_positive_examples_or_none_is_good_enough(table: pd.DataFrame, least: float) -> None:
    selection = select_positives(table, least)
    pairs = check_table(selection.pairs, PREFERENCE_PAIRS)
    assert (pairs["chosen_score"] >= least).all()
    assert (pairs["chosen_finish_reason"] == "stop").all()
    assert pairs["prompt_id"].nunique() + selection.n_too_low + selection.n_too_few_valid == selection.n_prompts


def test_the_settings_choose_the_strategy() -> None:
    table = scored(("p", 0, "good", 4.0), ("p", 2, "bad", 1.0))
    assert same(select(table, PairSettings()), select_best_worst(table))
    assert same(select(table, PairSettings(min_margin=0.3, length_control=0.2)), select_best_worst(table, 0.3, 0.2))
    assert same(select(table, PairSettings(strategy="positive_only", min_score=4)), select_positives(table, 4.0))
