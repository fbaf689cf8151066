"""Checklists: which questions are kept, where others come from, and what their answers are worth."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes import FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from test_rubric_and_judges import HOSTILE, TAG, judge_tags

from srlm_pipeline.checks.checkable import Checks, DrawnInstruction, DrawnTask, draw_instruction
from srlm_pipeline.checks.closed_tasks import ClosedTask
from srlm_pipeline.config import JudgeSettings
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.judging.checklist_judge import ChecklistJudge
from srlm_pipeline.judging.checklists import (
    FEWEST,
    MOST,
    Question,
    fill_up,
    keep_questions,
    refusal,
    write_checklists,
)
from srlm_pipeline.judging.choosing import make_judge
from srlm_pipeline.judging.judges import JudgeItem, Judgement
from srlm_pipeline.judging.kind_rubrics import kind_rubrics
from srlm_pipeline.judging.rubric import example_questions, example_requests, questions_exchange, yes_no_prompt
from srlm_pipeline.progress import NullProgress

PROMPT = "Plan a picnic for six people on Sunday, without meat."
WRITTEN = """ plan a picnic for six?
2. Is the response free of meat?
3) Does the answer fit on Sunday?
- Has the reply got a shopping list?
"""
QUESTIONS = [
    "Does the response plan a picnic for six?",
    "Is the response free of meat?",
    "Does the answer fit on Sunday?",
    "Has the reply got a shopping list?",
]
LINES = st.lists(
    st.sampled_from(
        [
            *QUESTIONS,
            *example_questions(),
            "1. Does the response say why?",
            "12. Is the response polite?",
            "Why is the response good?",
            "Does the response",
            "Is it short?",
            PROMPT,
            "",
            "\u2022 Can the reply be used?",
        ]
    )
    | st.text(max_size=40)
)


def answering(write: str, answers: dict[str, tuple[float, float]] | None = None) -> FakeEngine:
    """Writes these questions, and answers each as told, else with a clear yes."""
    known = answers or {}

    def weigh(prefix: str) -> Sequence[float]:
        if "letter of the kind" in prefix:
            return [0.05] * len(kind_rubrics().by_kind)
        return next((masses for question, masses in known.items() if question in prefix), (0.8, 0.0))

    return FakeEngine(lambda _: write, weigh)


def judged(engine: FakeEngine, items: Sequence[JudgeItem], journal: Journal | None = None) -> list[Judgement]:
    return ChecklistJudge(engine).judge(items, NullProgress(), journal)


def item(key: str = "a", response: str = "x") -> JudgeItem:
    return JudgeItem(key, PROMPT, response, "planning")


def asked(judgement: Judgement) -> list[str]:
    return [question["question"] for question in json.loads(judgement.raw)["questions"]]


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("Is the response polite?", None),
        ("Does the reply name a place?", None),
        ("Is the response polite", "not_a_question"),
        ("Is the response " + "very " * 40 + "long?", "too_long"),
        ("How polite is the response?", "not_yes_or_no"),
        ("Isnt the response polite?", "not_yes_or_no"),
        ("Is the weather good?", "not_about_the_reply"),
        ("Is the response a picnic for six people on Sunday, without meat?", "like_the_prompt"),
        ("Does the response say when the bakery opens?", "about_an_example"),
        ("Is the response in French?", "about_an_example"),
    ],
)
def test_a_question_is_refused_for_a_reason(question: str, reason: str | None) -> None:
    assert refusal(question, PROMPT) == reason


def test_what_an_example_is_about_may_be_asked_where_the_prompt_is_about_it_too() -> None:
    assert refusal("Is the response in French?", "Say hello in French.") is None


@given(LINES)
def test_kept_questions_are_different_and_fit_for_being_asked(lines: list[str]) -> None:
    kept = keep_questions("\n".join(lines), PROMPT)
    assert len(set(kept)) == len(kept)
    assert all(refusal(question, PROMPT) is None and "\n" not in question for question in kept)
    assert not set(kept) & set(example_questions())
    assert keep_questions("\n".join(kept), PROMPT) == kept
    assert keep_questions("\n".join(lines), PROMPT, known=kept) == []


def test_a_list_is_read_whatever_its_numbers_look_like() -> None:
    (checklist,) = write_checklists(answering(WRITTEN), [PROMPT], NullProgress()).values()
    assert [question.text for question in checklist] == QUESTIONS


def test_there_are_never_more_questions_than_a_checklist_has() -> None:
    subjects = ["salad", "juice", "bread", "plates", "shade", "games", "rain", "wasps", "trains", "music", "prices"]
    many = "".join(f"\n{n}. Does the response speak of {s}?" for n, s in enumerate(subjects, start=2))
    (checklist,) = write_checklists(answering(" name a time?" + many), [PROMPT], NullProgress()).values()
    assert len(checklist) == MOST


def test_known_questions_come_first_and_enough_of_them_are_not_added_to() -> None:
    engine = answering(WRITTEN)
    few = [Question("Is the response in verse?", 3.0), Question("Is the response free of meat?")]
    enough = [Question(f"Is the response {n} lines long?") for n in range(FEWEST)]
    found = write_checklists(engine, [PROMPT, "other"], NullProgress(), known={PROMPT: few, "other": enough})
    assert found["other"] == enough
    assert found[PROMPT] == [*few, *(Question(QUESTIONS[n]) for n in (0, 2, 3))]
    assert len(engine.requests) == 1


def test_what_a_prompt_was_made_to_demand_is_asked_first() -> None:
    asks = "Do not use any commas in your whole reply."
    checks: dict[str, Checks] = {
        PROMPT: (
            DrawnInstruction(draw_instruction("punctuation:no_comma", {}), 1, asks),
            DrawnInstruction(draw_instruction("punctuation:no_comma", {}), 1),
        ),
        "What is 3 + 4?": DrawnTask(ClosedTask("", "arithmetic", "What is 3 + 4?", ("7", "seven"), ()), 1),
    }
    judge = make_judge(answering(WRITTEN), JudgeSettings(mode="distribution", rubric="checklist"), 0, "judging", checks)
    judgements = judge.judge([item(), JudgeItem("b", "What is 3 + 4?", "x")], NullProgress())
    first = [json.loads(judgement.raw)["questions"][0]["question"] for judgement in judgements]
    assert first == [f'Does the response do what this asks: "{asks}"?', 'Does the response give the answer "7"?']


def test_the_model_goes_on_with_a_list_for_this_prompt_that_it_seems_to_have_begun() -> None:
    engine = answering(WRITTEN)
    write_checklists(engine, ["two\nlines", "two\nlines"], NullProgress())
    (request,) = engine.requests
    assert request.prompt.endswith("Request: two lines\nQuestions:\n1. Does the response")
    assert all(example in request.prompt for example in (*example_requests(), *example_questions()))
    assert engine.samplings[0].temperature == 0
    assert engine.samplings[0].stop == ("\nRequest:",)


def test_too_few_questions_are_filled_up_with_the_weightiest_of_the_kind() -> None:
    rubric = kind_rubrics().of("planning")
    weighty = sorted(rubric.dimensions, key=lambda d: -d.weight)
    filled = fill_up([Question(weighty[0].question)], rubric)
    assert [question.text for question in filled] == [d.question for d in weighty[:FEWEST]]
    general = fill_up([], rubric)
    assert len(general) == FEWEST
    mean = sum(d.weight for d in rubric.dimensions) / len(rubric.dimensions)
    assert [question.weight for question in general] == pytest.approx([d.weight / mean for d in weighty[:FEWEST]])
    full = [Question(text) for text in QUESTIONS]
    assert fill_up(full, rubric) == full


def test_the_score_is_the_weighted_share_of_yes() -> None:
    answers = {QUESTIONS[0]: (0.3, 0.1), QUESTIONS[1]: (0.0, 0.5)}
    engine = answering(WRITTEN, answers)
    (judgement,) = judged(engine, [item()])
    assert judgement.score == pytest.approx(5 * (0.75 + 0 + 1 + 1) / 4)
    assert (judgement.key, judgement.n_valid, judgement.n_invalid) == ("a", 4, 0)
    told = json.loads(judgement.raw)["questions"]
    assert told[0] == {"question": QUESTIONS[0], "weight": 1.0, "yes": 0.3, "no": 0.1}
    known = {PROMPT: [Question(QUESTIONS[0], 3.0), Question(QUESTIONS[1]), Question(QUESTIONS[2])]}
    (judgement,) = ChecklistJudge(engine, known).judge([item()], NullProgress())
    assert judgement.score == pytest.approx(5 * (3 * 0.75 + 0 + 1) / 5)


def test_a_question_that_was_not_answered_is_left_out_and_without_any_there_is_no_score() -> None:
    (judgement,) = judged(answering(WRITTEN, {QUESTIONS[0]: (0.001, 0.001)}), [item()])
    assert (judgement.score, judgement.n_valid, judgement.n_invalid) == (5.0, 3, 1)
    (judgement,) = judged(answering(WRITTEN, dict.fromkeys(QUESTIONS, (0.0, 0.0))), [item()])
    assert (judgement.score, judgement.spread, judgement.n_valid) == (None, None, 0)


def test_replies_to_one_prompt_have_the_same_checklist_which_is_written_once() -> None:
    engine = answering(WRITTEN)
    items = [item("a"), item("b", "y"), JudgeItem("c", "Another prompt altogether.", "x", "code")]
    a, b, c = judged(engine, items)
    assert asked(a) == asked(b) == QUESTIONS
    assert asked(c) == QUESTIONS
    assert len(engine.requests) == 2
    assert not any("letter of the kind" in prefix for prefix in engine.prefixes), "nothing had to be filled up"


def test_an_unwritten_checklist_is_the_kinds_and_the_kind_is_told_where_the_data_does_not() -> None:
    engine = answering(" ...")
    labelled, told = judged(engine, [item(), JudgeItem("b", "Another prompt.", "x")])
    general = {d.question for d in kind_rubrics().of("planning").dimensions}
    assert len(asked(labelled)) == FEWEST
    assert set(asked(labelled)) < general
    assert len(asked(told)) == FEWEST
    assert any("Another prompt." in prefix for prefix in engine.prefixes if "letter of the kind" in prefix)


def test_an_interrupted_judge_goes_on_and_writes_nothing_twice(tmp_path: Path) -> None:
    engine = answering(WRITTEN)
    first = judged(engine, [item()], Journal(tmp_path))
    before = len(engine.prefixes)
    again = judged(engine, [item(), item("b", "y")], Journal(tmp_path))
    assert again[0] == first[0]
    assert len(engine.requests) == 1
    assert len(engine.prefixes) == before + len(QUESTIONS)


def test_the_settings_choose_it() -> None:
    judge = make_judge(answering(WRITTEN), JudgeSettings(mode="distribution", rubric="checklist"), 20, "s")
    assert judge.name == "checklist@fake"
    assert [j.score for j in judge.judge([item()], NullProgress())] == [5.0]


@given(prompt=HOSTILE, response=HOSTILE, question=HOSTILE)
def test_neither_data_nor_a_question_can_add_or_close_tags(prompt: str, response: str, question: str) -> None:
    assert TAG.findall(yes_no_prompt(question, prompt, response)) == judge_tags()


@given(HOSTILE)
def test_a_prompt_cannot_begin_a_request_or_a_list_of_its_own(prompt: str) -> None:
    (_, plain), (_, hostile) = questions_exchange("x"), questions_exchange(prompt)
    assert hostile.count("\n") == plain.count("\n")
