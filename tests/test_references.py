from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from srlm_pipeline.evaluation.arbiters import Comparison
from srlm_pipeline.evaluation.head_to_head import play_match
from srlm_pipeline.evaluation.measuring import arbiter_agreement
from srlm_pipeline.evaluation.references import ReferenceArbiter, references_of
from srlm_pipeline.progress import NullProgress

REFERENCE = "water them in the morning"


class SharedWords:
    """Takes texts for as near as they have words in common; remembers how many it was asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def nearness(self, first: Sequence[str], second: Sequence[str]) -> NDArray[np.float64]:
        self.asked += len(first)
        sets = [(set(a.split()), set(b.split())) for a, b in zip(first, second, strict=True)]
        return np.array([len(a & b) / max(len(a | b), 1) for a, b in sets])


def prefer(*pairs: tuple[str, str], prompt: str = "how?", **references: str) -> list[float]:
    arbiter = ReferenceArbiter(SharedWords(), references or {"how?": REFERENCE})
    return arbiter.prefer_first([Comparison(prompt, *pair) for pair in pairs], NullProgress()).tolist()


def test_the_reply_that_is_nearer_to_the_reference_is_better() -> None:
    near, far = "water them in the evening", "never water them"
    there, back = prefer((near, far), (far, near))
    assert there == pytest.approx(4 / 6 - 2 / 6)
    assert back == -there


def test_without_a_reference_there_is_no_opinion() -> None:
    assert np.isnan(prefer(("one", "other"), prompt="why?")).all()


def test_of_the_reference_itself_there_is_no_opinion() -> None:
    assert np.isnan(prefer((REFERENCE, "never water them"), ("never water them", f" {REFERENCE}\n"))).all()


def test_blanks_around_a_prompt_do_not_matter() -> None:
    assert prefer(("water", "wine"), prompt=" how? \n") == prefer(("water", "wine"))


def test_equal_replies_are_equally_good_and_nobody_is_asked() -> None:
    encoder = SharedWords()
    arbiter = ReferenceArbiter(encoder, {"how?": REFERENCE})
    alike = [Comparison("how?", "the same", "the same"), Comparison("why?", "x", "x")]
    assert arbiter.prefer_first(alike, NullProgress()).tolist() == [0.0, 0.0]
    assert encoder.asked == 0
    assert arbiter.prefer_first([], NullProgress()).tolist() == []
    assert arbiter.name == "reference"


def test_each_reply_is_read_once_however_often_it_is_compared() -> None:
    encoder = SharedWords()
    arbiter = ReferenceArbiter(encoder, {"how?": REFERENCE, "when?": "now"})
    replies = ("one", "two", "three")
    shown = [Comparison("how?", a, b) for a in replies for b in replies] + [Comparison("when?", "one", "two")]
    arbiter.prefer_first(shown, NullProgress())
    assert encoder.asked == 3 + 2


@given(st.lists(st.tuples(st.sampled_from(["how?", "why?"]), st.text("wtm ", max_size=6), st.text("wtm ", max_size=6))))
@settings(max_examples=60)
def test_the_order_of_the_two_does_not_matter(shown: list[tuple[str, str, str]]) -> None:
    arbiter = ReferenceArbiter(SharedWords(), {"how?": "w t m"})
    comparisons = [Comparison(*c) for c in shown]
    there = arbiter.prefer_first(comparisons, NullProgress())
    back = arbiter.prefer_first([c.swap() for c in comparisons], NullProgress())
    assert there.tolist() == pytest.approx((-back).tolist(), nan_ok=True)
    assert np.nanmax(np.abs(np.append(there, 0.0))) <= 2


def test_a_match_is_decided_where_there_are_references() -> None:
    arbiter = ReferenceArbiter(SharedWords(), {"how?": REFERENCE, "when?": "in the morning"})
    prompts = [("p1", "how?"), ("p2", "when?"), ("p3", "why?")]
    mine, theirs = ["water them", "at night", "x"], ["wine", "in the evening", "y"]
    _, result = play_match(prompts, mine, theirs, "other", arbiter, NullProgress())
    assert (result.wins, result.ties, result.losses) == (1, 1, 1)


def ranked(**groups: Sequence[str]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = [
        {"group_id": group, "prompt": group, "rank": rank, "text": text}
        for group, texts in groups.items()
        for rank, text in reversed(list(enumerate(texts)))
    ]
    return pd.DataFrame(rows)


def prompts(**references: str | None) -> pd.DataFrame:
    return pd.DataFrame({"prompt": list(references), "reference": pd.Series(list(references.values()), dtype=object)})


def test_references_are_those_of_the_prompts_and_the_best_of_the_ranked_replies() -> None:
    found = references_of(prompts(how=REFERENCE, why=None), ranked(when=["now", "later"], how=["somehow", "no"]))
    assert found == {"how": REFERENCE, "when": "now"}
    assert references_of(prompts(why=None), ranked(when=["now", "later"])) == {"when": "now"}


def test_how_often_it_agrees_with_people_is_measured_without_the_best_reply() -> None:
    people = ranked(when=["in the morning", "in the evening", "never"], how=["by hand", "with a hose"])
    arbiter = ReferenceArbiter(SharedWords(), references_of(prompts(why=None), people))
    figures = arbiter_agreement(arbiter, people, NullProgress())
    # Of four pairs one is without the best reply, and that one it orders as people do.
    assert (figures["agreement"], figures["decided"]) == (1.0, 1 / 4)
