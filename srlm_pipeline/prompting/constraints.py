"""Verifiable instructions that are added to a prompt, with fresh arguments, and in several wordings.

Every maker takes random numbers, a level of difficulty from 1 to `LEVELS`, and the prompt, and returns the arguments
by which the instruction is checked and a sentence that asks for it. What is checked is in `checks/instructions.py`;
none of its `NEVER_TRAINED` kinds is made here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from srlm_pipeline.checks.checkable import DrawnInstruction, draw_instruction
from srlm_pipeline.prompting.drawing import draw_wording, draw_words

LEVELS = 5
_WORD = re.compile(r"[A-Za-z]{5,}")
# They fit into nearly any text.
_FITTING = (
    "time", "people", "small", "home", "friend", "first", "morning", "help", "example", "change", "water",
    "light", "simple", "together", "learn", "place", "story", "start", "reason", "different", "quiet", "world",
    "always", "answer", "family", "moment", "number", "garden", "careful", "window",
)  # fmt: skip
# The more common a word is, the harder it is to do without.
_AVOIDED = (
    ("however", "furthermore", "basically", "absolutely", "crucial", "journey", "amazing", "utilize"),
    ("important", "great", "wonderful", "always", "various", "ensure", "several", "provide", "perfect", "special"),
    ("good", "make", "help", "need", "also", "many", "would", "there", "about", "really"),
    ("can", "they", "more", "this", "have", "from", "their", "when", "some", "will"),
    ("you", "it", "that", "with", "for", "are", "be", "as", "on", "or"),
)
_ENDINGS = (
    ("That is all.", "The end.", "Thank you.", "Take care."),
    ("Let me know what you think.", "I hope this helps.", "That is everything.", "See you soon."),
    ("Do you want to hear more?", "Is there anything else?", "Which one would you take?", "What would you do?"),
    ("And that is how it is done.", "This is where the matter rests.", "Nothing more needs to be said here."),
    ("Now you know as much as I do about it.", "Whatever happens next is entirely up to you."),
)

Arguments = dict[str, Any]
Maker = Callable[[np.random.Generator, int, str], tuple[Arguments, str]]


@dataclass(frozen=True)
class Constraint:
    """A kind of instruction as it is made.

    Attributes:
        kind: Its name among `KINDS`.
        group: Instructions of one prompt are of different groups, so that they do not contradict each other.
        make: Returns arguments and wording.
    """

    kind: str
    group: str
    make: Maker


CONSTRAINTS: dict[str, Constraint] = {}
# It leaves no room for anything beside it.
_ALONE = "alone"


def _constraint(kind: str, group: str) -> Callable[[Maker], Maker]:
    def register(make: Maker) -> Maker:
        CONSTRAINTS[kind] = Constraint(kind, group, make)
        return make

    return register


def _fixed(kind: str, group: str, wordings: Sequence[str], **arguments: object) -> None:
    """Register a kind whose arguments are always the same."""

    @_constraint(kind, group)
    def make(random: np.random.Generator, level: int, prompt: str) -> tuple[Arguments, str]:
        return dict(arguments), draw_wording(random, wordings)


def draw_constraint(random: np.random.Generator, kind: str, level: int, prompt: str) -> tuple[DrawnInstruction, str]:
    """Return an instruction and the sentence that asks for it.

    Args:
        random: Where arguments and wording are drawn from.
        kind: One of `CONSTRAINTS`.
        level: From 1 to `LEVELS`; of kinds that know no difficulty it changes nothing.
        prompt: To which it is added.
    """
    arguments, sentence = CONSTRAINTS[kind].make(random, level, prompt)
    return DrawnInstruction(draw_instruction(kind, arguments), level, sentence), sentence


def compatible(kind: str, others: Sequence[str]) -> bool:
    """Tell whether an instruction of a kind can stand beside others."""
    groups = {CONSTRAINTS[other].group for other in others}
    group = CONSTRAINTS[kind].group
    return not groups or (group not in groups and _ALONE not in groups | {group})


def add_sentences(random: np.random.Generator, prompt: str, sentences: Sequence[str]) -> str:
    """Return a prompt with instructions after it, in one of the ways in which people write them."""
    body = prompt.rstrip()
    if body[-1:] not in '.?!:"\u201d)`':
        body += "."
    apart = "\n" if random.random() < 0.25 else " "
    if len(sentences) > 1 and random.random() < 0.3:
        return body + "\n" + "\n".join(f"- {sentence}" for sentence in sentences)
    return body + apart + " ".join(sentences)


def _fitting_words(random: np.random.Generator, prompt: str, n: int) -> list[str]:
    """Return words that a reply may well use: of the prompt, or such as fit anywhere."""
    own = sorted({word.lower() for word in _WORD.findall(prompt)} - set(_FITTING))
    from_prompt = draw_words(random, own, min(n, len(own)) if random.random() < 0.4 else 0) if own else []
    return from_prompt + draw_words(random, _FITTING, n - len(from_prompt))


def _the_words(words: Sequence[str]) -> str:
    quoted = [f'"{word}"' for word in words]
    if len(quoted) == 1:
        return f"the word {quoted[0]}"
    return "the words " + ", ".join(quoted[:-1]) + f" and {quoted[-1]}"


@_constraint("keywords:existence", "words")
def _keywords(random: np.random.Generator, level: int, prompt: str) -> tuple[Arguments, str]:
    words = _fitting_words(random, prompt, 1 + level // 2)
    wording = draw_wording(
        random,
        (
            "Use {words} somewhere in your reply.",
            "Your reply must contain {words}.",
            "Make sure that {words} can be found in what you write.",
        ),
        words=_the_words(words),
    )
    return {"keywords": words}, wording


@_constraint("keywords:frequency", "words")
def _frequency(random: np.random.Generator, level: int, prompt: str) -> tuple[Arguments, str]:
    (word,), often = _fitting_words(random, prompt, 1), level + 1
    wording = draw_wording(
        random,
        (
            'Use the word "{word}" at least {often} times.',
            'The word "{word}" has to come up {often} times or more.',
            'Say "{word}" no fewer than {often} times.',
        ),
        word=word,
        often=often,
    )
    return {"keyword": word, "frequency": often, "relation": "at least"}, wording


@_constraint("keywords:forbidden_words", "without")
def _forbidden(random: np.random.Generator, level: int, prompt: str) -> tuple[Arguments, str]:
    words = draw_words(random, _AVOIDED[level - 1], int(random.integers(1, 4)))
    wording = draw_wording(
        random,
        (
            "Do without {words}.",
            "Leave out {words} entirely.",
            "Never use {words} in your reply.",
        ),
        words=_the_words(words),
    )
    return {"forbidden_words": words}, wording


@_constraint("length_constraints:number_sentences", "length")
def _sentences(random: np.random.Generator, level: int, prompt: str) -> tuple[Arguments, str]:
    if random.random() < 0.6:
        limit = (9, 7, 5, 4, 3)[level - 1]
        wording = draw_wording(
            random,
            (
                "Write fewer than {n} sentences.",
                "Keep it under {n} sentences.",
                "Your reply should have less than {n} sentences.",
            ),
            n=limit,
        )
        return {"num_sentences": limit, "relation": "less than"}, wording
    limit = (2, 3, 4, 6, 8)[level - 1]
    wording = draw_wording(
        random,
        ("Write at least {n} sentences.", "It should be {n} sentences or more.", "Use no fewer than {n} sentences."),
        n=limit,
    )
    return {"num_sentences": limit, "relation": "at least"}, wording


@_constraint("length_constraints:number_words", "length")
def _words(random: np.random.Generator, level: int, prompt: str) -> tuple[Arguments, str]:
    if random.random() < 0.7:
        limit = (120, 80, 60, 40, 20)[level - 1] + int(random.integers(0, 6))
        wording = draw_wording(
            random,
            (
                "Use fewer than {n} words.",
                "Keep your reply under {n} words.",
                "Stay below {n} words.",
                "Your reply must be shorter than {n} words.",
            ),
            n=limit,
        )
        return {"num_words": limit, "relation": "less than"}, wording
    limit = (15, 30, 50, 70, 90)[level - 1] + int(random.integers(0, 6))
    wording = draw_wording(
        random,
        ("Write at least {n} words.", "Use {n} words or more.", "It should not be shorter than {n} words."),
        n=limit,
    )
    return {"num_words": limit, "relation": "at least"}, wording


@_constraint("length_constraints:number_paragraphs", "shape")
def _paragraphs(random: np.random.Generator, level: int, prompt: str) -> tuple[Arguments, str]:
    n = (2, 2, 3, 4, 5)[level - 1]
    wording = draw_wording(
        random,
        (
            "Write {n} paragraphs and put a line with *** between them.",
            "Divide your reply into {n} paragraphs by the divider ***.",
            "Your reply should have exactly {n} paragraphs, with *** between one and the next.",
        ),
        n=n,
    )
    return {"num_paragraphs": n}, wording


@_constraint("detectable_content:number_placeholders", "placeholders")
def _placeholders(random: np.random.Generator, level: int, prompt: str) -> tuple[Arguments, str]:
    wording = draw_wording(
        random,
        (
            "Leave at least {n} blanks to fill in, written in square brackets like [name].",
            "Put {n} or more placeholders such as [date] into it, in square brackets.",
        ),
        n=level,
    )
    return {"num_placeholders": level}, wording


_fixed(
    "detectable_content:postscript",
    "ending",
    (
        "Add a postscript at the end that begins with P.S.",
        "Close with a postscript, marked P.S.",
        "After your reply, write one more line that starts with P.S.",
    ),
    postscript_marker="P.S.",
)


@_constraint("detectable_format:number_bullet_lists", "shape")
def _bullets(random: np.random.Generator, level: int, prompt: str) -> tuple[Arguments, str]:
    n = (3, 2, 4, 5, 6)[level - 1]
    wording = draw_wording(
        random,
        (
            "Give exactly {n} bullet points, each on a line that begins with *.",
            "Write it as a list of {n} bullets, with a * in front of each.",
            "Your reply should have {n} bullet points in Markdown (* before each), no more and no less.",
        ),
        n=n,
    )
    return {"num_bullets": n}, wording


@_constraint("detectable_format:number_highlighted_sections", "highlights")
def _highlights(random: np.random.Generator, level: int, prompt: str) -> tuple[Arguments, str]:
    wording = draw_wording(
        random,
        (
            "Highlight at least {n} of the most useful parts with asterisks, like *this*.",
            "Mark {n} or more phrases in Markdown, *like this one*.",
        )
        if level > 1
        else (
            "Highlight at least one part with asterisks, like *this*.",
            "Mark one phrase or more in Markdown, *like this one*.",
        ),
        n=level,
    )
    return {"num_highlights": level}, wording


_fixed(
    "detectable_format:title",
    "title",
    (
        "Give it a title in double angle brackets, like <<my title>>.",
        "Put a heading above it, written between << and >>.",
        "Begin with a title of this form: <<title>>.",
    ),
)


_fixed(
    "detectable_format:json_format",
    _ALONE,
    (
        "Write your whole reply as JSON.",
        "Reply with valid JSON and nothing else.",
        "The entire output has to be one JSON object.",
    ),
)


@_constraint("startend:end_checker", "ending")
def _ending(random: np.random.Generator, level: int, prompt: str) -> tuple[Arguments, str]:
    (phrase,) = draw_words(random, _ENDINGS[level - 1], 1)
    wording = draw_wording(
        random,
        (
            'Finish with exactly these words: "{phrase}" Nothing may follow them.',
            'The very last words must be "{phrase}"',
            'End your reply with the phrase "{phrase}" and stop there.',
        ),
        phrase=phrase,
    )
    return {"end_phrase": phrase}, wording


_fixed(
    "change_case:english_capital",
    "case",
    (
        "Write everything in English and in capital letters.",
        "Use capital letters only, in English.",
        "Your English reply must be in upper case from beginning to end.",
    ),
)


_fixed(
    "change_case:english_lowercase",
    "case",
    (
        "Write everything in English and in small letters, without any capitals.",
        "Use lowercase letters only, in English.",
        "No capital letter may appear in your English reply.",
    ),
)


_fixed(
    "punctuation:no_comma",
    "commas",
    ("Do not use commas.", "Write without commas.", "There must be no comma anywhere in it."),
)
