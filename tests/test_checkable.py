"""What programs check of replies to invented prompts, and the judge that is such a program."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_pipeline.checks.checkable import (
    Checks,
    DrawnInstruction,
    DrawnTask,
    check,
    checks_of,
    draw_instruction,
    read_checks,
    write_checks,
)
from srlm_pipeline.checks.closed_tasks import ClosedTask
from srlm_pipeline.judging.judges import JudgeItem, Judgement
from srlm_pipeline.judging.panel import Member, PanelJudge
from srlm_pipeline.judging.verifiers import VerifierJudge
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.prompting.constraints import CONSTRAINTS, LEVELS, draw_constraint
from srlm_pipeline.prompting.tasks import TASKS, draw_task

PROMPT = "Describe your street. Use no commas. Write fewer than 12 words."
SUM = DrawnTask(ClosedTask("", "word_problem", "What is two and two?", ("4",), ()), 2)
TWO = (
    DrawnInstruction(draw_instruction("punctuation:no_comma", {}), 1),
    DrawnInstruction(
        draw_instruction("length_constraints:number_words", {"num_words": 12, "relation": "less than"}), 3
    ),
)


def passed(checks: Checks, prompt: str, reply: str) -> list[bool]:
    return [one.passed for one in check(checks, prompt, reply)]


def test_every_instruction_is_checked_by_itself() -> None:
    assert passed(TWO, PROMPT, "It is short, quiet and green.") == [False, True]
    assert passed(TWO, PROMPT, "It is quiet.") == [True, True]
    assert [(one.kind, one.level) for one in check(TWO, PROMPT, "It is.")] == [
        ("punctuation:no_comma", 1),
        ("length_constraints:number_words", 3),
    ]


@pytest.mark.parametrize("reply", ["", "  \n", PROMPT, "bla bla " * 30])
def test_what_is_no_reply_follows_nothing(reply: str) -> None:
    assert not any(passed(TWO, PROMPT, reply))


def test_a_task_is_solved_by_its_answer() -> None:
    assert passed(SUM, SUM.task.prompt, "4") == [True]
    assert passed(SUM, SUM.task.prompt, "It is 5.") == [False]


@given(st.integers(0, 2**32), st.integers(1, LEVELS), st.sampled_from([*CONSTRAINTS, *TASKS]))
@settings(max_examples=120)
def test_checks_come_back_from_a_table_as_they_were(seed: int, level: int, kind: str) -> None:
    random = np.random.default_rng(seed)
    checks: Checks = (
        draw_task(random, kind, level) if kind in TASKS else (draw_constraint(random, kind, level, PROMPT)[0],)
    )
    prompt = checks.task.prompt if isinstance(checks, DrawnTask) else PROMPT
    assert read_checks(write_checks(checks), prompt) == checks


def test_prompts_without_checks_are_left_out() -> None:
    table = pd.DataFrame({"prompt": [PROMPT, "Hello?", SUM.task.prompt]})
    table["checks"] = [write_checks(TWO), "", write_checks(SUM)]
    assert checks_of(table) == {PROMPT: TWO, SUM.task.prompt: SUM}


class Opinionated:
    """Gives every reply the same score, or none."""

    name = "opinionated"

    def __init__(self, score: float | None) -> None:
        self._score = score

    def judge(self, items: list[JudgeItem], *_: object) -> list[Judgement]:
        return [Judgement(item.key, self._score, 1, 0, 0.0, "") for item in items]


def judged(score: float | None) -> dict[str, Judgement]:
    items = [
        JudgeItem("half", PROMPT, "It is short, quiet and green."),
        JudgeItem("all", PROMPT, "It is quiet."),
        JudgeItem("open", "Hello?", "Hello."),
    ]
    panel = PanelJudge([Member(Opinionated(score)), Member(VerifierJudge({PROMPT: TWO}))])
    return {judgement.key: judgement for judgement in panel.judge(items, NullProgress())}


def test_programs_judge_what_they_can_check_and_leave_the_rest_to_others() -> None:
    found = judged(3.0)
    assert {key: j.score for key, j in found.items()} == {"half": 2.75, "all": 4.0, "open": 3.0}
    assert {key: (j.passed, j.opinion) for key, j in found.items()} == {
        "half": (0.5, 3.0),
        "all": (1.0, 3.0),
        "open": (None, None),
    }


def test_where_the_others_say_nothing_there_is_no_opinion() -> None:
    found = judged(None)
    assert (found["all"].score, found["all"].passed, found["all"].opinion) == (5.0, 1.0, None)
    assert found["open"].score is None
