"""Plain measures of replies that need no judge: length, repetition and variety."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

_NGRAM = 4


def repeated_ngrams(text: str, n: int = _NGRAM) -> float:
    """Return the share of a text's word n-grams that occurred before in it; 0 for texts shorter than n words."""
    words = text.lower().split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(Counter(grams)) / len(grams) if grams else 0.0


def describe_replies(replies: Sequence[str], n_tokens: Sequence[int]) -> dict[str, float]:
    """Return mean length (characters, tokens), repetition, variety and the share of empty replies."""
    return {
        "length_mean": float(np.mean([len(r) for r in replies])),
        "tokens_mean": float(np.mean(n_tokens)),
        "repeated_4grams": float(np.mean([repeated_ngrams(r) for r in replies])),
        "distinct_2grams": distinct_ngrams(replies) or 0.0,
        "empty_share": float(np.mean([not r.strip() for r in replies])),
    }


def distinct_ngrams(replies: Sequence[str], n: int = 2) -> float | None:
    """Return the share of different word n-grams among all n-grams of all replies (distinct-n, Li et al. 2016).

    Longer and more replies have a smaller share for that alone.

    Returns:
        None if no reply has n words.
    """
    return _distinct((reply.lower().split() for reply in replies), n)


def _distinct(texts: Iterable[Sequence[str]], n: int) -> float | None:
    grams = Counter(tuple(words[i : i + n]) for words in texts for i in range(len(words) - n + 1))
    return len(grams) / grams.total() if grams else None
