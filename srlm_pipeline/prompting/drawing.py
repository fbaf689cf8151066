"""Drawing words and wordings: what constraints and tasks are put together from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def draw_words(random: np.random.Generator, words: Sequence[str], n: int) -> list[str]:
    """Return n different words.

    Raises:
        ValueError: If there are fewer.
    """
    return [str(words[int(i)]) for i in random.choice(len(words), n, replace=False)]


def draw_wording(random: np.random.Generator, wordings: Sequence[str], **parts: object) -> str:
    """Return one of several wordings, its fields filled in.

    Args:
        random: Where it is drawn from.
        wordings: For `str.format`.
        parts: The fields by name.
    """
    return str(wordings[int(random.integers(len(wordings)))]).format(**parts)
