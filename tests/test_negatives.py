"""Made-up bad replies: bad in the ways that they should be, ranked last, mismatched ones as long as a prompt's own."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm_pipeline.errors import EmptyDataError
from srlm_pipeline.judging.eft import EftData
from srlm_pipeline.judging.negatives import with_negatives
from srlm_pipeline.tables import EFT, check_table

WORDS = st.text("ab .\n", min_size=1, max_size=60).filter(str.strip)
GROUPS = st.lists(st.lists(WORDS, min_size=1, max_size=6, unique=True), min_size=2, max_size=5)


def judging_data(*groups: list[str], score: float = 3.0) -> EftData:
    rows = [
        {
            "group_id": f"g{number}", "prompt": f"prompt {number}", "rank": rank, "text": text, "score": score,
            "judgement": None,
        }
        for number, texts in enumerate(groups)
        for rank, text in enumerate(texts)
    ]  # fmt: skip
    return EftData(check_table(pd.DataFrame(rows, columns=list(EFT.columns)), EFT), len(groups), len(groups))


def negatives_of(built: EftData, own: EftData, group_id: str) -> pd.DataFrame:
    added = built.table.iloc[len(own.table) :]
    return added[added["group_id"] == group_id]


@given(GROUPS, st.integers(0, 3), st.integers(0, 3))
def test_negatives_stand_below_all_replies_of_their_prompt(
    groups: list[list[str]], mismatched: int, corrupted: int
) -> None:
    own = judging_data(*groups)
    built = with_negatives(own, mismatched, corrupted, seed=5)
    table = check_table(built.table, EFT)
    pd.testing.assert_frame_equal(table.iloc[: len(own.table)], own.table)
    assert len(table) == len(own.table) + built.n_mismatched + built.n_corrupted
    for number, texts in enumerate(groups):
        found = negatives_of(built, own, f"g{number}")
        assert (found["rank"] == len(texts)).all()
        assert found["prompt"].eq(f"prompt {number}").all()
        others = {text for group in groups for text in group} - set(texts)
        assert len(found) <= min(mismatched, len(others)) + corrupted
        irrelevant = found[found["score"].notna()]
        assert len(irrelevant) == min(mismatched, len(others))
        assert set(irrelevant["text"]) <= others
        assert (irrelevant["score"] == 0).all()
    pd.testing.assert_frame_equal(with_negatives(own, mismatched, corrupted, seed=5).table, built.table)


def test_mismatched_negatives_are_as_long_as_the_replies_that_they_join() -> None:
    groups = [[f"{n} a" + "." * (500 * (n % 2)), f"{n} b" + "." * (500 * (n % 2))] for n in range(40)]
    own = judging_data(*groups)
    built = with_negatives(own, 1, 0, seed=1)
    assert built.n_mismatched == 40
    for _, group in built.table.groupby("group_id"):
        lengths = group["text"].str.len()
        assert lengths.max() - lengths.min() < 10


def test_a_corrupted_negative_repeats_itself_or_goes_off_the_subject_or_breaks_off() -> None:
    last = "One thing first. Then quite another thing. And at last the third."
    own = judging_data(*[["Best of all.", f"{last} {n}."] for n in range(60)])
    built = with_negatives(own, 0, 1, seed=1)
    assert built.n_corrupted == 60
    ways = {"longer, of its own": 0, "longer, of another": 0, "half": 0}
    for n in range(60):
        (text,) = negatives_of(built, own, f"g{n}")["text"]
        original = f"{last} {n}."
        if original.startswith(text):
            ways["half"] += 1
            assert 0.4 * len(original) < len(text) < 0.6 * len(original)
            continue
        assert text.startswith(original)
        more = text.removeprefix(original)
        if more.startswith("\n\n"):
            ways["longer, of another"] += 1
            assert not more.endswith(f" {n}.")
        else:
            ways["longer, of its own"] += 1
            sentences = {"One thing first.", "Then quite another thing.", "And at last the third.", f"{n}."}
            (repeated,) = [s for s in sentences if not more.replace(s, "").strip()]
            assert 1 <= more.count(repeated) <= 8
    assert min(ways.values()) > 10
    assert built.table["score"].isna().sum() == 60, "how bad they are nobody has said"


def test_mismatched_negatives_have_no_score_where_the_others_have_none() -> None:
    built = with_negatives(judging_data(["a", "b"], ["c", "d"], score=np.nan), 1, 0, seed=1)
    assert built.n_mismatched == 2
    assert built.table["score"].isna().all()


def test_a_single_prompt_is_enough_where_no_contrasts_are_asked_for() -> None:
    own = judging_data(["a", "b", "c"])
    assert with_negatives(own, 0, 0, seed=1) is own


def test_there_are_no_contrasts_to_a_single_prompt() -> None:
    with pytest.raises(EmptyDataError, match="from other prompts, and the judging data has 1 of them"):
        with_negatives(judging_data(["a", "b", "c"]), 1, 0, seed=1)
