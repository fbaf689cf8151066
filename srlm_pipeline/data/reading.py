"""Rows of whatever source and format become what a table needs: a prompt alone, with a response, or with replies."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, StringConstraints, field_validator, model_validator

from srlm_pipeline.config import DataSettings, SourceSettings
from srlm_pipeline.data.formats import first_exchange, named_fields, recognise_format
from srlm_pipeline.data.open_assistant import FirstTurn, MessageFilter, first_turns, ranked_replies
from srlm_pipeline.data.rows import RowReport
from srlm_pipeline.data.sources import NumberedRow, open_source

Filled = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class PromptRow(BaseModel):
    """A prompt; `id` and `kind` are optional."""

    id: Filled | None = None
    kind: str = ""
    prompt: Filled

    @field_validator("id", mode="before")
    @classmethod
    def _numbers_are_ids_too(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @field_validator("kind", mode="before")
    @classmethod
    def _may_be_null(cls, value: Any) -> Any:
        return "" if value is None else value


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
    """A prompt with ranked replies; where ranks are missing, the order in the list counts, best first."""

    replies: list[ReplyRow]

    @model_validator(mode="after")
    def _comparable(self) -> RankedRow:
        if len(self.replies) < 2:
            raise ValueError("replies: at least two are needed for a ranking")
        ranks = [reply.rank for reply in self.replies]
        if any(rank is None for rank in ranks) and any(rank is not None for rank in ranks):
            raise ValueError("replies: either all have a rank or none")
        if len({reply.text for reply in self.replies}) < len(self.replies):
            raise ValueError("replies: two have the same text")
        return self


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
    first = next(rows, None)
    if first is None:
        return
    rows = chain([first], rows)
    needed = [name for name, field in row_type.model_fields.items() if field.is_required()]
    written = recognise_format(source, first[1], needed)
    if written in ("open_assistant_messages", "open_assistant_trees"):
        allowed = MessageFilter(source.languages, include_unreviewed)
        turns = first_turns(rows, written == "open_assistant_trees", allowed, report)
        candidates = _from_first_turns(turns, allowed, needed, report)
    elif written == "messages":
        candidates = _from_chats(rows, source, needed, report)
    else:
        candidates = ((number, named_fields(source, row)) for number, row in rows)
    for number, fields in candidates:
        row = report.validated(number, row_type, fields, columns=source.columns)
        if row is not None:
            yield number, row


def _from_chats(
    rows: Iterator[NumberedRow], source: SourceSettings, needed: list[str], report: RowReport
) -> Iterator[NumberedRow]:
    if "replies" in needed:
        raise report.error(None, "chats hold no ranked replies: each row needs a prompt and replies")
    for number, row in rows:
        try:
            yield number, first_exchange(named_fields(source, row), "response" in needed)
        except ValueError as error:
            report.broken(number, str(error))


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
