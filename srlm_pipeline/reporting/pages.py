"""What all pages share: tables, templates in which every value is escaped, and where a page is written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from srlm_pipeline.files import replacing_file
from srlm_pipeline.reporting import words
from srlm_pipeline.reporting.words import UNPRINTABLE, Cell, Estimate, in_line, is_known, written
from srlm_pipeline.store import partition_key

# File name of the report over all iterations, beside those of the iterations.
OVERVIEW = "index.html"
# What is known of whatever a row is about, by name; figures are numbers or None.
Figures = Mapping[str, Any]


def report_name(iteration: int) -> str:
    """Return the file name of an iteration's report."""
    return f"{partition_key(iteration)}.html"


def reading_name(iteration: int) -> str:
    """Return the file name of the page with an iteration's replies."""
    return f"{partition_key(iteration)}_replies.html"


def candidates_name(iteration: int) -> str:
    """Return the file name of the page with an iteration's candidates and pairs."""
    return f"{partition_key(iteration)}_candidates.html"


@dataclass(frozen=True)
class Column:
    """A column of figures, or a series of them in a chart.

    Attributes:
        head: What stands above it.
        names: Of the figure among a row's figures; then those of the ends of its interval, unless they are the same
            with ``_low`` and ``_high``.
        write: How a figure is written.
        meaning: What it is, where the head does not say enough.
        optional: Whether it is left out where no row has the figure.
    """

    head: str
    names: str
    write: Callable[[float | None], str] = words.share
    meaning: str = ""
    optional: bool = False

    def estimate(self, figures: Figures) -> Estimate:
        """Return the figure with its ends."""
        name, *ends = self.names.split()
        value, low, high = map(figures.get, (name, *(ends or (f"{name}_low", f"{name}_high"))))
        return value, low, high

    def cell(self, figures: Figures) -> Cell:
        """Return the figure as it is written."""
        return written(self.estimate(figures), self.write)


@dataclass(frozen=True)
class Table:
    """Texts in rows and columns, for a page or a terminal.

    Attributes:
        heads: Of the columns.
        rows: As many cells each; the first names the row.
        texts: Places of the columns that hold words; the others hold figures.
        total: A last row; nothing for none.
        meanings: Of columns, by head.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    texts: Collection[int] = (0,)
    total: Sequence[Cell] = ()
    meanings: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(what: str, columns: Sequence[Column], rows: Mapping[Cell, Figures], total: Figures | None = None) -> Table:
        """Write figures.

        Args:
            what: What the rows are.
            columns: From which figures they are made.
            rows: Figures by the name of the row.
            total: Those of a last row.
        """
        shown = [c for c in columns if not c.optional or any(is_known(c.estimate(row)) for row in rows.values())]
        return Table(
            (what, *(column.head for column in shown)),
            [(name, *(column.cell(row) for column in shown)) for name, row in rows.items()],
            total=() if total is None else ("all", *(column.cell(total) for column in shown)),
            meanings={column.head: column.meaning for column in shown if column.meaning},
        )

    def markdown(self, brief: bool = False, without: Collection[str] = ()) -> str:
        """Return the table as Markdown in which nothing is markup.

        Args:
            brief: Whether intervals are left out.
            without: Heads of columns that are left out.
        """
        shown = [n for n, head in enumerate(self.heads) if head not in without]
        lines = [[self.heads[n] for n in shown], ["---"] * len(shown)]
        lines += [[plain(in_line(row[n], brief)) for n in shown] for row in self.rows]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def sentence(text: str, more: str = "") -> str:
    """Return a text that ends with one full stop; `more` is put before it."""
    return text.strip().rstrip(".") + more + "."


def plain(text: str) -> str:
    """Return one line of Markdown in which nothing is markup."""
    return "".join("\\" + c if c in "\\`*_{}[]<>|#~&" else c for c in " ".join(text.split()))


def render(template: str, **values: object) -> str:
    """Return a page: the template with the values in it, none of which can be markup."""
    return environment().get_template(template).render(**values).translate(UNPRINTABLE)


def write_report(path: Path, page: str) -> None:
    """Write a page, atomically: a reader finds the old one or the new one, never half of either."""
    with replacing_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


@cache
def environment() -> Environment:
    """Return the templates, with the filters that write figures as people read them."""
    environment = Environment(
        loader=PackageLoader("srlm_pipeline.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("share", "number", "count", "signed", "fold", "safe_address", "file_address", "in_line")
    # The filter `count` is Jinja's own name for `length`.
    environment.filters |= {name.replace("count", "count_of"): getattr(words, name) for name in names}
    return environment
