"""Figures and texts as people read them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePath
from urllib.parse import quote, urlsplit

from srlm_pipeline.reporting.facts import Estimate

NOT_MEASURED = "\u2013"
_SHOWN, _LONGEST = 360, 3000


def share(value: float | None) -> str:
    """Write a share: ``57.3%``."""
    return NOT_MEASURED if _missing(value) else f"{value:.1%}"


def number(value: float | None) -> str:
    """Write a number with two decimals; large ones without."""
    if value is None or _missing(value):
        return NOT_MEASURED
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}"


def count(value: float | None) -> str:
    """Write a number of things: ``12,345``."""
    return NOT_MEASURED if _missing(value) else f"{value:,.0f}"


def signed(value: float | None) -> str:
    """Write a number whose sign matters: ``+0.42``."""
    return NOT_MEASURED if _missing(value) else f"{value:+.2f}"


def change_with_interval(estimate: Estimate | None) -> str:
    """Write a difference of two shares with its interval: ``+4.8% (-1.8% to +11.9%)``; nothing if there is none."""
    if estimate is None or _missing(estimate.value) or _missing(estimate.low) or _missing(estimate.high):
        return ""
    return f"{estimate.value:+.1%} ({estimate.low:+.1%} to {estimate.high:+.1%})"


def main_share(estimate: Estimate | None) -> str:
    """Write an estimated share without its interval."""
    return share(estimate.value if estimate else None)


def interval(estimate: Estimate | None) -> str:
    """Write the interval of a share, ``51.0% to 63.1%``; nothing if there is none."""
    if estimate is None or _missing(estimate.value) or _missing(estimate.low) or _missing(estimate.high):
        return ""
    return f"{share(estimate.low)} to {share(estimate.high)}"


def share_with_interval(estimate: Estimate | None) -> str:
    """Write a share with its interval: ``57.3% (51.0% to 63.1%)``."""
    around = interval(estimate)
    return f"{main_share(estimate)} ({around})" if around else main_share(estimate)


def p_value(value: float | None) -> str:
    """Write a p-value; tiny ones as an upper bound."""
    if value is None or _missing(value):
        return NOT_MEASURED
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def seconds(value: float | None) -> str:
    """Write a time: ``8.4 s``, ``3 min 20 s``, ``1 h 05 min``."""
    if value is None or _missing(value):
        return NOT_MEASURED
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


@dataclass(frozen=True)
class Folded:
    """A text in the part that is seen at once, the part that is folded away, and how much is left out."""

    head: str
    rest: str
    left_out: int


def fold(text: str) -> Folded:
    """Cut a long text where a line or a word ends, and leave out what exceeds 3,000 characters."""
    text = text.strip()
    kept = text[:_LONGEST]
    # A fold that hides a line or two would be in the way.
    if len(text) <= _SHOWN * 1.5:
        return Folded(text, "", 0)
    middle = _SHOWN * 3 // 5
    places = [kept.rfind(mark, middle, _SHOWN) for mark in ("\n", " ")]
    place = next((p for p in places if p > 0), _SHOWN)
    return Folded(kept[:place].rstrip(), kept[place:].lstrip("\n "), len(text) - len(kept))


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


def _missing(value: float | None) -> bool:
    return value is None or not math.isfinite(value)
