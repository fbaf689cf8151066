"""The embedded seed set keeps what it promises."""

import itertools
from collections import Counter

import pytest

from srlm_pipeline.config import DataSettings
from srlm_pipeline.data.loaders import load_evaluation_prompts, load_instructions, load_ranked_replies
from srlm_pipeline.prompting.filters import NoveltyIndex

SETTINGS = DataSettings()
SAME_PROMPT = 0.7


@pytest.fixture(scope="module")
def groups():
    table = load_ranked_replies(SETTINGS).table
    return [group.sort_values("rank") for _, group in table.groupby("group_id")]


def test_there_are_enough_instructions_of_enough_kinds():
    table = load_instructions(SETTINGS).table
    assert len(table) >= 160
    assert table["kind"].nunique() >= 12
    assert not table["prompt"].str.lower().duplicated().any()


def test_there_are_enough_judging_prompts_with_four_scored_replies(groups):
    assert len(groups) >= 60
    for group in groups:
        assert list(group["rank"]) == [0, 1, 2, 3]
        scores = list(group["score"])
        assert scores == sorted(scores, reverse=True)
        assert len(set(scores)) == 4
        assert group["rationale"].str.split().str.len().between(10, 100).all()


def test_every_score_from_0_to_5_occurs(groups):
    seen = Counter(score for group in groups for score in group["score"])
    assert set(seen) == {0, 1, 2, 3, 4, 5}


def test_in_half_of_the_judging_prompts_the_best_reply_is_not_the_longest(groups):
    not_longest = [group["text"].str.len().idxmax() != group.index[0] for group in groups]
    assert sum(not_longest) / len(groups) >= 0.5


def test_preferring_the_longer_reply_is_right_about_half_of_the_time(groups):
    longer = [
        len(better) > len(worse) for group in groups for better, worse in itertools.combinations(list(group["text"]), 2)
    ]
    assert 0.4 <= sum(longer) / len(longer) <= 0.6


def test_both_splits_have_enough_prompts_and_share_none():
    table = load_ranked_replies(SETTINGS).table
    prompts = table.groupby("split")["prompt"].agg(set)
    assert len(prompts["held_out"]) >= 20
    assert len(prompts["train"]) >= 40
    assert not prompts["held_out"] & prompts["train"]


def test_evaluation_prompts_are_enough_and_unlike_everything_else():
    evaluation = load_evaluation_prompts(SETTINGS).table
    assert len(evaluation) >= 60
    known = NoveltyIndex(
        [*load_instructions(SETTINGS).table["prompt"], *load_ranked_replies(SETTINGS).table["prompt"].unique()]
    )
    assert [p for p in evaluation["prompt"] if known.nearest(p) >= SAME_PROMPT] == []
    among = NoveltyIndex()
    for prompt in evaluation["prompt"]:
        assert among.nearest(prompt) < SAME_PROMPT
        among.add(prompt)
