"""Where rows come from: a file, a folder or a hub dataset. Whatever it is, its rows are numbered mappings."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import sys
import zlib
from collections.abc import Iterator
from io import BufferedReader, TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from srlm_pipeline.config import EMBEDDED_DATA, DataSettings, SourceSettings
from srlm_pipeline.data.rows import RowReport
from srlm_pipeline.errors import DataError
from srlm_pipeline.files import digest_files

NumberedRow = tuple[int, dict[str, Any]]
# Read as what they are called; what is not known at all is taken for JSON Lines.
_SEPARATORS = {"csv": ",", "tsv": "\t"}
_PACKED = ("gz", "zst")
_NOT_READ = ("zip", "7z", "tar", "tgz", "rar", "bz2", "xz", "xls", "xlsx", "ods", "arrow", "feather", "pkl", "db")
_FILE_ENDING = re.compile(
    rf"\.({'|'.join(['jsonl', 'ndjson', 'json', 'parquet', 'txt', *_SEPARATORS, *_PACKED, *_NOT_READ])})$",
    re.IGNORECASE,
)
_DAMAGED = (EOFError, OSError, zlib.error)


def open_source(
    source: SourceSettings, embedded: Path, settings: DataSettings
) -> tuple[RowReport, Iterator[NumberedRow]]:
    """Return a source's rows, read as they are asked for, and the report that is filled meanwhile.

    Args:
        source: Which one.
        embedded: The file in the package that stands for `embedded`.
        settings: Say what becomes of broken rows.

    Raises:
        DataError: If there is no such source, or while reading: if it is damaged or a row is broken.
    """
    path = _path(source, embedded)
    if path is None:
        report = RowReport(source.source, "row", settings.bad_rows)
        return report, _mappings(_dataset(source, report), report)
    if not path.is_file():
        raise DataError(path, None, "there is no such file")
    ending = _ending(path)
    if ending in _NOT_READ:
        raise DataError(path, None, f".{ending} files are not read: make it .jsonl, .json, .csv, .tsv or .parquet")
    if ending == "parquet" and path.suffix.lower() != ".parquet":
        raise DataError(path, None, "a Parquet file is compressed within: unpack it")
    read = (
        _parquet
        if ending == "parquet"
        else _separated
        if ending in _SEPARATORS
        else _array
        if ending == "json" and _is_array(path)
        else _json_lines
    )
    report = RowReport(str(path), "line" if read is _json_lines else "row", settings.bad_rows)
    return report, _mappings(read(path, report), report)


def digest_source(source: SourceSettings, embedded: Path) -> str:
    """Return a digest that changes when a file is edited; a hub dataset is known by its name alone, and not reached."""
    path = _path(source, embedded)
    if path is not None:
        return digest_files([path] if path.is_file() else [])
    folder = Path(source.source).expanduser()
    if folder.is_dir():
        return digest_files(sorted(file for file in folder.rglob("*") if file.is_file()))
    name = [source.source, source.subset, source.split]
    return hashlib.sha256(json.dumps(name).encode()).hexdigest()[:16]


def _path(source: SourceSettings, embedded: Path) -> Path | None:
    """Return the file that is meant, or None for what `datasets` loads: a folder, or a name of the hub."""
    if source.source == EMBEDDED_DATA:
        return embedded
    path = Path(source.source).expanduser()
    if path.is_dir():
        return None
    is_name = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source.source) and not _FILE_ENDING.search(source.source)
    return path if path.exists() or not is_name else None


def _mappings(rows: Iterator[tuple[int, Any]], report: RowReport) -> Iterator[NumberedRow]:
    for number, content in rows:
        if isinstance(content, dict):
            yield number, content
        else:
            problem = f"the whole {report.unit}: expected an object with named fields"
            report.broken(number, problem, f", found {type(content).__name__}")


def _ending(path: Path) -> str:
    """Return the ending that says how rows are written, in lower case and without that of a compression."""
    endings = [suffix.lower().removeprefix(".") for suffix in path.suffixes]
    return next((ending for ending in reversed(endings) if ending not in _PACKED), "")


def _open(path: Path) -> BinaryIO:
    packed = path.suffix.lower()
    if packed == ".zst":
        import pyarrow

        # In Python's own library from version 3.14 only.
        stream = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
        return cast("BinaryIO", BufferedReader(stream))
    return cast("BinaryIO", gzip.open(path)) if packed == ".gz" else path.open("rb")


def _json_lines(path: Path, report: RowReport) -> Iterator[tuple[int, Any]]:
    with _open(path) as stream:
        for number, raw in _numbered(stream, report):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                report.broken(number, "not UTF-8", f": byte {error.start} cannot be read")
                continue
            if not line.strip():
                continue
            try:
                content = json.loads(line)
            except json.JSONDecodeError as error:
                report.broken(number, "not valid JSON", f": {error.msg} at column {error.colno}")
            except (ValueError, RecursionError) as error:
                report.broken(number, "not readable as JSON", f": {error}")
            else:
                yield number, content


def _numbered(stream: BinaryIO, report: RowReport) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        for number, raw in enumerate(stream, start=1):
            yield number, raw
    except _DAMAGED as error:
        raise report.error(number + 1, f"the compressed file is damaged or cut short: {error}") from error


def _separated(path: Path, report: RowReport) -> Iterator[tuple[int, Any]]:
    """Return the rows below a table's header; a cell without anything in it is null."""
    # Replies are longer than what Python allows a cell by itself.
    csv.field_size_limit(sys.maxsize)
    number = 0
    try:
        with _open(path) as stream, TextIOWrapper(stream, "utf-8-sig", newline="") as text:
            rows = csv.reader(text, delimiter=_SEPARATORS[_ending(path)])
            header = next(rows, [])
            if len(header) == 1 and any(other in header[0] for other in ";\t|,"):
                raise report.error(None, f"the names of the columns are not separated as in .csv or .tsv: {header[0]}")
            if len(set(header)) < len(header):
                raise report.error(None, f"two columns have the same name: {', '.join(header)}")
            for number, cells in enumerate((cells for cells in rows if cells), start=1):
                if len(cells) == len(header):
                    yield number, {name: cell or None for name, cell in zip(header, cells, strict=True)}
                else:
                    problem = "the whole row: not as many cells as the header has names"
                    report.broken(number, problem, f", {len(cells)} for {len(header)}")
    except UnicodeDecodeError as error:
        raise report.error(number + 1, f"not UTF-8: {error.reason}; save the table as UTF-8") from error
    except csv.Error as error:
        raise report.error(number + 1, f"not readable as a table: {error}") from error
    except _DAMAGED as error:
        raise report.error(number + 1, f"the file is damaged or cut short: {error}") from error


def _is_array(path: Path) -> bool:
    """Tell a JSON array from JSON Lines in a file whose ending leaves it open."""
    with _open(path) as stream:
        try:
            return stream.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
        except _DAMAGED:
            return False


def _array(path: Path, report: RowReport) -> Iterator[tuple[int, Any]]:
    try:
        with _open(path) as stream:
            content = json.loads(stream.read().decode("utf-8-sig"))
    except (ValueError, RecursionError, *_DAMAGED) as error:
        raise report.error(None, f"not readable as a JSON array: {error}") from error
    yield from enumerate(content, start=1)


def _parquet(path: Path, report: RowReport) -> Iterator[tuple[int, Any]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=1024))
            yield from enumerate(chain.from_iterable(batches), start=1)
    except (ArrowException, OSError) as error:
        raise report.error(None, f"not readable as Parquet: {error}") from error


def _dataset(source: SourceSettings, report: RowReport) -> Iterator[tuple[int, Any]]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(str(Path(source.source).expanduser()), source.subset, split=source.split)
        # In batches: a third of the time that row by row takes.
        batches = dataset.iter(batch_size=1000)
        rows = (
            dict(zip(batch, values, strict=True)) for batch in batches for values in zip(*batch.values(), strict=True)
        )
        yield from enumerate(rows, start=1)
    except Exception as error:
        # Whatever went wrong inside the library or on the way to the hub, what a person can do is the same.
        reason = f"`datasets` cannot load split {source.split!r} of it ({type(error).__name__}: {error})"
        if not Path(source.source).expanduser().is_dir():
            reason += (
                ". There is no file or folder of this name here; where the hub cannot be reached, a local Parquet or "
                "JSONL file of the rows works as well"
            )
        raise report.error(None, reason) from error
