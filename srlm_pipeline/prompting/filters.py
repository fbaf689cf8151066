"""Which invented prompts are worth keeping: novelty, length, keywords, and clean-up of what models add."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rapidfuzz import process
from rapidfuzz.distance import Indel

from srlm_pipeline.data.conversations import without_marks

_WORD = re.compile(r"\w+")
# "Task 9:", "**Task 9:**", "3.", ":", but not the ".NET", "2.5" or "10:30" with which a prompt itself may begin.
_LABEL = re.compile(
    r"^[\s*#_>]*(?:(?:task|instruction|prompt|question|user|input)\s*#?\d*\s*[:.)]|#?\d+\s*[:.)]|:)(?!\d)"
    r"(?:(?:\*\*|__)(?=\s|$))?\s*",
    re.IGNORECASE,
)
# Where a model goes on to answer its own prompt, or to write the next one.
_OWN_ANSWER = re.compile(
    r"\n[\s*#_>]*(?:(?:answer|response|output|solution|assistant|reply|example)s?\s*\d*\s*:|(?:task|instruction|prompt)\s*#?\d+)",
    re.IGNORECASE,
)


class NoveltyIndex:
    """Known texts, and how close a new one comes to any of them.

    Closeness is ROUGE-L (F1 over words, as Self-Instruct filters): twice the longest common subsequence over
    the sum of lengths. Words are mapped to single code points, so that the comparison runs in compiled code.

    Args:
        known: Texts that count as taken.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._codes: dict[str, str] = {}
        self._known: list[str] = []
        for text in known:
            self.add(text)

    def add(self, text: str) -> None:
        """Make a text known."""
        self._known.append(self._encode(text))

    def nearest(self, text: str) -> float:
        """Return the highest ROUGE-L of a text with any known one, in 0..1."""
        found = process.extractOne(self._encode(text), self._known, scorer=Indel.normalized_similarity, processor=None)
        return float(found[1]) if found else 0.0

    def _encode(self, text: str) -> str:
        return "".join(self._code(word) for word in _WORD.findall(text.lower()))

    def _code(self, word: str) -> str:
        if word not in self._codes:
            place = len(self._codes) + 1
            # Surrogates are not characters; step over their block.
            self._codes[word] = chr(place if place < 0xD800 else place + 0x800)
        return self._codes[word]


def clean_prompt(text: str) -> str:
    """Strip labels, quotes, and any answer that the model started to write to its own prompt."""
    text = _LABEL.sub("", without_marks(text).strip(), count=1)
    started = _OWN_ANSWER.search(text)
    if started:
        text = text[: started.start()]
    text = text.strip()
    for opening, closing in (("**", "**"), ('"', '"'), ("\u201c", "\u201d"), ("'", "'")):
        width = len(opening)
        inner = text[width:-width]
        if inner and text.startswith(opening) and text.endswith(closing) and opening not in inner:
            text = inner.strip()
    return text


def rejection_reason(text: str, min_words: int, max_words: int, banned_words: Sequence[str]) -> str | None:
    """Return why a cleaned prompt is refused before its novelty is looked at, or None.

    Args:
        text: The prompt.
        min_words: Shorter ones are ``too_short``.
        max_words: Longer ones are ``too_long``.
        banned_words: Prompts about things that a text model cannot see are ``banned_word``.
    """
    words = [word.lower() for word in _WORD.findall(text)]
    if len(words) < min_words:
        return "too_short"
    if len(words) > max_words:
        return "too_long"
    if set(words) & {word.lower() for word in banned_words}:
        return "banned_word"
    if not text[0].isalnum() and text[0] not in "\"'([\u201c\u00bf\u00a1":
        return "bad_start"
    if sum(c.isalpha() for c in text) < len(text) / 2:
        return "not_text"
    return None
