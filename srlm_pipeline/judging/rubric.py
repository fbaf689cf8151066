"""The judge's prompts. Whatever stands in a question or reply is data: it cannot close its own tags.

The additive five-point rubric follows section 2.2 and figure 2 of the paper, in words of our own; `short` is a
one-paragraph form of it for small models and short windows.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Literal

Rubric = Literal["additive", "short"]
AnswerForm = Literal["rationale", "direct"]

MAX_SCORE = 5
SCORES = tuple(str(score) for score in range(MAX_SCORE + 1))
SCORE_START = "Score: "
COMPARISON_START = "Better response: "
COMPARISON_OPTIONS = ("A", "B")

_INSTRUCTIONS: dict[AnswerForm, str] = {
    "rationale": "First justify the points in at most 100 words. Then end with exactly this line: "
    "Score: <total points>",
    "direct": "Answer with exactly this line: Score: <total points>",
}
_TAG = re.compile(r"<(?=\s*/?\s*(?:question|response)\b)", re.IGNORECASE)


def judge_prompt(rubric: Rubric, prompt: str, response: str, form: AnswerForm) -> str:
    """Return the user message that asks for a score.

    Args:
        rubric: Which wording.
        prompt: The user's instruction.
        response: The reply to be judged.
        form: ``rationale`` asks for a justification first, ``direct`` for the score alone.
    """
    return _fill(rubric, prompt=prompt, response=response, instruction=_INSTRUCTIONS[form])


def comparison_prompt(prompt: str, first: str, second: str) -> str:
    """Return the user message that asks which of two replies is better."""
    return _fill("comparison", prompt=prompt, first=first, second=second)


def neutralise_tags(text: str) -> str:
    """Make the template's own tags harmless inside data."""
    return _TAG.sub("\u2039", text)


def _fill(template: str, **values: str) -> str:
    # One pass over the template: a value that contains "{response}" is never filled in turn.
    return re.sub(
        r"\{(\w+)\}",
        lambda found: values[found[1]] if found[1] == "instruction" else neutralise_tags(values[found[1]].strip()),
        _template(template),
    )


@cache
def _template(name: str) -> str:
    return resources.files("srlm_pipeline.judging.templates").joinpath(f"{name}.txt").read_text("utf-8").strip()
