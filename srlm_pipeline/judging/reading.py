"""Reading what a model would say next at chosen places: several of them about one reply, which is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from srlm_pipeline.generation.engine import TextEngine
from srlm_pipeline.generation.journal import Journal, fingerprint
from srlm_pipeline.progress import ProgressReporter

# Below this a model was about to write something else, and what it thinks of the options means nothing.
MINIMUM_MASS = 0.01
# Groups that are rendered and kept at a time.
_CHUNK = 64


@dataclass(frozen=True)
class Place:
    """A place in a model's reply.

    Attributes:
        message: What the user says.
        start: What the reply begins with, up to the place.
    """

    message: str
    start: str


def read_places(
    engine: TextEngine,
    groups: Sequence[Sequence[Place]],
    options: Sequence[str],
    description: str,
    progress: ProgressReporter,
    journal: Journal | None = None,
) -> list[NDArray[np.float64]]:
    """Return the probability of each option at each place.

    Args:
        engine: The model.
        groups: Places whose messages begin alike stand side by side in a group; an engine reads the beginning once.
            Equal groups are read once.
        options: One token each.
        description: Shown with the progress.
        progress: Where progress is shown.
        journal: Finished groups are read from it and added to it.

    Returns:
        For each group shape (its places, options).
    """
    entries = [_entry(engine.digest, places, options) for places in groups]
    different = dict(zip(entries, groups, strict=True))
    known = journal.find(different) if journal is not None else {}
    found = {entry: item["masses"] for entry, item in known.items()}
    # Alike lengths together, so that batches are little padded.
    rest = sorted((e for e in different if e not in found), key=lambda e: -_length(different[e]))
    total, done = (sum(len(different[entry]) for entry in own) for own in (different, found))
    with progress.task(description, total, "answers", done) as task:
        for begin in range(0, len(rest), _CHUNK):
            chunk = rest[begin : begin + _CHUNK]
            prefixes = [engine.render(place.message, place.start) for entry in chunk for place in different[entry]]
            rows = iter(engine.next_token_distribution(prefixes, options, task.advance).tolist())
            new = {entry: [next(rows) for _ in different[entry]] for entry in chunk}
            if journal is not None:
                journal.append({entry: {"masses": masses} for entry, masses in new.items()})
            found.update(new)
    return [np.array(found[entry], dtype=float).reshape(-1, len(options)) for entry in entries]


def _entry(digest: str, places: Sequence[Place], options: Sequence[str]) -> str:
    """Return the key of a group in journals: everything that its probabilities depend on."""
    return fingerprint(digest, [place.message for place in places], [place.start for place in places], options)


def _length(places: Sequence[Place]) -> int:
    return max((len(place.message) for place in places), default=0)


@dataclass(frozen=True)
class Expectation:
    """What is expected of a value.

    Attributes:
        mean: Between the smallest value and the largest.
        spread: Standard deviation.
    """

    mean: float
    spread: float


def expectation(masses: Sequence[float], values: Sequence[float]) -> Expectation | None:
    """Return the expected value, options that have none left out; None if those with one have next to no probability.

    Args:
        masses: Full-vocabulary probability of each option.
        values: Of each option, ascending.
    """
    total = sum(masses)
    if not total >= MINIMUM_MASS:
        return None
    shares, worth = np.asarray(masses, dtype=float) / total, np.asarray(values, dtype=float)
    mean = float(shares @ worth)
    spread = float(shares @ (worth - mean) ** 2) ** 0.5
    return Expectation(min(max(mean, float(worth[0])), float(worth[-1])), spread)


def weighted_expectation(found: Sequence[Expectation | None], weights: Sequence[float]) -> Expectation | None:
    """Return the weighted mean of expectations, those that could not be read left out; None if none could.

    Its spread is that within them: the root of their variances' weighted mean.
    """
    read = [(e, weight) for e, weight in zip(found, weights, strict=True) if e is not None]
    if not read:
        return None
    shares = np.array([weight for _, weight in read])
    mean = float(np.average([e.mean for e, _ in read], weights=shares))
    return Expectation(mean, float(np.average([e.spread**2 for e, _ in read], weights=shares)) ** 0.5)
