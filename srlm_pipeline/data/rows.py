"""What becomes of a row: used, left out for a reason, or broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from srlm_pipeline.errors import DataError

Row = TypeVar("Row", bound=BaseModel)


class UnusableRowError(ValueError):
    """A row, or a part of it, cannot be what is needed.

    Attributes:
        problem: What is wrong, in words that many rows may share.
        detail: What is particular to this row.
    """

    def __init__(self, problem: str, detail: str = "") -> None:
        self.problem = problem
        self.detail = detail
        super().__init__(problem + detail)


class RowReport:
    """Counts what is left out of one source, by reason; a broken row is counted too, or ends the reading.

    Attributes:
        name: File, folder or hub name, for messages.
        unit: What rows are numbered by: ``line`` or ``row``.
        left_out: Reason to number of rows, prompts or replies.
        unread: Columns of text that nothing reads.
        first_broken: What is wrong with the first broken row; blank if none is.
    """

    def __init__(self, name: str, unit: Literal["line", "row"], bad_rows: Literal["fail", "skip"]) -> None:
        self.name = name
        self.unit = unit
        self.left_out: Counter[str] = Counter()
        self.unread: list[str] = []
        self.first_broken = ""
        self._skip = bad_rows == "skip"

    def leave_out(self, reason: str, count: int = 1) -> None:
        """Count something that is not used."""
        if count:
            self.left_out[reason] += count

    def broken(self, number: int, problem: str, detail: str = "") -> None:
        """Report a row that cannot be used.

        Args:
            number: Of the row, from 1.
            problem: What is wrong, in words that many rows may share.
            detail: What is particular to this row.

        Raises:
            DataError: Unless broken rows are skipped.
        """
        if not self._skip:
            raise self.error(number, problem + detail)
        self.first_broken = self.first_broken or f"{self.unit} {number}: {problem}{detail}"
        self.leave_out(f"bad row: {problem}")

    def error(self, number: int | None, reason: str) -> DataError:
        """Return an error that names the place."""
        return DataError(self.name, number, reason, self.unit)

    def validated(
        self,
        number: int,
        row_type: type[Row],
        content: Mapping[str, Any],
        within: str = "",
        columns: Mapping[Any, str | tuple[str, ...]] | None = None,
        advice: str = "",
    ) -> Row | None:
        """Return a row as what it must be; None for a broken one that is skipped.

        Args:
            number: Of the row, from 1.
            row_type: What it must be.
            content: What it is.
            within: Dotted path of the field that the content stands in, if it is not the whole row.
            columns: Which columns the fields were taken from, where the setting `columns` can name them.
            advice: What to do where one is missing.

        Raises:
            DataError: With file, line and field, unless broken rows are skipped.
        """
        try:
            return row_type.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            path = [*within.split("."), *map(str, first["loc"])] if within else [*map(str, first["loc"])]
            own_words = first.get("ctx", {}).get("error")
            problem, detail = str(own_words or first["msg"]), ""
            if columns is not None and path[:1] and path[0] in columns:
                detail = f" (column {columns[path[0]]})"
            elif columns is not None and first["type"] == "missing" and len(path) == 1:
                named = f"the row has {', '.join(content)}" if content else "the row has no columns"
                detail = f"; {named}: {advice or 'the setting `columns` can name the right one'}"
            if self._skip:
                # The place in a list says nothing where many rows are summed up.
                path = [part for part in path if not part.isdigit()]
            self.broken(number, ": ".join(filter(None, [".".join(path), problem])), detail)
            return None


def in_words(left_out: Mapping[str, int]) -> str:
    """Return what was left out in one line, the most frequent reason first."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items(), key=lambda kept: -kept[1]))
