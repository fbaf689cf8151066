"""Which judgements a model is taught to write, and which scores it is taught to give."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm_pipeline.errors import EmptyDataError
from srlm_pipeline.judging.eft import (
    EftData,
    eft_from_dataset,
    eft_from_judgements,
    eft_from_ranks,
    judgement_text,
    require_enough,
    thin,
)
from srlm_pipeline.judging.judges import Judgement
from srlm_pipeline.judging.parser import parse_score
from srlm_pipeline.tables import EFT, RANKED_REPLIES, check_table


def ranked(*groups: list[int]) -> pd.DataFrame:
    rows = [
        {
            "group_id": f"g{number}",
            "split": "train",
            "kind": "",
            "prompt": f"prompt {number}",
            "rank": rank,
            "text": f"reply {number} {place}",
            "score": None,
            "rationale": None,
        }
        for number, ranks in enumerate(groups)
        for place, rank in enumerate(ranks)
    ]
    return check_table(pd.DataFrame(rows, columns=list(RANKED_REPLIES.columns)), RANKED_REPLIES)


def judged(*scores: float | None) -> list[Judgement]:
    return [
        Judgement(str(n), score, int(score is not None), int(score is None), 0.0, json.dumps([f"So.\nScore: {score}"]))
        for n, score in enumerate(scores)
    ]


def written(*scores: float) -> EftData:
    table = eft_from_ranks(ranked([*range(len(scores))])).table
    return EftData(table.assign(judgement=[judgement_text("So.", score) for score in scores]), 1, 1)


@pytest.mark.parametrize("missing", [None, " ", float("nan")])
def test_scores_of_a_data_set_without_rationales_are_kept_alone(missing: str | float | None) -> None:
    data = ranked([0, 1, 2]).assign(score=[5.0, 3.0, np.nan], rationale=["So.", missing, "So."])
    table = check_table(eft_from_dataset(check_table(data, RANKED_REPLIES)).table, EFT)
    assert table["judgement"].notna().tolist() == [True, False, False]
    assert table["score"].tolist()[:2] == [5.0, 3.0]
    assert eft_from_dataset(data.assign(rationale=None)).table["judgement"].isna().all()


@given(st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=6), min_size=1, max_size=5))
def test_scores_from_ranks_follow_the_human_order_from_five_to_one(groups: list[list[int]]) -> None:
    built = eft_from_ranks(ranked(*groups))
    table = check_table(built.table, EFT)
    assert built.n_kept == built.n_groups == len(groups)
    assert table["judgement"].isna().all()
    for _, group in table.groupby("group_id"):
        by_rank = group.groupby("rank")["score"].agg(["min", "max"])
        assert (by_rank["min"] == by_rank["max"]).all()
        means = by_rank["min"].to_numpy()
        assert means[0] == 5
        assert (np.diff(means) < 0).all()
        assert len(means) == 1 or means[-1] == pytest.approx(1)


def test_judgements_are_kept_where_every_human_ordered_pair_is_scored_in_that_order() -> None:
    table = ranked([0, 1, 2], [0, 1], [0, 1], [0, 1, 1])
    scores = (4.0, 3.0, 1.0, 2.0, 2.0, 3.0, None, 5.0, 2.0, 3.0)
    built = eft_from_judgements(table, judged(*scores))
    assert list(built.table["group_id"].unique()) == ["g0", "g3"]
    assert (built.n_groups, built.n_kept) == (4, 2)
    assert built.dropped == {"no valid score": 1, "order differs from the human one": 1}


def test_too_few_judgements_are_refused_with_counts_and_a_way_out() -> None:
    built = eft_from_judgements(ranked([0, 1], [0, 1], [0, 1]), judged(4, 3, 2, 2, None, 1))
    require_enough(built, 1)
    with pytest.raises(EmptyDataError) as caught:
        require_enough(built, 2)
    said = str(caught.value)
    assert "of 3 prompts" in said
    assert "judged 1 as people did" in said
    assert "no valid score: 1, order differs from the human one: 1" in said
    assert "eft.targets to ranks" in said


@given(st.lists(st.sampled_from([1.0, 2.0, 4.0, 4.0, 4.0, 4.0, 5.0]), min_size=2, max_size=40), st.floats(0.2, 0.9))
def test_thinning_leaves_the_commonest_score_its_share_and_the_others_alone(scores: list[float], most: float) -> None:
    data = written(*scores)
    thinned = thin(data, most, seed=3)
    left = [parse_score(text) for text in thinned.table["judgement"].dropna()]
    values, counts = np.unique(scores, return_counts=True)
    common = values[counts == counts.max()]
    for value in set(scores):
        before, after = scores.count(value), left.count(value)
        assert after == before or value in common
    assert len(scores) - len(left) == thinned.n_thinned
    if thinned.n_thinned:
        (cut,) = [value for value in set(scores) if left.count(value) < scores.count(value)]
        assert left.count(cut) <= most * len(left) + 1e-9
        assert (left.count(cut) + 1) > most * (len(left) + 1) - 1e-9, "no more than has to go"
    assert list(thinned.table["score"]) == list(data.table["score"]), "scores and ranks stay"
    assert thin(data, most, seed=3).table.equals(thinned.table)


def test_where_all_judgements_agree_there_is_nothing_to_thin() -> None:
    data = written(4.0, 4.0, 4.0)
    assert thin(data, 0.5, seed=1) is data
