"""Rows of whatever source and format become what a table needs: a prompt alone, with a response, or with replies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import chain, cycle
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, StringConstraints, field_validator, model_validator

from srlm_pipeline.config import DataSettings, SourceSettings
from srlm_pipeline.data.chats import Exchange, exchanges, read_reply, role_of
from srlm_pipeline.data.formats import Format, named_fields, recognise_format, suggested_columns, unread_texts
from srlm_pipeline.data.open_assistant import FirstTurn, MessageFilter, first_turns, ranked_replies
from srlm_pipeline.data.replies import CONTRADICTION, TOO_FEW, answered_prompt, grouped, with_replies
from srlm_pipeline.data.rows import RowReport, UnusableRowError
from srlm_pipeline.data.sources import NumberedRow, open_source

Filled = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
# Known by name, so that a file that serves several tables is not said to have columns that nobody reads.
_OUR_OWN = frozenset({"id", "kind", "prompt", "response", "reference", "replies", "messages", "winner"})
_READ_BY: dict[Format, frozenset[str]] = {
    "plain": frozenset(),
    "messages": frozenset({"system"}),
    "preferences": frozenset({"chosen", "rejected"}),
    "rated_replies": frozenset({"score"}),
}
_LOOKED_AT = 100


class PromptRow(BaseModel):
    """A prompt; `id` and `kind` are optional."""

    id: Filled | None = None
    kind: str = ""
    prompt: Filled

    @field_validator("id", mode="before")
    @classmethod
    def _numbers_are_ids_too(cls, value: Any) -> Any:
        if isinstance(value, float) and not isinstance(value, bool):
            # A column of whole numbers with a gap comes out of many tools as 1.0, nan, 3.0.
            return None if math.isnan(value) else f"{value:.0f}" if value.is_integer() else str(value)
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("kind", mode="before")
    @classmethod
    def _may_be_null(cls, value: Any) -> Any:
        return "" if value is None or value != value else value


class EvaluationRow(PromptRow):
    """One evaluation prompt, with a good reply where one is known."""

    reference: Filled | None = None

    @field_validator("reference", mode="before")
    @classmethod
    def _blank_is_none(cls, value: Any) -> Any:
        return None if isinstance(value, str) and not value.strip() else value


class InstructionRow(PromptRow):
    """One IFT pair."""

    response: Filled


class ReplyRow(BaseModel):
    """One ranked reply, a plain text or an object; 0 is the best rank."""

    text: Filled
    rank: int | None = Field(None, ge=0)
    score: float | None = None
    rationale: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_text(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _score_in_range(self) -> ReplyRow:
        if self.score is not None and not 0 <= self.score <= 5:
            raise ValueError("the score is not between 0 and 5")
        return self


class RankedRow(PromptRow):
    """A prompt with ranked replies; where ranks are missing the scores order them, or else the order in the list."""

    replies: list[ReplyRow]

    @model_validator(mode="after")
    def _comparable(self) -> RankedRow:
        if len(self.replies) < 2:
            raise ValueError("replies: at least two are needed for a ranking")
        ranks = [reply.rank for reply in self.replies]
        if any(rank is None for rank in ranks) and any(rank is not None for rank in ranks):
            raise ValueError("replies: either all have a rank or none")
        if ranks[0] is None:
            self._rank()
        best = min(reply.rank or 0 for reply in self.replies)
        for reply in self.replies:
            reply.rank = (reply.rank or 0) - best
        scored = [(reply.rank or 0, reply.score) for reply in self.replies if reply.score is not None]
        if any(rank < other and score < higher for rank, score in scored for other, higher in scored):
            raise ValueError(CONTRADICTION)
        return self

    def _rank(self) -> None:
        scores = [reply.score for reply in self.replies]
        levels = sorted({score for score in scores if score is not None}, reverse=True)
        for place, reply in enumerate(self.replies):
            reply.rank = place if reply.score is None or None in scores else levels.index(reply.score)


Row = TypeVar("Row", bound=PromptRow)


def read_rows(
    source: SourceSettings, embedded: Path, row_type: type[Row], settings: DataSettings
) -> tuple[RowReport, Iterator[tuple[int, Row]]]:
    """Return a source's rows as what is needed, read as they are asked for.

    Args:
        source: Which one.
        embedded: The file in the package that stands for `embedded`.
        row_type: What is needed.
        settings: Say what becomes of broken rows and of unreviewed messages.

    Returns:
        What is left out, filled in while the rows are read; and (number from 1, row) for each row.

    Raises:
        DataError: With file, line and field; also while the rows are read.
    """
    report, raw = open_source(source, embedded, settings)
    return report, _read(source, row_type, raw, settings.include_unreviewed, report)


def _read(
    source: SourceSettings,
    row_type: type[Row],
    rows: Iterator[NumberedRow],
    include_unreviewed: bool,
    report: RowReport,
) -> Iterator[tuple[int, Row]]:
    needed = [name for name, field in row_type.model_fields.items() if field.is_required()]
    written, rows = _recognised(source, rows, needed, report)
    advice = ""
    if written in ("open_assistant_messages", "open_assistant_trees"):
        allowed = MessageFilter(source.languages, include_unreviewed)
        turns = first_turns(rows, written == "open_assistant_trees", allowed, report)
        candidates = _from_first_turns(turns, allowed, needed, report)
    elif written is None:
        candidates = iter(())
    else:
        first = next(rows)
        advice = suggested_columns(first[1], needed[-1])
        candidates = _from_fields(chain([first], rows), source, written, row_type, needed, report)
    for number, fields in candidates:
        row = report.validated(number, row_type, fields, columns=source.columns, advice=advice)
        if isinstance(row, RankedRow) and not _different(row, report):
            continue
        if row is not None:
            yield number, row


def _recognised(
    source: SourceSettings, rows: Iterator[NumberedRow], needed: list[str], report: RowReport
) -> tuple[Format | None, Iterator[NumberedRow]]:
    """Return how the first readable row is written, and all rows from there on; None if there is none."""
    for number, row in rows:
        try:
            return recognise_format(source, row, needed), chain([(number, row)], rows)
        except UnusableRowError as error:
            report.broken(number, error.problem, error.detail)
    return None, rows


def _from_fields(
    rows: Iterator[NumberedRow],
    source: SourceSettings,
    written: Format,
    row_type: type[Row],
    needed: list[str],
    report: RowReport,
) -> Iterator[NumberedRow]:
    """Return rows of columns as fields of the row that is needed, not yet checked."""
    if written == "messages" and "replies" in needed:
        raise report.error(None, "chats hold no ranked replies: each row needs a prompt and replies")
    renamed = _renamed(rows, source, _OUR_OWN | _READ_BY[written], report)
    if written == "rated_replies" and "replies" in needed:
        yield from grouped(renamed, source.score_range, report)
        return
    for number, fields in renamed:
        try:
            if written == "messages":
                yield from ((number, found) for found in _from_chat(fields, source, "response" in needed, report))
            elif "replies" in needed:
                whole = "replies" in fields or written == "preferences"
                found = with_replies(fields, source.score_range, report) if whole else fields
                yield from [(number, found)] if found is not None else []
            else:
                yield number, _plain(fields, row_type)
        except UnusableRowError as error:
            report.broken(number, error.problem, error.detail)


def _renamed(
    rows: Iterator[NumberedRow], source: SourceSettings, read: frozenset[str], report: RowReport
) -> Iterator[NumberedRow]:
    """Return rows with our names for their columns; the first ones show what nothing reads."""
    for count, (number, row) in enumerate(rows):
        if count < _LOOKED_AT:
            report.unread += [name for name in unread_texts(source, row, read) if name not in report.unread]
        try:
            yield number, named_fields(source, row)
        except UnusableRowError as error:
            report.broken(number, error.problem, error.detail)


def _from_chat(
    fields: Mapping[str, Any], source: SourceSettings, answered: bool, report: RowReport
) -> Iterator[dict[str, Any]]:
    found = exchanges(fields.get("messages"), answered, fields.get("system"))
    # One turn is read without a look at those after it.
    turns = [next(found, None)] if source.turns == "first" else list(found)
    used = [turn for turn in turns if turn is not None][-1 if source.turns == "last" else 0 :]
    if not used:
        raise UnusableRowError("messages: every reply has the weight 0")
    if source.turns == "first" and answered:
        n_replies = sum(role_of(message) == "assistant" for message in fields["messages"])
        report.leave_out("later reply of a chat (turns: first)", n_replies - 1)
    for place, turn in enumerate(used, start=1):
        yield _exchange_fields(fields, turn, answered, place)


def _exchange_fields(fields: Mapping[str, Any], turn: Exchange, answered: bool, place: int) -> dict[str, Any]:
    kept = {name: fields[name] for name in ("id", "kind") if fields.get(name) is not None}
    if "id" in kept and place > 1:
        kept["id"] = f"{kept['id']}#{place}"
    return {**kept, "prompt": turn.prompt, **({"response": turn.response} if answered else {})}


def _plain(fields: Mapping[str, Any], row_type: type[PromptRow]) -> dict[str, Any]:
    """Return a row whose texts may be transcripts or chats, and its good reply what was chosen."""
    read = dict(fields)
    if "response" in row_type.model_fields:
        before, response = read_reply(fields.get("response", fields.get("chosen")))
        read |= {} if response is None and "response" not in fields else {"response": response}
    elif "prompt" not in fields and "chosen" in fields:
        before, _ = read_reply(fields["chosen"])
    else:
        before = None
    prompt = answered_prompt(_with_history(fields), [before])
    return read | ({"prompt": prompt} if prompt is not None else {})


def _with_history(fields: Mapping[str, Any]) -> Any:
    """Return a prompt after the earlier turns that stand in a column of their own, as pairs of message and reply."""
    prompt, history = fields.get("prompt"), fields.get("history")
    pairs = isinstance(history, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in history)
    if not pairs or not history or not isinstance(prompt, str):
        return prompt
    said = [text for pair in history for text in pair]
    return [{"role": role, "content": text} for role, text in zip(cycle(("user", "assistant")), [*said, prompt])]


def _different(row: RankedRow, report: RowReport) -> bool:
    """Leave only the best of equal replies; returns whether there are still two."""
    kept: dict[str, ReplyRow] = {}
    for reply in sorted(row.replies, key=lambda reply: reply.rank or 0):
        kept.setdefault(reply.text, reply)
    report.leave_out("reply with the text of a better one", len(row.replies) - len(kept))
    row.replies = [reply for reply in row.replies if kept[reply.text] is reply]
    if len(kept) < 2:
        report.leave_out(TOO_FEW)
    return len(kept) >= 2


def _from_first_turns(
    turns: Iterator[FirstTurn], allowed: MessageFilter, needed: list[str], report: RowReport
) -> Iterator[NumberedRow]:
    for turn in turns:
        fields: dict[str, Any] = {"id": turn.id, "prompt": turn.prompt}
        if "response" in needed:
            replies = ranked_replies(turn, allowed, report)
            if not replies or replies[0].rank != 0:
                report.leave_out("prompt without a reply of rank 0")
                continue
            fields["response"] = replies[0].text
        if "replies" in needed:
            replies = ranked_replies(turn, allowed, report)
            if len(replies) < 2:
                report.leave_out("prompt with fewer than two ranked replies")
                continue
            fields["replies"] = [{"text": reply.text, "rank": reply.rank} for reply in replies]
        yield turn.number, fields
