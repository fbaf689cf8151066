"""Short questions with exact answers, checked by program: what a model can still do, told cheaply.

A row has ``id``, ``kind``, ``prompt``, ``answers`` (accepted forms) and ``wrong`` (what a reply must not say as
well, e.g. the other options). Only the beginning of a reply counts, so that a model which rambles on after its answer
loses nothing, and one which says everything wins nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from srlm_pipeline.checks.samples import balanced_sample
from srlm_pipeline.config import DataSettings, SourceSettings
from srlm_pipeline.data.rows import RowReport
from srlm_pipeline.data.sources import digest_source, open_source
from srlm_pipeline.errors import EmptyDataError

NO_TASKS = "none"
_MAX_WORDS = 40
# "3 + 4 = 7" has three numbers; what has many more counts up, or lists what might be.
_MAX_NUMBERS = 6
# "Yes yes yes yes" is no answer but a loop.
_MAX_REPEATS = 3
_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = {
    word: 10 * place
    for place, word in enumerate(("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"), 2)
}
_VALUES = {word: value for value, word in enumerate(_UNITS)} | _TENS
_NUMBER = re.compile(
    r"(?<![^\W_])(?:(?P<digits>-?\d+(?:,\d{3})*(?:\.\d+)?)"
    rf"|(?:(?P<tens>{'|'.join(_TENS)})[ -](?P<unit>{'|'.join(_UNITS[1:10])})|(?P<word>{'|'.join(_VALUES)}))(?![^\W_]))",
    re.ASCII,
)
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_ARTICLES = frozenset({"a", "an", "the"})
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_NO_WORD_GOES_ON = r"(?!'?[^\W_])"
# What stands before an A that is a choice and no article.
_CUE = r"(?i:\b(?:answer|option|choice|letter|is)\s+)"
_UNCURL = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2212": "-", "*": "", "`": "", '"': ""}
)


@dataclass(frozen=True)
class ClosedTask:
    """A question and how its answer is told from others.

    Attributes:
        key: Names the question; unique.
        kind: What it is about, e.g. ``arithmetic``.
        prompt: The user's message.
        answers: Accepted forms, at least one; all of them numbers where a number is asked for.
        wrong: What a right reply does not say as well.
    """

    key: str
    kind: str
    prompt: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...]


_Form = Annotated[str, Field(pattern=r"[^\W_]")]


class _Row(BaseModel):
    id: int | str
    kind: str = Field(pattern=r"\S")
    prompt: str = Field(pattern=r"\S")
    answers: list[_Form] = Field(min_length=1)
    wrong: list[_Form]


def load_closed_tasks(source: str, limit: int | None = None) -> tuple[ClosedTask, ...]:
    """Return the tasks of a source, in the order of the file.

    Args:
        source: ``embedded``: those in the package; ``none``: no tasks; else a JSONL file in the same format.
        limit: Use only so many: the same ones each time, from every kind equally many if possible.

    Raises:
        DataError: Naming file, line and field: of a field that is missing or wrong, of an id or prompt that was there
            before, and of an answer that could not be right, e.g. because it is also among the wrong ones.
        EmptyDataError: If the source has no rows.
        ValueError: If the limit is below 1.
    """
    if source == NO_TASKS:
        return ()
    report, rows = open_source(SourceSettings(source=source), _embedded(), DataSettings())
    tasks: list[ClosedTask] = []
    seen: dict[tuple[str, str], int] = {}
    for number, content in rows:
        row = report.validated(number, _Row, content)
        assert row is not None, "broken rows are not skipped here"
        for field, value in (("id", str(row.id)), ("prompt", row.prompt)):
            if (before := seen.setdefault((field, value), number)) != number:
                raise report.error(number, f"{field}: the same as in {report.unit} {before}")
        tasks.append(ClosedTask(str(row.id), row.kind, row.prompt, tuple(row.answers), tuple(row.wrong)))
        _check(tasks[-1], number, report)
    if not tasks:
        raise EmptyDataError(f"{report.name} has no closed tasks")
    return balanced_sample(tasks, lambda task: task.kind, limit)


def closed_tasks_digest(source: str) -> str:
    """Return a digest of the tasks' source, so that an edited file makes what was measured with it stale."""
    return "" if source == NO_TASKS else digest_source(SourceSettings(source=source), _embedded())


def is_right(task: ClosedTask, reply: str) -> bool:
    """Tell whether a reply gives the answer and nothing that rules it out.

    The first line counts, with the next one if it ends in a colon; one of over 40 words is no short answer. Case,
    articles, markup and punctuation do not matter. Where a number is asked for, it is the last one of the first
    sentence that has any; else an accepted form stands there as whole words.

    Args:
        task: The question.
        reply: What a model wrote.
    """
    text = _beginning(reply)
    if not text or len(text.split()) > _MAX_WORDS or any(_count(form, text) for form in task.wrong):
        return False
    accepted = [_value(answer) for answer in task.answers]
    if None in accepted:
        return 0 < max(_count(answer, text) for answer in task.answers) <= _MAX_REPEATS
    numbers = next(filter(None, map(_numbers, _SENTENCE_END.split(text))), [])
    return 0 < len(numbers) <= _MAX_NUMBERS and numbers[-1] in accepted


def _beginning(reply: str) -> str:
    """Return the first line that says anything, with the next one if it only leads there; markup is left out."""
    plain = reply.translate(_UNCURL).replace("_", " ")
    lines = [line.strip() for line in plain.splitlines() if _WORD.search(line)]
    return " ".join(lines[: 2 if lines[:1] and lines[0].endswith(":") else 1])


def _count(form: str, text: str) -> int:
    """Return how often a text says something: a number by its value, a single letter as a choice, else the words."""
    if (value := _value(form)) is not None:
        return _numbers(text).count(value)
    form = form.translate(_UNCURL).strip()
    if re.fullmatch(r"[A-Za-z]", form):
        return _chosen(form, text)
    wanted, said = _words(form), _words(text)
    return sum(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1))


def _chosen(letter: str, text: str) -> int:
    """Return how often a letter is named; A and I also are words, and then are not meant."""
    if re.fullmatch(rf"\W*{letter}\W*", text, re.IGNORECASE):
        return 1
    if letter.upper() not in "AI":
        return len(re.findall(rf"(?<![^\W_])(?<![^\W_]'){letter}{_NO_WORD_GOES_ON}", text, re.IGNORECASE))
    capital = letter.upper()
    named = rf"(?i:\b{letter})\)|{_CUE}{capital}{_NO_WORD_GOES_ON}|\b{capital}(?!\s*'?[^\W_])"
    return len(re.findall(named, text))


def _words(text: str) -> list[str]:
    words = [word.removesuffix("'s") for word in _WORD.findall(text.translate(_UNCURL).casefold())]
    return [word for word in words if word not in _ARTICLES] or words


def _value(form: str) -> float | None:
    """Return the number that a form is; None for other forms."""
    found = _NUMBER.fullmatch(form.translate(_UNCURL).strip().lower())
    return _number(found) if found else None


def _numbers(text: str) -> list[float]:
    return [_number(found) for found in _NUMBER.finditer(text.lower())]


def _number(found: re.Match[str]) -> float:
    if found["digits"]:
        return float(found["digits"].replace(",", ""))
    return float(_VALUES[found["word"]] if found["word"] else _TENS[found["tens"]] + _VALUES[found["unit"]])


def _check(task: ClosedTask, number: int, report: RowReport) -> None:
    for place, answer in enumerate(task.answers):
        for other, form in enumerate(task.wrong):
            if _count(form, answer):
                raise report.error(number, f"answers.{place}: {answer!r} is also wrong: wrong.{other} is {form!r}")
        if not is_right(task, answer):
            raise report.error(number, f"answers.{place}: {answer!r} is not what a short first line can say")


def _embedded() -> Path:
    return Path(str(resources.files("srlm_pipeline.data.seed").joinpath("closed_tasks.jsonl")))
