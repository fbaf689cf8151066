"""The judge's prompts. Whatever stands in a question or reply is data: it cannot close its own tags.

The additive five-point rubric follows section 2.2 and figure 2 of the paper, in words of our own; `short` is a
one-paragraph form of it for small models and short windows. What is asked of a reply by its kind, or by a checklist,
stands at the end of a prompt, so that all that is asked of one reply begins alike.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib import resources
from typing import Literal

from srlm_pipeline.data.conversations import transcript, without_marks
from srlm_pipeline.judging.kind_rubrics import KindRubric

Rubric = Literal["additive", "short"]
AnswerForm = Literal["rationale", "direct"]

MAX_SCORE = 5
SCORES = tuple(str(score) for score in range(MAX_SCORE + 1))
SCORE_START = "Score: "
COMPARISON_START = "Better response: "
COMPARISON_OPTIONS = ("A", "B")
YES_NO_START = "Answer: "
YES_NO = ("Yes", "No")
REQUEST = "Request: "
QUESTION_START = "1. Does the response"

_INSTRUCTIONS: dict[AnswerForm, str] = {
    "rationale": "First justify the points in at most 100 words. Then end with exactly this line: "
    "Score: <total points>",
    "direct": "Answer with exactly this line: Score: <total points>",
}
# No two repetitions stand side by side that could share blanks: a long run of them would take time with its square.
_TAG = re.compile(r"<(?=\s*(?:/\s*)?(?:question|response)\b)", re.IGNORECASE)
_HARMLESS = "\u2039"
# Values that are ours, not data.
_OWN = ("instruction", "listed")
_PLAIN = re.compile(r"[\s!-~]*")
# What NFKC turns into "<".
_OPENING = re.compile("[<\ufe64\uff1c]")
_UNSEEN_CATEGORIES = frozenset({"Cc", "Cf", "Cn", "Me", "Mn"})
_UNSEEN = frozenset("\u115f\u1160\u2800")


def judge_prompt(rubric: Rubric, prompt: str, response: str, form: AnswerForm) -> str:
    """Return the user message that asks for a score.

    Args:
        rubric: Which wording.
        prompt: The user's instruction.
        response: The reply to be judged.
        form: ``rationale`` asks for a justification first, ``direct`` for the score alone.
    """
    return _fill(rubric, prompt=prompt, response=response, instruction=_INSTRUCTIONS[form])


def kind_rubric_prompt(rubric: KindRubric, prompt: str, response: str) -> str:
    """Return the user message that asks for a justification and one score by all dimensions of a kind's rubric."""
    total = sum(dimension.weight for dimension in rubric.dimensions)
    listed = "\n".join(f"- {d.question} ({d.weight / total:.0%} of the points)" for d in rubric.dimensions)
    return _fill("by_kind", prompt=prompt, response=response, listed=listed, instruction=_INSTRUCTIONS["rationale"])


def dimension_prompt(question: str, prompt: str, response: str) -> str:
    """Return the user message that asks how far the answer to one question about a reply is yes, from 0 to 5."""
    return _fill("dimension", prompt=prompt, response=response, question=question)


def yes_no_prompt(question: str, prompt: str, response: str) -> str:
    """Return the user message that asks one question about a reply, to be answered with yes or no."""
    return _fill("yes_no", prompt=prompt, response=response, question=question)


def kind_prompt(options: Sequence[str], prompt: str) -> str:
    """Return the user message that asks of which kind a prompt is.

    Args:
        options: A line for each kind, with its letter.
        prompt: The user's instruction.
    """
    return _fill("kind", prompt=prompt, listed="\n".join(options))


def questions_exchange(prompt: str) -> tuple[str, str]:
    """Return a user message that asks for yes/no questions about replies, and a reply that has come to this prompt.

    A small model copies examples that stand in the message; a list that it believes to have begun itself, it continues
    with questions about the prompt.
    """
    request = neutralise_tags(" ".join(transcript(prompt).split()))
    begun = f"{_template('question_examples')}\n\n{REQUEST}{request}\nQuestions:\n{QUESTION_START}"
    return _template("questions"), begun


def example_requests() -> list[str]:
    """Return the requests that `questions_exchange` has examples for."""
    return re.findall(rf"^{REQUEST}(.*)$", _template("question_examples"), re.MULTILINE)


def example_questions() -> list[str]:
    """Return the examples' questions."""
    return re.findall(r"^\d+\. (.*\?)$", _template("question_examples"), re.MULTILINE)


def comparison_prompt(prompt: str, first: str, second: str) -> str:
    """Return the user message that asks which of two replies is better."""
    return _fill("comparison", prompt=prompt, first=first, second=second)


def verdict_prompt(prompt: str, first: str, second: str) -> str:
    """Return the user message that asks for reasons and a verdict, A, B or tie, on the last line."""
    return _fill("verdict", prompt=prompt, first=first, second=second)


def neutralise_tags(text: str) -> str:
    """Make the template's own tags harmless inside data.

    So are tags that only look like them: in full-width letters, which some tokenizers turn into plain ones, or with
    characters in between that cannot be seen.
    """
    text = _TAG.sub(_HARMLESS, text)
    if _PLAIN.fullmatch(text) or not _OPENING.search(text):
        return text
    shown = [(c, place) for place, character in enumerate(text) for c in _shown(character)]
    opening = {shown[found.start()][1] for found in _TAG.finditer("".join(c for c, _ in shown))}
    return "".join(_HARMLESS if place in opening else character for place, character in enumerate(text))


def _fill(template: str, **values: str) -> str:
    # One pass over the template: a value that contains "{response}" is never filled in turn.
    return re.sub(r"\{(\w+)\}", lambda found: _filled_in(found[1], values[found[1]]), _template(template))


def _filled_in(name: str, value: str) -> str:
    if name in _OWN:
        return value
    # A reply with the marks of a conversation would otherwise take the judge's own turn.
    shown = transcript(value) if name == "prompt" else without_marks(value)
    return neutralise_tags(shown.strip())


@lru_cache(maxsize=4096)
def _shown(character: str) -> str:
    """Return a character as a tokenizer that normalises text may read it; nothing if it cannot be seen."""
    return "".join(
        c
        for c in unicodedata.normalize("NFKC", character)
        if c.isspace() or (c not in _UNSEEN and unicodedata.category(c) not in _UNSEEN_CATEGORIES)
    )


@cache
def _template(name: str) -> str:
    return resources.files("srlm_pipeline.judging.templates").joinpath(f"{name}.txt").read_text("utf-8").strip()
