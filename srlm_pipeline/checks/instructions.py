"""The kinds of instruction that can be checked: IFEval's 25, one function each.

Each function takes the reply and, by name, what the instruction asks for; its signature is what the data is
validated against. Verdicts are those of the checks published with IFEval (google-research,
verifiable_scores_eval), including where they are more lenient or stricter than the words of the instruction;
comments say where that surprises. Where the published checks replace an argument that they do not like by a random
one, it is taken at its word here, or refused when the data is read.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, create_model

from srlm_pipeline.checks.text import (
    capital_words,
    count_words,
    detect_language,
    known_languages,
    split_sentences,
)


@dataclass(frozen=True)
class Kind:
    """One kind of instruction.

    Attributes:
        name: As the data names it, e.g. ``punctuation:no_comma``.
        arguments: What the instruction must say besides, e.g. how many words.
        follows: Whether a reply that is not blank follows it; takes the reply and the arguments by name.
    """

    name: str
    arguments: type[BaseModel]
    follows: Callable[..., bool]


KINDS: dict[str, Kind] = {}
NEVER_TRAINED = frozenset(
    {
        "change_case:capital_word_frequency",
        "combination:repeat_prompt",
        "combination:two_responses",
        "detectable_format:constrained_response",
        "detectable_format:multiple_sections",
        "keywords:letter_frequency",
        "language:response_language",
        "length_constraints:nth_paragraph_first_word",
        "startend:quotation",
    }
)
"""More than a third of the kinds: they are measured, and no invented prompt asks for them, so that what a model has
learned about following instructions can be told from what it has learned about the others."""


def _kind(name: str) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    def register(check: Callable[..., bool]) -> Callable[..., bool]:
        hints = get_type_hints(check, include_extras=True)
        fields: dict[str, Any] = {key: (hints[key], ...) for key in list(inspect.signature(check).parameters)[1:]}
        closed = ConfigDict(extra="forbid", frozen=True)
        KINDS[name] = Kind(name, create_model(check.__name__, __config__=closed, **fields), check)
        return check

    return register


def _regular_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is read as a regular expression, and is none: {error}") from error
    return text


def _language_code(code: str) -> str:
    if code not in known_languages():
        raise ValueError(f"{code!r} is no language that can be recognised; use one of {sorted(known_languages())}")
    return code


Relation = Literal["less than", "at least"]
Count = Annotated[int, Field(ge=1)]
Phrase = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Letter = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1, to_lower=True)]
# Matched as a pattern by the published checks, and not trimmed.
Pattern = Annotated[str, Field(min_length=1), AfterValidator(_regular_expression)]
Patterns = Annotated[tuple[Pattern, ...], Field(min_length=1)]
Language = Annotated[str, AfterValidator(_language_code)]


def _holds(count: int, relation: Relation, limit: int) -> bool:
    return count < limit if relation == "less than" else count >= limit


@_kind("keywords:existence")
def _keywords(reply: str, keywords: Patterns) -> bool:
    # Also inside longer words: "art" is found in "party".
    return all(re.search(keyword, reply, re.IGNORECASE) for keyword in keywords)


@_kind("keywords:frequency")
def _keyword_frequency(
    reply: str,
    keyword: Annotated[Phrase, AfterValidator(_regular_expression)],
    frequency: Count,
    relation: Relation,
) -> bool:
    return _holds(len(re.findall(keyword, reply, re.IGNORECASE)), relation, frequency)


@_kind("keywords:forbidden_words")
def _forbidden_words(reply: str, forbidden_words: Patterns) -> bool:
    return not any(re.search(rf"\b{word}\b", reply, re.IGNORECASE) for word in forbidden_words)


@_kind("keywords:letter_frequency")
def _letter_frequency(reply: str, letter: Letter, let_frequency: Count, let_relation: Relation) -> bool:
    return _holds(reply.lower().count(letter), let_relation, let_frequency)


@_kind("language:response_language")
def _language(reply: str, language: Language) -> bool:
    # A reply without letters is in no other language either.
    return detect_language(reply) in (None, language)


@_kind("length_constraints:number_sentences")
def _sentences(reply: str, num_sentences: Count, relation: Relation) -> bool:
    return _holds(len(split_sentences(reply)), relation, num_sentences)


@_kind("length_constraints:number_words")
def _words(reply: str, num_words: Count, relation: Relation) -> bool:
    return _holds(count_words(reply), relation, num_words)


@_kind("length_constraints:number_paragraphs")
def _paragraphs(reply: str, num_paragraphs: Count) -> bool:
    # Between dividers of three asterisks. A divider may begin or end the reply, but two may not meet.
    first, *rest = re.split(r"\s?\*{3}\s?", reply)
    inner, last = rest[:-1], rest[-1:]
    if not all(text.strip() for text in inner):
        return False
    return len(inner) + sum(bool(text.strip()) for text in [first, *last]) == num_paragraphs


@_kind("length_constraints:nth_paragraph_first_word")
def _first_word(reply: str, num_paragraphs: Count, nth_paragraph: Count, first_word: str) -> bool:
    parts = reply.split("\n\n")
    filled = sum(bool(part.strip()) for part in parts)
    # The blank parts between three and more line breaks are not counted, and yet take a place in the order.
    if filled != num_paragraphs or nth_paragraph > filled or not parts[nth_paragraph - 1].strip():
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split("[.,?!'\"]", word, maxsplit=1)[0].lower() == first_word.lower()


@_kind("detectable_content:number_placeholders")
def _placeholders(reply: str, num_placeholders: Count) -> bool:
    return len(re.findall(r"\[.*?\]", reply)) >= num_placeholders


@_kind("detectable_content:postscript")
def _postscript(reply: str, postscript_marker: Annotated[Phrase, AfterValidator(_regular_expression)]) -> bool:
    # Anywhere in the reply. The two markers of the published set may be written with blanks between the letters.
    known = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    return re.search(known.get(postscript_marker, postscript_marker.lower()), reply.lower()) is not None


@_kind("detectable_format:number_bullet_lists")
def _bullets(reply: str, num_bullets: Count) -> bool:
    stars = re.findall(r"^\s*\*[^*].*$", reply, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", reply, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


@_kind("detectable_format:constrained_response")
def _constrained_response(reply: str) -> bool:
    return any(f"My answer is {answer}." in reply for answer in ("yes", "no", "maybe"))


@_kind("detectable_format:number_highlighted_sections")
def _highlights(reply: str, num_highlights: Count) -> bool:
    single = [part for part in re.findall(r"\*([^\n*]*)\*", reply) if part.strip()]
    double = [part for part in re.findall(r"\*\*([^\n*]*)\*\*", reply) if part.strip()]
    return len(single) + len(double) >= num_highlights


@_kind("detectable_format:multiple_sections")
def _sections(
    reply: str, section_spliter: Annotated[Phrase, AfterValidator(_regular_expression)], num_sections: Count
) -> bool:
    return len(re.split(rf"\s?{section_spliter}\s?\d+\s?", reply)) > num_sections


@_kind("detectable_format:json_format")
def _json(reply: str) -> bool:
    inner = reply.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        inner = inner.removeprefix(fence)
    try:
        json.loads(inner.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


@_kind("detectable_format:title")
def _title(reply: str) -> bool:
    return any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<[^\n]+>>", reply))


@_kind("combination:two_responses")
def _two_responses(reply: str) -> bool:
    first, *rest = reply.split("******")
    inner, last = rest[:-1], rest[-1:]
    if not all(text.strip() for text in inner):
        return False
    filled = [text.strip() for text in [first, *inner, *last] if text.strip()]
    return len(filled) == 2 and filled[0] != filled[1]


@_kind("combination:repeat_prompt")
def _repeat_prompt(reply: str, prompt_to_repeat: Phrase) -> bool:
    return reply.strip().lower().startswith(prompt_to_repeat.lower())


@_kind("startend:end_checker")
def _end_phrase(reply: str, end_phrase: Phrase) -> bool:
    return reply.strip().strip('"').lower().endswith(end_phrase.lower())


@_kind("startend:quotation")
def _quotation(reply: str) -> bool:
    inner = reply.strip()
    return len(inner) > 1 and inner.startswith('"') and inner.endswith('"')


@_kind("change_case:capital_word_frequency")
def _capital_words(reply: str, capital_frequency: Count, capital_relation: Relation) -> bool:
    return _holds(capital_words(reply), capital_relation, capital_frequency)


@_kind("change_case:english_capital")
def _all_capitals(reply: str) -> bool:
    return reply.isupper() and detect_language(reply) in (None, "en")


@_kind("change_case:english_lowercase")
def _all_lowercase(reply: str) -> bool:
    return reply.islower() and detect_language(reply) in (None, "en")


@_kind("punctuation:no_comma")
def _no_comma(reply: str) -> bool:
    return "," not in reply
