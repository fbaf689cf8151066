import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.judging.judges import DistributionJudge, JudgeItem, Judgement
from srlm_pipeline.judging.panel import Member, PanelJudge
from srlm_pipeline.progress import NullProgress, ProgressReporter

ITEMS = [JudgeItem("p0#0", "q", "a"), JudgeItem("p0#1", "q", "b"), JudgeItem("p1#0", "r", "a")]


class ToldJudge:
    """Gives the score that it was told for a reply, with so many valid and invalid judgements."""

    def __init__(self, scores: Mapping[str, float | None], spread: float = 0.0, name: str = "told") -> None:
        self.name, self._scores, self._spread = name, scores, spread
        self.asked: list[JudgeItem] = []

    def judge(
        self, items: Sequence[JudgeItem], progress: ProgressReporter, journal: Journal | None = None
    ) -> list[Judgement]:
        self.asked += items
        return [self._say(item.key, self._scores[item.response]) for item in items]

    def _say(self, key: str, score: float | None) -> Judgement:
        if score is None:
            return Judgement(key, None, 0, 3, None, "no idea")
        return Judgement(key, score, 2, 1, self._spread, f"Score: {score:g}")


def panel(*judges: ToldJudge, weights: Sequence[float] = ()) -> PanelJudge:
    return PanelJudge([Member(j, w) for j, w in zip(judges, weights or [1.0] * len(judges), strict=True)])


def judged(judge: PanelJudge, items: Sequence[JudgeItem] = ITEMS) -> list[Judgement]:
    return judge.judge(items, NullProgress())


def test_scores_are_weighted_and_disagreement_is_kept() -> None:
    first, second = ToldJudge({"a": 4.0, "b": 1.0}, spread=1.0), ToldJudge({"a": 2.0, "b": 1.0})
    a, b, again = judged(panel(first, second, weights=(3, 1)))
    assert [j.key for j in (a, b, again)] == [item.key for item in ITEMS]
    assert (a.score, b.score, again.score) == (3.5, 1.0, 3.5)
    # Standard deviation of 4 with weight 3 and 2 with weight 1 around 3.5.
    assert a.disagreement == pytest.approx((0.75 * 0.25 + 0.25 * 2.25) ** 0.5)
    assert b.disagreement == 0.0
    assert a.spread == pytest.approx(0.75**0.5)
    assert (a.n_valid, a.n_invalid) == (4, 2)


def test_invalid_score_is_left_out_and_counted() -> None:
    first, second = ToldJudge({"a": None, "b": 3.0}), ToldJudge({"a": 2.0, "b": 5.0})
    a, b = judged(panel(first, second), ITEMS[:2])
    assert (a.score, a.n_valid, a.n_invalid, a.disagreement) == (2.0, 2, 4, None)
    assert (b.score, b.disagreement) == (4.0, 1.0)


def test_reply_that_nobody_could_score_has_none() -> None:
    (a,) = judged(panel(ToldJudge({"a": None}), ToldJudge({"a": None})), ITEMS[:1])
    assert (a.score, a.spread, a.disagreement, a.n_valid, a.n_invalid) == (None, None, None, 0, 6)
    assert [said["raw"] for said in json.loads(a.raw)] == ["no idea"] * 2


def test_what_every_member_said_is_kept() -> None:
    first, second = ToldJudge({"a": 4.0}, name="distribution@x"), ToldJudge({"a": None}, name="sampled-3@big")
    judge = panel(first, second, weights=(1, 2.5))
    (a,) = judged(judge, ITEMS[:1])
    assert json.loads(a.raw) == [
        {"judge": "distribution@x", "weight": 1.0, "score": 4.0, "n_valid": 2, "n_invalid": 1, "raw": "Score: 4"},
        {"judge": "sampled-3@big", "weight": 2.5, "score": None, "n_valid": 0, "n_invalid": 3, "raw": "no idea"},
    ]
    assert judge.name == "panel of distribution@x x 1, sampled-3@big x 2.5"


def test_panel_of_one_is_that_judge_without_disagreement() -> None:
    (a,) = judged(panel(ToldJudge({"a": 4.0}, spread=0.5)), ITEMS[:1])
    assert (a.score, a.spread, a.disagreement, a.n_valid, a.n_invalid) == (4.0, 0.5, None, 2, 1)


def test_members_are_asked_once_about_the_same_reply_to_the_same_prompt() -> None:
    judge = ToldJudge({"a": 4.0, "b": 1.0})
    judged(panel(judge), [*ITEMS, JudgeItem("p9#3", "q", "a")])
    assert [(item.prompt, item.response) for item in judge.asked] == [("q", "a"), ("q", "b"), ("r", "a")]
    assert len({item.key for item in judge.asked}) == 3


def test_a_member_s_journal_outlives_the_others(tmp_path: Path) -> None:
    def weigh(prefix: str) -> Sequence[float]:
        return [0, 0, 0, 1.0, 0, 0]

    def member(engine: FakeEngine, name: str) -> Member:
        return Member(DistributionJudge(engine, "short"), 1.0, Journal(tmp_path / name))

    first = FakeEngine(weigh=weigh)
    PanelJudge([member(first, "one")]).judge(ITEMS, NullProgress())
    again, other = FakeEngine(weigh=weigh), FakeEngine(weigh=weigh)
    renamed = [JudgeItem(f"other {item.key}", item.prompt, item.response) for item in ITEMS]
    found = PanelJudge([member(other, "two"), member(again, "one")]).judge(renamed, NullProgress())
    assert (len(first.prefixes), len(again.prefixes), len(other.prefixes)) == (3, 0, 3)
    assert [j.score for j in found] == [3.0] * 3


def test_panel_with_nothing_to_judge_says_nothing() -> None:
    assert judged(panel(ToldJudge({})), []) == []


SAID = st.lists(st.tuples(st.none() | st.floats(0, 5), st.floats(0.01, 100)), min_size=1, max_size=5)


@given(SAID)
@settings(max_examples=50)
def test_score_lies_among_the_members_and_its_parts_add_up(said: list[tuple[float | None, float]]) -> None:
    judges = [ToldJudge({"a": score}, spread=0.5) for score, _ in said]
    (a,) = judged(panel(*judges, weights=[weight for _, weight in said]), ITEMS[:1])
    valid: list[Any] = [(score, weight) for score, weight in said if score is not None]
    if not valid:
        assert a.score is None
        return
    scores, weights = np.array(valid).T
    assert a.score is not None and a.spread is not None and 0 <= a.score <= 5
    assert scores.min() - 1e-9 <= a.score <= scores.max() + 1e-9
    second_moment = np.average(scores**2 + 0.25, weights=weights)
    assert a.spread**2 + (a.disagreement or 0.0) ** 2 == pytest.approx(second_moment - a.score**2, abs=1e-6)
