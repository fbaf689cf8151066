"""Prompts that models are measured by: which are taken where not all are, and that none of them is ever invented."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srlm_pipeline.checks.closed_tasks import load_closed_tasks
from srlm_pipeline.checks.samples import balanced_sample
from srlm_pipeline.checks.verifiable import load_verifiable
from srlm_pipeline.config import EvaluationSettings, VerifiableSettings
from srlm_pipeline.evaluation.forbidden import forbidden_prompts

KINDS = st.lists(st.sampled_from("abcd"), max_size=40)


@given(KINDS, st.integers(1, 50))
def test_a_sample_has_as_much_of_every_kind_as_there_is_and_keeps_the_order(kinds: list[str], limit: int) -> None:
    items = list(enumerate(kinds))
    taken = balanced_sample(items, lambda item: item[1], limit)
    assert len(taken) == min(limit, len(items))
    assert list(taken) == sorted(taken)
    counts, whole = Counter(kind for _, kind in taken), Counter(kinds)
    fullest = max(counts.values(), default=0)
    assert all(counts[kind] >= min(whole[kind], fullest - 1) for kind in whole)
    # Of each kind the first ones.
    assert all((place, kind) in taken for place, kind in items if kinds[:place].count(kind) < counts[kind])


@given(KINDS, st.integers(1, 20))
def test_a_larger_sample_only_adds(kinds: list[str], limit: int) -> None:
    items = list(enumerate(kinds))
    smaller, larger = (set(balanced_sample(items, lambda item: item[1], n)) for n in (limit, limit + 1))
    assert smaller <= larger
    assert balanced_sample(items, lambda item: item[1], None) == tuple(items)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_sample_of_nothing_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match="at least 1 is expected"):
        balanced_sample(["a"], str, limit)


def asked(**changes: object) -> EvaluationSettings:
    return EvaluationSettings.model_validate(changes)


def test_every_prompt_that_measures_is_forbidden_also_what_a_limit_leaves_out() -> None:
    limited = asked(verifiable={"limit": 1}, closed_tasks={"limit": 1})
    found = forbidden_prompts(["Why?"], limited)
    assert found[0] == "Why?"
    assert set(found) == {
        "Why?",
        *(prompt.prompt for prompt in load_verifiable(VerifiableSettings())),
        *(task.prompt for task in load_closed_tasks("embedded")),
    }


def test_own_files_are_forbidden_and_what_is_off_is_not(tmp_path: Path) -> None:
    row = {"id": 1, "kind": "k", "prompt": "What is 1 + 1?", "answers": ["2"], "wrong": []}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    off = {"verifiable": {"source": "none"}}
    own = asked(**off, closed_tasks={"source": str(tmp_path / "tasks.jsonl")})
    assert forbidden_prompts([], own) == ["What is 1 + 1?"]
    assert forbidden_prompts([], asked(**off, closed_tasks={"source": "none"})) == []


@pytest.mark.parametrize("limit", [7, 20])
def test_a_limit_on_verifiable_prompts_takes_other_kinds_before_a_second_of_one(limit: int) -> None:
    prompts = load_verifiable(VerifiableSettings(limit=limit))
    kinds = Counter(prompt.instructions[0].kind.name for prompt in prompts)
    assert len(prompts) == limit
    assert max(kinds.values()) == 1
