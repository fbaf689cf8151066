"""The page on which people read what the models say: all replies to a prompt side by side, with what is wrong in them.

One file that loads nothing. Its one script is allowed by its digest; without it the page is a long plain one.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup
from rapidfuzz.distance import Indel

from srlm_pipeline.checks.vital_signs import SIGNS, Exchange, Mark, find_marks
from srlm_pipeline.data.chat import template_system_prompt
from srlm_pipeline.data.conversations import transcript
from srlm_pipeline.evaluation.assessment import Assessment
from srlm_pipeline.models.loading import load_tokenizer
from srlm_pipeline.reporting.iteration import Iteration
from srlm_pipeline.reporting.pages import render
from srlm_pipeline.store import BASE
from srlm_pipeline.tables import EVALUATION_PROMPTS, read_table

CUT_OFF = "cut_off"
_EXCERPT = 400


class SignWords(NamedTuple):
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


class Piece(NamedTuple):
    """A stretch of a text; `signs` are those that it shows, the gravest first, none where nothing is wrong."""

    text: str
    signs: tuple[SignWords, ...] = ()


@dataclass(frozen=True)
class Reply:
    """One model's reply.

    Attributes:
        text: As the model wrote it.
        n_tokens: Its length.
        signs: Names of what is wrong with it, ``cut_off`` included.
        marks: Where in the text; may overlap. Not every sign has a place.
    """

    text: str
    n_tokens: int = 0
    signs: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()

    @property
    def badges(self) -> tuple[SignWords, ...]:
        """Its signs in words, the gravest first."""
        return _in_words(self.signs)

    @property
    def elsewhere(self) -> tuple[SignWords, ...]:
        """The signs that have no place in the text, but concern the whole of it."""
        return _in_words(set(self.signs) - {mark.sign for mark in self.marks} - {"empty", CUT_OFF})

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The whole text, blank ends left out, cut at the borders of its marks."""
        return tuple(_cut(self.text, self.marks, *_ends(self.text)))

    @property
    def excerpt(self) -> tuple[Piece, ...]:
        """The beginning of the text, or what surrounds its first mark if that comes later."""
        start, end = _excerpt(self.text, min((mark.start for mark in self.marks), default=0))
        before, after = self.text[:start].strip(), self.text[end:].strip()
        ends = ([Piece("\u2026 ")] if before else []), ([Piece(" \u2026")] if after else [])
        return (*ends[0], *_cut(self.text, self.marks, start, end), *ends[1])


@dataclass(frozen=True)
class Prompt:
    """An evaluation prompt with the replies to it.

    Attributes:
        number: Its place on the page, from 1.
        id: Its name in the tables.
        kind: What sort of prompt it is.
        text: The instruction.
        reference: A good reply, where one is known.
        replies: By model; of one that was not asked there is none.
        change: How far the new model's reply is from the champion's, word by word: 0 the same, 1 nothing in common.
    """

    number: int
    id: str
    kind: str
    text: str
    reference: str | None
    replies: Mapping[str, Reply]
    change: float = 0.0

    @property
    def excerpt(self) -> tuple[Piece, ...]:
        """The beginning of the instruction."""
        return Reply(self.text).excerpt


@dataclass(frozen=True)
class Reading:
    """All replies to the evaluation prompts.

    Attributes:
        roles: By the models' names, in the order to be shown, the new one last: why they are shown, in words; blank if
            there is nothing to say.
        champion: Whose replies the new ones are compared with; None if there is only one model.
        prompts: In the order in which they were asked.
    """

    roles: Mapping[str, str]
    champion: str | None
    prompts: tuple[Prompt, ...]

    @property
    def new(self) -> str:
        """The new model's name."""
        return list(self.roles)[-1]

    @property
    def compared(self) -> dict[str, str]:
        """Champion and new model with their roles; only the new one if it is alone."""
        return {name: role for name, role in self.roles.items() if name in (self.champion, self.new)}

    @property
    def kinds(self) -> list[str]:
        """Kinds of prompts, in the order in which they first occur; blank ones left out."""
        return list(dict.fromkeys(prompt.kind for prompt in self.prompts if prompt.kind))

    @cached_property
    def counts(self) -> dict[str, list[tuple[str, int]]]:
        """By model, how many replies there are, how many have a sign (blank name), and how many have which."""
        replies = {name: [p.replies[name] for p in self.prompts if name in p.replies] for name in self.roles}
        return {
            name: [
                ("replies", len(own)),
                ("", sum(bool(reply.signs) for reply in own)),
                *((sign.name, sum(sign.name in reply.signs for reply in own)) for sign in SIGN_WORDS),
            ]
            for name, own in replies.items()
        }


def read_replies(
    assessments: Mapping[str, Assessment],
    roles: Mapping[str, str],
    champion: str | None,
    references: Mapping[str, str],
    system_prompt: str,
) -> Reading:
    """Gather the replies and find what is wrong in them.

    Args:
        assessments: By the models' names, in the order to be shown, the new model last; its prompts are shown.
        roles: Of the models, in words.
        champion: Whom the new model is compared with, if anyone.
        references: Good replies, by the prompts' ids, where they are known.
        system_prompt: What the chat template puts before a conversation by itself.
    """
    new = list(assessments)[-1]
    known = {key: text for key, text in references.items() if text.strip()}
    replies = {name: dict(_replies(assessment, known, system_prompt)) for name, assessment in assessments.items()}
    prompts = []
    for number, row in enumerate(assessments[new].part("evaluation").to_dict("records"), start=1):
        key = row["prompt_id"]
        given = {name: of_model[key] for name, of_model in replies.items() if key in of_model}
        change = _distance(given[champion].text, given[new].text) if champion in given else 0.0
        prompts.append(Prompt(number, key, row["kind"], transcript(row["prompt"]), known.get(key), given, change))
    return Reading({name: roles.get(name, "") for name in assessments}, champion, tuple(prompts))


def read_iteration(it: Iteration) -> Reading:
    """Return the replies of an iteration's model beside those of champion, base model and SFT baseline.

    Raises:
        TableError: If the evaluation prompts or the decision are missing.
    """
    champion = it.decision.champion if it.decision.champion in it.found else it.store.baseline
    roles = {name: o.description for name, o in it.opponents.items() if name in (BASE, it.store.baseline)}
    roles |= {champion: ", ".join([*([roles[champion]] if champion in roles else []), "champion"]), it.model: "new"}
    prompts = read_table(EVALUATION_PROMPTS, it.store.table_path("evaluation_prompts")).dropna(subset="reference")
    references = dict(zip(prompts["id"], prompts["reference"], strict=True))
    tokenizer = load_tokenizer(it.store.checkpoint(it.model).path, it.settings.model)
    shown = {model: it.found[model] for model in roles}
    return read_replies(shown, roles, champion, references, template_system_prompt(tokenizer))


def reading_html(reading: Reading, project: str, title: str, made_at: str, back: str) -> str:
    """Return the page as HTML; `back` is the relative address of the report, blank for none."""
    script, style = render("reading.js"), render("report.css")
    return render(
        "reading.html",
        reading=reading,
        project=project,
        title=title,
        made_at=made_at,
        back=back,
        signs=SIGN_WORDS,
        script=Markup(script),  # noqa: S704
        style=Markup(style),  # noqa: S704
        script_digest=page_digest(script),
        style_digest=page_digest(style),
    )


def telling(reading: Reading, n: int = 3) -> tuple[Prompt, ...]:
    """Return the prompts that a person should see first.

    Those come first whose replies became worse: flagged of the new model, not of the champion. The sign that was shown
    least has its turn, the gravest first, and of one sign the most changed reply. Then come the most changed replies.

    Args:
        reading: With all prompts.
        n: At most so many.
    """
    left = sorted(reading.prompts, key=lambda prompt: (-prompt.change, prompt.number))
    new = {prompt.number: _new_signs(reading, prompt) for prompt in left}
    chosen: list[Prompt] = []
    shown: Counter[str] = Counter()
    while left and len(chosen) < n:
        waiting = [sign.name for sign in SIGN_WORDS if any(sign.name in new[prompt.number] for prompt in left)]
        turn = min(waiting, key=lambda sign: shown[sign], default=None)
        following = next(prompt for prompt in left if turn is None or turn in new[prompt.number])
        left.remove(following)
        chosen.append(following)
        shown.update(new[following.number])
    return tuple(chosen)


def _new_signs(reading: Reading, prompt: Prompt) -> set[str]:
    signs = {name: set(reply.signs) for name, reply in prompt.replies.items()}
    return signs.get(reading.new, set()) - signs.get(reading.champion or "", set())


def _replies(assessment: Assessment, references: Mapping[str, str], system_prompt: str) -> Iterator[tuple[str, Reply]]:
    for row in assessment.part("evaluation").to_dict("records"):
        signs = (*(sign for sign in SIGNS if row[sign]), *([CUT_OFF] if row["finish_reason"] == "length" else []))
        exchange = Exchange(row["prompt"], row["reply"], references.get(row["prompt_id"]))
        # A place alone does not condemn a reply; a refusal does wherever it is found.
        marks = tuple(m for m in find_marks(exchange, system_prompt) if m.sign in signs or m.sign == "refuses")
        yield row["prompt_id"], Reply(row["reply"], row["n_tokens"], signs, marks)


def _in_words(signs: Collection[str]) -> tuple[SignWords, ...]:
    return tuple(sign for sign in SIGN_WORDS if sign.name in signs)


def _distance(first: str, second: str) -> float:
    return 1.0 - float(Indel.normalized_similarity(first.split(), second.split()))


def _cut(text: str, marks: Sequence[Mark], start: int, end: int) -> Iterator[Piece]:
    """Cut a stretch of a text wherever a mark begins or ends."""
    borders = {place for mark in marks for place in (mark.start, mark.end) if start < place < end}
    for a, b in pairwise(sorted({start, end, *borders})):
        yield Piece(text[a:b], _in_words({mark.sign for mark in marks if mark.start < b and mark.end > a}))


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
        # From a word's beginning on.
        near = place - _EXCERPT // 4
        blank = re.search(r"\s+", text[near:place])
        start = near + (blank.end() if blank else 0)
    if last - start <= _EXCERPT:
        return start, last
    # To a word's end, unless it is a very long one.
    words = re.match(r".*\S(?=\s)", text[start : start + _EXCERPT], re.DOTALL)
    return start, start + (words.end() if words and words.end() > _EXCERPT // 2 else _EXCERPT)


def page_digest(text: str) -> str:
    """Return what allows a script or a style sheet within a page whose policy forbids all others."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
