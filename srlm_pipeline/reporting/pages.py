"""What all pages share: tables, templates in which every value is escaped, and where a page is written."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from srlm_pipeline.files import replacing_file
from srlm_pipeline.reporting import words
from srlm_pipeline.reporting.words import UNPRINTABLE, Cell, in_line
from srlm_pipeline.store import partition_key

# File name of the report over all iterations, beside those of the iterations.
OVERVIEW = "index.html"


def report_name(iteration: int) -> str:
    """Return the file name of an iteration's report."""
    return f"{partition_key(iteration)}.html"


def reading_name(iteration: int) -> str:
    """Return the file name of the page with an iteration's replies."""
    return f"{partition_key(iteration)}_replies.html"


@dataclass(frozen=True)
class Table:
    """Texts in rows and columns, for a page or a terminal.

    Attributes:
        heads: Of the columns.
        rows: As many cells each; the first names the row.
        texts: Places of the columns that hold words; the others hold figures.
        total: A last row; nothing for none.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    texts: Collection[int] = (0,)
    total: Sequence[Cell] = ()

    def markdown(self, *columns: int, brief: bool = False) -> str:
        """Return the table as Markdown in which nothing is markup.

        Args:
            columns: Places of those that are shown; none mean all.
            brief: Whether intervals are left out.
        """
        shown = columns or range(len(self.heads))
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
