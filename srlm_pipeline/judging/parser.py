"""Reading a score or a verdict out of a judgement. This is the only place where one is parsed.

Only the judge's own completion comes here, never the reply that was judged. A judgement without a score in
range is invalid, which is None: never 0, never a bad reply. So is a verdict that is not one of three.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from srlm_pipeline.generation.engine import FinishReason
from srlm_pipeline.judging.rubric import MAX_SCORE

# What a score is called. "Relevance score: 1" is a criterion's, and so no statement of its own (see `_OPENS`).
_LABEL = re.compile(r"\b(?:score|total(?:[ \t]points)?)\b", re.IGNORECASE)
# What may stand before the label on the line of a statement: marks of Markdown, a list's number, "The", "Final".
_OPENS = re.compile(
    r"[\s*_`#{-]*(?:\d{1,2}[.)]\s*)?[*_`]*(?:(?:the|my|i|so|therefore|thus|final|overall|total)[,:]?[ \t]+)*[*_`]*",
    re.IGNORECASE,
)
# Punctuation as it is typed in Chinese and Japanese.
_NARROW = str.maketrans({"\uff1a": ":", "\uff0f": "/", "\uff05": "%", "\uff08": "(", "\uff09": ")"})
# So many labels are looked at, from the end: a judgement of more is a loop.
_MOST = 100
# How a line begins whose label has its value on a line of its own.
_HEADING = re.compile(r"[ \t]*(?:#{1,6}|\*\*|__)")
# A mention that somebody else is quoted with; within JSON it is the label alone that stands in quotes.
_QUOTES = ('"', "'", "\u201c", "\u2018", "\u201e", "\u00ab")
# A statement is looked for within so many characters behind its label.
_REACH = 120
_DECORATION = r"""[*_`"'\[\](<{$\\\s]*(?:boxed[ \t]*\{)?"""
_NUMBER = r"[0-9]{1,3}(?:\.[0-9]{1,6})?"
_STATED = re.compile(
    # Between label and value: a closing mark, the scale, a colon, an equals sign, "is".
    r"""[*_`"'\])]*[ \t]*(?:\((?:out[ \t]+of|of|/)[ \t]*(?P<said>[0-9]{1,4})\))?[*_`"'\])]*[ \t]*"""
    r"(?:(?P<colon>:)|=|is\b[ \t]*:?|(?P<heading>\n))"
    rf"{_DECORATION}"
    # A sum with its result, a number in words with the figure behind it, or the figure.
    rf"(?:(?P<sum>{_NUMBER}(?:[ \t]*(?:[-+*\u2212]|plus|minus)[ \t]*{_NUMBER})+[ \t]*=)[*_` \t]*"
    r"|[a-z]+[ \t]*\((?=[0-9]))?"
    rf"(?P<value>{_NUMBER})"
    # Not a part of a longer number or of a word, no range, no sum.
    r"(?![\da-z]|[.,]\d|[ \t]*(?:[-+~\u2010-\u2015\u2212]|(?:or|to|and|plus|minus)\b)[ \t]*\d)"
    r"""[*_`"'\])}>$]*(?:[ \t]+points?\b)?[ \t]*"""
    r"(?:(?P<percent>%)|(?:\([ \t]*)?(?:[/\u2044\u2215]|(?:out[ \t]+)?of\b)[ \t]*(?P<scale>[0-9]+))?",
    re.IGNORECASE,
)
# What takes the statement back: another number behind it, as an alternative, a range, a correction or a summand.
_MORE = re.compile(
    r"""[*_`"'\])}>$ \t]*(?:points?\b[ \t]*)?(?:\([^()\n]{0,40}\)[ \t]*)?"""
    r"(?:(?:[|&\u2192+~\u2010-\u2015\u2212-]|[-=]>|[,;]?[ \t]*(?:or|to|and|plus|minus)\b)"
    r"""[*_`"'\[(<$ \t]*[0-9]|[,;][ \t]*[0-9](?:\.[0-9]+)?[ \t]*(?:[.\n]|\Z))""",
    re.IGNORECASE,
)

_PLAIN = re.compile(rf"\s*score[ \t]*:\s*{_NUMBER}[ \t]*", re.IGNORECASE)
# plain: "Score: 4"; scale: "Score: 4/5"; sum: "Score: 1+1=2"; heading: the value is on the next line; decorated:
# Markdown or other words; mention: within a sentence or JSON.
Form = Literal["plain", "scale", "sum", "heading", "decorated", "mention", "none"]


class Reading(NamedTuple):
    """A score, and how the judge had stated it.

    Attributes:
        score: From 0 to 5; None if none is stated.
        form: Of the statement.
    """

    score: float | None
    form: Form


Winner = Literal["A", "B", "tie"]
_WINNERS: dict[str, Winner] = {"a": "A", "b": "B", "tie": "tie", "c": "tie"}
_SIDE = r"(?:(?:response|reply|answer|assistant|option)[ \t]+)?(?P<side>a|b|tie)"
_VERDICT = re.compile(
    r"""[*_`#>{"\s]*(?:(?:my|the|final)[ \t]+)*verdict[*_`"]*[ \t]*(?:(?:is[ \t]*)?:|=|is\b)"""
    rf"""[*_`"'$\\\s]*(?:boxed\{{)?[\[(<]{{0,2}}{_SIDE}[\])>}}]{{0,2}}[*_`"'$}}.\s]*""",
    re.IGNORECASE | re.ASCII,
)
_VERDICT_HEADING = re.compile(
    rf"(?:#+|\*\*)[ \t]*(?:final[ \t]+)?verdict[*_ \t]*\n[*_\s]*{_SIDE}[*_.\s]*", re.IGNORECASE
)
# As Chatbot Arena's judges write it, where C is a tie.
_BRACKETED = re.compile(r"[^\[\]]*\[\[(?P<side>a|b|c|tie)\]\][^\[\]]*", re.IGNORECASE | re.ASCII)

# A line that is nothing but a score ends the judgement, where no other score can be about to follow. The line's end
# belongs to it, or "Score: 1" would end what was going to be "Score: 1/10".
_SCORE_ALONE = r"score[*_` \t]*:[*_`\s]*[0-5](?:\.[0-9]+)?(?:[ \t]*/[ \t]*5)?[*_`. \t]*\n"
# One of several criteria may have been scored, and others and the total come: what stands before looks like a list or a
# heading, or has a label.
_CRITERION = r"[ \t]*(?:[0-9]{1,2}[.)]|[-*#_\u2022]|[a-z][a-z \t-]{0,40}(?:[:(]|\n))"
FINAL_LINE = (
    rf"(?im)(?:\A(?:(?!{_CRITERION})[^\n]*\n)*?[*_` \t]*{_SCORE_ALONE}"
    rf"|^[*_`# \t]*(?:final|overall|total)[ \t]+{_SCORE_ALONE})"
)
_SCORE_LINE = re.compile(r"^[*_`#> \t]*score[*_`]*\s*[:\uff1a=]", re.IGNORECASE | re.MULTILINE)
_SCORE_AT_END = re.compile(
    r"\bscore[*_`]*\s*[:\uff1a=][*_`\[(<\s]*[0-9]+(?:\.[0-9]+)?(?:[ \t]*points?)?"
    r"(?:[ \t]*(?:/|(?:out[ \t]+)?of\b)[ \t]*[0-9]+)?[\W_]*\Z",
    re.IGNORECASE,
)


def parse_score(judgement: str, finish_reason: FinishReason = "stop") -> float | None:
    """Return the last score in 0..5 that a judgement states, or None.

    A statement stands at the beginning of a line ("**Score**: 4", "The score is 4.", "Total: 4/5"); what is mentioned
    within a sentence or quoted counts only where there is none. A range, an alternative, a sum without its result and
    another scale are no scores.

    Args:
        judgement: The judge's completion.
        finish_reason: A judgement cut off by the token limit is invalid, whatever it says: its last words
            are not its conclusion.
    """
    return read_score(judgement).score if finish_reason == "stop" else None


def read_score(judgement: str) -> Reading:
    """Return the score of a judgement that came to its end, and how it is stated; see `parse_score`."""
    text = judgement.translate(_NARROW)
    mentioned: float | None = None
    for label in list(_LABEL.finditer(text))[: -_MOST - 1 : -1]:
        found = _STATED.match(text[label.end() : label.end() + _REACH])
        value = _on_scale(found) if found else None
        if found is None or value is None:
            continue
        if _MORE.match(text[label.end() + found.end() : label.end() + _REACH]):
            continue
        before = text[max(text.rfind("\n", 0, label.start()) + 1, label.start() - _REACH) : label.start()]
        opens = _OPENS.fullmatch(before)
        if found["heading"] and not (opens and _HEADING.match(before)):
            continue
        if opens:
            return Reading(value, _form(before + label.group() + found.group(), found))
        quoted = before.strip()[1:].endswith(_QUOTES) and not text.startswith(_QUOTES, label.end())
        if found["colon"] and mentioned is None and not quoted:
            mentioned = value
    return Reading(mentioned, "none" if mentioned is None else "mention")


def _form(stated: str, found: re.Match[str]) -> Form:
    if _PLAIN.fullmatch(stated):
        return "plain"
    if found["heading"]:
        return "heading"
    return "sum" if found["sum"] else "scale" if found["said"] or found["scale"] else "decorated"


def _on_scale(found: re.Match[str]) -> float | None:
    scales = [scale for scale in (found["said"], found["scale"]) if scale is not None]
    if found["percent"] or any(scale.lstrip("0") != str(MAX_SCORE) for scale in scales):
        return None
    value = float(found["value"])
    return value if value <= MAX_SCORE else None


def parse_verdict(answer: str, finish_reason: FinishReason = "stop") -> Winner | None:
    """Return who wins by the last line of an answer, or None if that line is no verdict.

    Args:
        answer: The arbiter's completion.
        finish_reason: An answer cut off by the token limit has no verdict.
    """
    if finish_reason != "stop":
        return None
    lines = [line for line in answer.translate(_NARROW).strip().splitlines() if line.strip(" \t`{}")]
    # The last line, or where that is the side alone, with the one before.
    for ending in (lines[-1:], lines[-2:]):
        text = "\n".join(ending)
        found = _VERDICT.fullmatch(text) or _VERDICT_HEADING.fullmatch(text)
        found = found or (_BRACKETED.fullmatch(text) if len(ending) == 1 else None)
        if found:
            return _WINNERS[found["side"].lower()]
    return None


def rationale_before_score(judgement: str) -> str:
    """Return what a judgement says before it states its score.

    Args:
        judgement: The judge's completion. Its score is the last line that begins with ``Score:``, or one that the text
            ends with; without either all of it is rationale.
    """
    text = judgement.strip()
    lines = [found.start() for found in _SCORE_LINE.finditer(text)]
    ending = _SCORE_AT_END.search(text)
    if ending:
        # Markdown that was opened for the score goes with it.
        return text[: ending.start()].rstrip("*_`#>([ \t\n")
    return text[: lines[-1]].rstrip() if lines else text
