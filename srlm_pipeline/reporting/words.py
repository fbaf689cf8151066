"""Figures and texts as people read them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import PurePath
from urllib.parse import quote, urlsplit

# A figure with the ends of its 95 % interval; None where there is none.
Estimate = tuple[float | None, float | None, float | None]
# What stands in a table: a text, or several, one below the other.
Cell = str | tuple[str, ...]
NOT_MEASURED = "\u2013"
GOOD, BAD = "\u2713", "\u2717"
# Control characters and halves of surrogate pairs, which HTML and UTF-8 do not allow.
UNPRINTABLE = dict.fromkeys(
    [*(c for c in range(0x20) if chr(c) not in "\t\n\r"), *range(0x7F, 0xA0), *range(0xD800, 0xE000)], "\ufffd"
)
_SHOWN, _LONGEST = 360, 3000


def _formatted(form: str, value: float | None) -> str:
    return NOT_MEASURED if value is None or not math.isfinite(value) else format(value, form)


# ``57.3%``, ``12,345``, ``+0.42``, ``+4.8%``; a dash for what was not measured.
share, count, signed, change = (partial(_formatted, form) for form in (".1%", ",.0f", "+.2f", "+.1%"))


def number(value: float | None) -> str:
    """Write a number with two decimals; large ones without."""
    return _formatted(",.0f" if value is not None and abs(value) >= 1000 else ".2f", value)


def plain_number(value: float) -> str:
    """Write a number of any size, without needless decimals."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def p_value(value: float | None) -> str:
    """Write a p-value; tiny ones as an upper bound."""
    return "< 0.001" if value is not None and value < 0.001 else _formatted(".3f", value)


def seconds(value: float | None) -> str:
    """Write a time: ``8.4 s``, ``3 min 20 s``, ``1 h 05 min``."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


def is_known(estimate: Estimate) -> bool:
    """Return whether there is a figure that can be shown."""
    return estimate[0] is not None and math.isfinite(estimate[0])


def written(estimate: Estimate, write: Callable[[float | None], str] = share) -> Cell:
    """Write a figure, and below it its interval: ``57.3%``, ``51.0% to 63.1%``."""
    value, *ends = (write(part) for part in estimate)
    return value if NOT_MEASURED in (value, *ends) else (value, " to ".join(ends))


def in_line(cell: Cell, brief: bool = False) -> str:
    """Write a cell in one line: ``57.3% (51.0% to 63.1%)``, or in brief what stands first; verdicts are all kept."""
    if isinstance(cell, str):
        return cell
    if cell[0][:1] in (GOOD, BAD):
        return "; ".join(cell)
    return cell[0] if brief else " ".join([cell[0], *(f"({line})" for line in cell[1:])])


def verdict(passed: bool | None, yes: str = "passed", no: str = "failed") -> str:
    """Write what was decided."""
    return f"{NOT_MEASURED} not judged" if passed is None else f"{GOOD} {yes}" if passed else f"{BAD} {no}"


def fold(text: str) -> tuple[str, str, int]:
    """Cut a long text where a line or a word ends, and leave out what exceeds 3,000 characters.

    Returns:
        What is seen at once, what is folded away, and how many characters are left out.
    """
    text = text.strip()
    kept = text[:_LONGEST]
    # A fold that hides a line or two would be in the way.
    if len(text) <= _SHOWN * 1.5:
        return text, "", 0
    places = [kept.rfind(mark, _SHOWN * 3 // 5, _SHOWN) for mark in ("\n", " ")]
    place = next((p for p in places if p > 0), _SHOWN)
    return kept[:place].rstrip(), kept[place:].lstrip("\n "), len(text) - len(kept)


def safe_address(address: str) -> str | None:
    """Return an address as it may stand in a link; None unless it is http, https or relative.

    A link that a model or a setting made up must not run a script.
    """
    # Browsers read a backslash as a slash, `urlsplit` does not.
    if "\\" in address:
        return None
    try:
        parts = urlsplit(address)
    except ValueError:
        return None
    if parts.scheme in ("http", "https") and parts.netloc:
        return address
    return None if parts.scheme or parts.netloc or not address else address


def file_address(path: str) -> str | None:
    """Return the address of a file on this machine; None for a relative path."""
    pure = PurePath(path)
    return "file://" + quote(pure.as_posix(), errors="replace") if pure.is_absolute() else None
