"""What the reading page shows, as plain values: prompts, replies to them, and where something is wrong in a reply."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from srlm_pipeline.evaluation.vital_signs import Mark

CUT_OFF = "cut_off"
_EXCERPT = 400


@dataclass(frozen=True)
class SignWords:
    """A sign in words: its name in the tables, what a badge says, and what it means."""

    name: str
    word: str
    meaning: str


# The gravest first.
SIGN_WORDS = (
    SignWords("loops", "loops", "says the same over and over"),
    SignWords("echoes", "echoes", "is copied from the prompt instead of answering it"),
    SignWords("recites", "recites", "says what it says to other prompts too, or what it was told to be"),
    SignWords("empty", "empty", "says nothing at all"),
    SignWords("refuses", "refuses", "begins by declining to answer"),
    SignWords("other_language", "other language", "is in another language than the prompt"),
    SignWords(CUT_OFF, "cut off", "was ended by the token limit"),
)
_WORDS = {sign.name: sign for sign in SIGN_WORDS}


@dataclass(frozen=True)
class Piece:
    """A stretch of a text; `signs` are those that it shows, none where nothing is wrong."""

    text: str
    signs: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """What is wrong here, in words."""
        return ", ".join(_WORDS[sign].word for sign in self.signs)


@dataclass(frozen=True)
class ReadModel:
    """A model whose replies are read.

    Attributes:
        name: E.g. ``M2``.
        role: Why it is shown, in words: ``SFT baseline``; blank if there is nothing to say.
    """

    name: str
    role: str = ""


@dataclass(frozen=True)
class ReadReply:
    """One model's reply.

    Attributes:
        model: Its name.
        text: As the model wrote it.
        n_tokens: Its length.
        signs: What is wrong with it, the gravest first, ``cut_off`` included.
        marks: Where in the text; may overlap. Not every sign has a place.
    """

    model: str
    text: str
    n_tokens: int
    signs: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()

    @property
    def badges(self) -> tuple[SignWords, ...]:
        """Its signs in words."""
        return tuple(sign for sign in SIGN_WORDS if sign.name in self.signs)

    @property
    def elsewhere(self) -> tuple[SignWords, ...]:
        """The signs that have no place in the text, but concern the whole of it."""
        placed = {mark.sign for mark in self.marks} | {"empty", CUT_OFF}
        return tuple(sign for sign in self.badges if sign.name not in placed)

    @property
    def cut_off(self) -> bool:
        """Whether the token limit ended it."""
        return CUT_OFF in self.signs

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The whole text, blank ends left out, cut at the borders of its marks."""
        return tuple(_cut(self.text, self.marks, *_ends(self.text)))

    @property
    def excerpt(self) -> tuple[Piece, ...]:
        """The beginning of the text, or what surrounds its first mark if that comes later."""
        start, end = _excerpt(self.text, min((mark.start for mark in self.marks), default=0))
        pieces = list(_cut(self.text, self.marks, start, end))
        before, after = self.text[:start].strip(), self.text[end:].strip()
        return (*([Piece("\u2026 ")] if before else []), *pieces, *([Piece(" \u2026")] if after else []))


@dataclass(frozen=True)
class ReadPrompt:
    """An evaluation prompt with the replies to it.

    Attributes:
        number: Its place on the page, from 1.
        id: Its name in the tables.
        kind: What sort of prompt it is.
        prompt: The instruction.
        reference: A good reply, where one is known.
        replies: In the order of the page's models; of a model that was not asked there is none.
        change: How far the new model's reply is from the champion's, word by word: 0 the same, 1 nothing in common.
    """

    number: int
    id: str
    kind: str
    prompt: str
    reference: str | None
    replies: tuple[ReadReply, ...]
    change: float = 0.0

    @property
    def excerpt(self) -> tuple[Piece, ...]:
        """The beginning of the prompt."""
        return ReadReply("", self.prompt, 0).excerpt

    def reply_of(self, model: str) -> ReadReply | None:
        """Return a model's reply; None if it was not asked."""
        return next((reply for reply in self.replies if reply.model == model), None)


@dataclass(frozen=True)
class ReadingPage:
    """Everything on the page.

    Attributes:
        project: Name.
        title: What was done, e.g. ``Iteration 2: M2``.
        made_at: When the page was made, in words.
        models: In the order to be shown, the new one last.
        champion: Whose replies the new ones are compared with; None if there is only one model.
        prompts: In the order in which they were asked.
        back: Relative address of the report; blank for none.
    """

    project: str
    title: str
    made_at: str
    models: tuple[ReadModel, ...]
    champion: str | None
    prompts: tuple[ReadPrompt, ...]
    back: str = ""

    @property
    def compared(self) -> tuple[ReadModel, ...]:
        """The champion and the new model; only the new one if it is alone."""
        return tuple(m for m in self.models[:-1] if m.name == self.champion) + self.models[-1:]

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of prompts, in the order in which they first occur; blank ones left out."""
        return tuple(dict.fromkeys(prompt.kind for prompt in self.prompts if prompt.kind))

    def count(self, model: str, sign: str | None = None) -> int:
        """Return how many of a model's replies show a sign; without a sign: any."""
        replies = (prompt.reply_of(model) for prompt in self.prompts)
        return sum(bool(reply.signs) if sign is None else sign in reply.signs for reply in replies if reply)

    def n_replies(self, model: str) -> int:
        """Return how many replies of a model there are."""
        return sum(prompt.reply_of(model) is not None for prompt in self.prompts)


def _cut(text: str, marks: Sequence[Mark], start: int, end: int) -> Iterator[Piece]:
    """Cut a stretch of a text wherever a mark begins or ends."""
    borders = {place for mark in marks for place in (mark.start, mark.end) if start < place < end}
    places = sorted({start, end, *borders})
    for a, b in pairwise(places):
        signs = {mark.sign for mark in marks if mark.start < b and mark.end > a}
        yield Piece(text[a:b], tuple(sign.name for sign in SIGN_WORDS if sign.name in signs))


def _ends(text: str) -> tuple[int, int]:
    """Return where a text begins and ends, blank ends left out."""
    end = len(text.rstrip())
    return min(end, len(text) - len(text.lstrip())), end


def _excerpt(text: str, place: int) -> tuple[int, int]:
    """Return the ends of about 400 characters, which begin at the beginning if they reach a place, else before it."""
    first, last = _ends(text)
    # A cut that hides a word or two would be in the way.
    if last - first <= _EXCERPT * 1.15:
        return first, last
    start = first
    if place > first + _EXCERPT * 3 // 4:
        near = place - _EXCERPT // 4
        start = next((m.end() for m in re.finditer(r"\s+", text[near:place])), 0) + near
    if last - start <= _EXCERPT:
        return start, last
    end = start + _EXCERPT
    blanks = [m.start() for m in re.finditer(r"\s+", text[start:end])]
    return start, start + blanks[-1] if blanks and blanks[-1] > _EXCERPT // 2 else end
