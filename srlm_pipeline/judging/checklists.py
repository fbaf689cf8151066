"""Checklists: what a good reply to one prompt does, as questions that are answered with yes or no."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from srlm_pipeline.checks.checkable import Checks, DrawnTask
from srlm_pipeline.generation.engine import Sampling, TextEngine
from srlm_pipeline.generation.journal import Journal, fingerprint
from srlm_pipeline.generation.stage import Ask, generate_all
from srlm_pipeline.judging.kind_rubrics import KindRubric
from srlm_pipeline.judging.rubric import (
    QUESTION_START,
    REQUEST,
    example_questions,
    example_requests,
    questions_exchange,
)
from srlm_pipeline.progress import ProgressReporter
from srlm_pipeline.prompting.filters import NoveltyIndex

FEWEST, MOST = 3, 8
LONGEST_CHECKLIST = 192
"""In tokens."""
_NUMBER = re.compile(r"^\s*(?:[-*\u2022]|\(?\d{1,2}[.):])\s*")
_YES_OR_NO = re.compile(
    r"(?:is|are|was|were|does|do|did|has|have|had|can|could|will|would|should)\b", re.IGNORECASE | re.ASCII
)
_ABOUT_THE_REPLY = re.compile(r"\b(?:response|reply|answer)\b", re.IGNORECASE)
_MOST_WORDS = 40
_STEM = 5
# Questions begin alike, so that different ones are closer by ROUGE-L than different prompts are.
_ALIKE = 0.85
_LIKE_THE_PROMPT = 0.7


@dataclass(frozen=True)
class Question:
    """One question of a checklist.

    Attributes:
        text: About the reply, to be answered with yes or no.
        weight: In the mean of the checklist's answers.
    """

    text: str
    weight: float = 1.0


def demanded(checks: Mapping[str, Checks]) -> dict[str, list[Question]]:
    """Return questions that need not be written: whether a reply does what its prompt was made to demand, by prompt.

    Args:
        checks: Of prompts that a program can check, by prompt.
    """
    return {prompt: _demands(of_prompt) for prompt, of_prompt in checks.items()}


def _demands(checks: Checks) -> list[Question]:
    if isinstance(checks, DrawnTask):
        return [Question(f'Does the response give the answer "{checks.task.answers[0]}"?')]
    return [Question(f'Does the response do what this asks: "{d.wording}"?') for d in checks if d.wording]


def write_checklists(
    engine: TextEngine,
    prompts: Sequence[str],
    progress: ProgressReporter,
    journal: Journal | None = None,
    known: Mapping[str, Sequence[Question]] | None = None,
) -> dict[str, list[Question]]:
    """Return up to `MOST` questions for each prompt, by prompt; there may be none.

    The questions that are known come first. Where they are fewer than `FEWEST` a model writes more, after examples; it
    writes greedily, so that the questions depend on model and prompt alone.

    Args:
        engine: Who writes.
        prompts: Repeated ones count once.
        progress: Where progress is shown.
        journal: What was written is read from it and added to it.
        known: Questions that need not be written, by prompt: what a prompt was made to demand, for example.
    """
    known = known or {}
    checklists = {prompt: list(known.get(prompt, ()))[:MOST] for prompt in prompts}
    missing = [prompt for prompt, questions in checklists.items() if len(questions) < FEWEST]
    asks = []
    for prompt in missing:
        message, begun = questions_exchange(prompt)
        asks.append(Ask(fingerprint(prompt), message, seed=0, reply_start=begun))
    sampling = Sampling(max_new_tokens=LONGEST_CHECKLIST, stop=(f"\n{REQUEST.strip()}",))
    written = generate_all(engine, asks, sampling, "writing checklists", progress, journal)
    for prompt, completion in zip(missing, written, strict=True):
        own = checklists[prompt]
        kept = keep_questions(QUESTION_START + completion.text, prompt, [question.text for question in own])
        own += map(Question, kept[: MOST - len(own)])
    return checklists


def keep_questions(written: str, prompt: str, known: Sequence[str] = ()) -> list[str]:
    """Return the questions of a written list that are worth asking, in their order.

    Args:
        written: A question a line, numbered or not.
        prompt: That the reply is given to.
        known: Questions that need not be repeated.
    """
    kept: list[str] = []
    taken = NoveltyIndex([*example_questions(), *known])
    for line in written.splitlines():
        question = " ".join(_NUMBER.sub("", line).split())
        if question and refusal(question, prompt) is None and taken.nearest(question) < _ALIKE:
            kept.append(question)
            taken.add(question)
    return kept


def refusal(question: str, prompt: str) -> str | None:
    """Return why a question is refused, whatever else was asked: the first of several reasons, or None.

    Args:
        question: In one line.
        prompt: That the reply is given to.
    """
    if not question.endswith("?"):
        return "not_a_question"
    if len(question.split()) > _MOST_WORDS:
        return "too_long"
    if not _YES_OR_NO.match(question):
        return "not_yes_or_no"
    if not _ABOUT_THE_REPLY.search(question):
        return "not_about_the_reply"
    if NoveltyIndex([prompt]).nearest(question) >= _LIKE_THE_PROMPT:
        return "like_the_prompt"
    if _subjects(question) & _subjects(*example_requests()) - _subjects(prompt):
        return "about_an_example"
    return None


def fill_up(questions: Sequence[Question], rubric: KindRubric) -> list[Question]:
    """Return a checklist with at least `FEWEST` questions: general ones of the kind, the weightiest first, fill it up.

    Their mean weight is one, as that of written questions is.
    """
    mean = sum(dimension.weight for dimension in rubric.dimensions) / len(rubric.dimensions)
    general = [Question(d.question, d.weight / mean) for d in sorted(rubric.dimensions, key=lambda d: -d.weight)]
    asked = {question.text for question in questions}
    more = [question for question in general if question.text not in asked]
    return [*questions, *more[: max(0, FEWEST - len(questions))]]


def _subjects(*texts: str) -> set[str]:
    """Return the beginnings of the longer words: what texts are about, whatever the words' endings."""
    return {word[:_STEM].lower() for text in texts for word in re.findall(rf"\w{{{_STEM},}}", text)}
