"""Reading JSON Lines so that a broken line is named by file and number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from srlm_pipeline.errors import DataError, EmptyDataError

Row = TypeVar("Row", bound=BaseModel)


def read_rows(path: Path, row_type: type[Row], limit: int | None = None) -> list[tuple[int, Row]]:
    """Read and validate a JSONL file.

    Args:
        path: UTF-8 text, one JSON object a line; blank lines are skipped.
        row_type: What each object must be.
        limit: Stop after so many rows.

    Returns:
        (line number from 1, row) for each row.

    Raises:
        DataError: With file, line and field of the first broken line.
        EmptyDataError: If there are no rows.
    """
    if not path.is_file():
        raise DataError(path, None, "there is no such file")
    rows: list[tuple[int, Row]] = []
    for number, line in _lines(path):
        if limit is not None and len(rows) >= limit:
            break
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(path, number, f"not valid JSON: {error.msg} at column {error.colno}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(path, number, f"not readable as JSON: {error}") from error
        try:
            rows.append((number, row_type.model_validate(content)))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the whole line"
            raise DataError(path, number, f"{field}: {first['msg']}") from error
    if not rows:
        raise EmptyDataError(f"{path} holds no rows")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(path, number, f"not UTF-8: byte {error.start} cannot be read") from error
            if line.strip():
                yield number, line
