"""Prompts that a model makes out of others: deeper, more concrete, or about something broader (after Evol-Instruct).

WizardLM (Xu et al. 2023, arXiv 2304.12244, section 3.2) describes the operators and when an evolved prompt is a
failure. The requests and examples here are written for small models, which continue a list better than they follow a
description.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from srlm_pipeline.prompting.filters import NoveltyIndex

Operator = Literal["deepen", "concretise", "broaden"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)
_REQUESTS: dict[Operator, tuple[str, str]] = {
    "deepen": (
        "Write a list of tasks for an assistant. After each task comes a harder one on the same subject, which asks "
        "for more thought: a reason, a comparison, a consequence.",
        "Harder",
    ),
    "concretise": (
        "Write a list of tasks for an assistant. After each task comes the same one for a particular case, with a "
        "person, a place or a purpose in it.",
        "Particular",
    ),
    "broaden": (
        "Write a list of tasks for an assistant. After each task comes another one from the same field that people "
        "seldom ask for.",
        "Seldom asked",
    ),
}
_EXAMPLES: dict[Operator, tuple[tuple[str, str], ...]] = {
    "deepen": (
        (
            "Explain how a bicycle stays upright.",
            "Explain why a bicycle is easier to keep upright when it goes fast than when it goes slowly.",
        ),
        ("Name three herbs that grow indoors.", "Compare basil, mint and rosemary: which of them needs least care?"),
        (
            "Write a message to a neighbour about noise.",
            "Write a message to a neighbour about noise that admits your own party last week, and offers a rule.",
        ),
        (
            "What is inflation?",
            "Who gains and who loses when prices rise faster than wages, and why?",
        ),
    ),
    "concretise": (
        ("Give me tips for saving money.", "Give me tips for saving money as a student who shares a flat in Dublin."),
        (
            "Write a short poem about rain.",
            "Write a short poem about the rain that kept my daughter's football team waiting under a bridge.",
        ),
        (
            "How do I prepare for an interview?",
            "How do I prepare in two evenings for an interview as a night nurse?",
        ),
        (
            "Suggest a book.",
            "Suggest a book for my father, who is 70, sails, and puts down every novel after ten pages.",
        ),
    ),
    "broaden": (
        ("Explain how bread rises.", "Explain why old cheese can have crystals in it."),
        ("Write a birthday card for a colleague.", "Write a note for a colleague who is back after a long illness."),
        ("How do I learn the guitar?", "How do I tune a piano harp that has stood in a damp room?"),
        ("List five animals that live in the forest.", "List three plants that can only grow after a forest fire."),
    ),
}  # fmt: skip
_ANSWERS = re.compile(
    r"^\W*(?:sure|certainly|of course|here (?:is|are)|the answer|answer|yes\b|no\b|to (?:do|solve) this"
    r"|i (?:am|would|will))",
    re.IGNORECASE,
)
_LEAKED = re.compile(
    r"\b(?:harder|particular|seldom asked|rewritten|given|original|new|evolved)\s+(?:task|prompt|version|one|case)\b"
    r"|\bthe (?:assistant|task)\b",
    re.IGNORECASE,
)
# Shorter ones are seldom what a task is about.
_SUBJECT = re.compile(r"\w{5,}")


def rewriting_exchange(operator: Operator, parent: str) -> tuple[str, str]:
    """Return a user message that asks for pairs of tasks, and a reply to it that begins the parent's counterpart."""
    request, label = _REQUESTS[operator]
    shown = "".join(
        f"Task {number}: {before}\n{label} task {number}: {after}\n"
        for number, (before, after) in enumerate(_EXAMPLES[operator], start=1)
    )
    last = len(_EXAMPLES[operator]) + 1
    return request, f"{shown}Task {last}: {' '.join(parent.split())}\n{label} task {last}:"


def rewriting_failure(operator: Operator, text: str, parent: str, too_like: float) -> str | None:
    """Return why a rewritten prompt is a failure, or None.

    Args:
        operator: By which it was made.
        text: The new prompt.
        parent: What it was made of.
        too_like: ROUGE-L from which on nothing has changed.
    """
    if _LEAKED.search(text):
        return "leaked_wording"
    if _ANSWERS.search(text):
        return "answer"
    if NoveltyIndex([parent]).nearest(text) >= too_like:
        return "like_its_parent"
    if any(NoveltyIndex([after]).nearest(text) >= too_like for _, after in _EXAMPLES[operator]):
        return "like_an_example"
    if operator != "broaden" and not _shares_words(text, parent):
        return "off_its_subject"
    return None


def _shares_words(text: str, parent: str) -> bool:
    own = [{word.lower() for word in _SUBJECT.findall(each)} for each in (text, parent)]
    return bool(own[0] & own[1]) or not own[1]
