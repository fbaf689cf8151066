"""A part of a set that is the same each time and has something of every kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def balanced_sample(items: Sequence[Item], kind_of: Callable[[Item], str], limit: int | None) -> tuple[Item, ...]:
    """Return so many items, taken from the kinds in turn, in the order of the set.

    Args:
        items: The whole set.
        kind_of: Says what kind an item is of.
        limit: How many; None: all.

    Raises:
        ValueError: If the limit is below 1.
    """
    if limit is None:
        return tuple(items)
    if limit < 1:
        raise ValueError(f"the limit is {limit}; at least 1 is expected")
    taken: defaultdict[str, int] = defaultdict(int)
    turns = []
    for place, item in enumerate(items):
        kind = kind_of(item)
        turns.append((taken[kind], place))
        taken[kind] += 1
    return tuple(items[place] for place in sorted(place for _, place in sorted(turns)[:limit]))
