"""Made-up negatives among the ranked replies (not in the paper): a judge is to see what is wrong with them.

People rank replies that were all written for the prompt, in good faith. A small model learns most of their order from
length and manner alone, and need not read what a reply answers, nor all that it says. Here such a judge is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from srlm_pipeline.errors import EmptyDataError
from srlm_pipeline.judging.eft import EftData
from srlm_pipeline.tables import EFT

# The rubric's word for nought.
_IRRELEVANT = 0.0
# So many replies are near enough in length to draw from; with fewer the same few would stand below every prompt.
_NEAR = 10
# A shorter reply is not cut in two, which could leave nothing wrong with it.
_MIN_WORDS_TO_CUT = 8
_MAX_REPETITIONS = 8
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def with_negatives(data: EftData, mismatched: int, corrupted: int, seed: int) -> EftData:
    """Add made-up replies below each prompt's own ones; nothing is said of their order among themselves.

    A mismatched negative is a reply to another prompt, as long as one of the prompt's own. A corrupted negative is a
    copy of the last-ranked reply, which another prompt's reply follows, or one of its sentences again and again, or
    whose second half is gone: two of these three ways to be worse make it longer.

    Args:
        data: Judging data.
        mismatched: So many for each prompt.
        corrupted: So many for each prompt; with neither the data stays as it is.
        seed: Of all that is drawn.

    Raises:
        EmptyDataError: If there is no other prompt to take replies from.
    """
    if not mismatched and not corrupted:
        return data
    own = data.table
    if own["group_id"].nunique() < 2:
        raise EmptyDataError(
            "eft.mismatched_negatives and eft.corrupted_negatives take replies from other prompts, and the judging "
            f"data has {own['group_id'].nunique()} of them: set both to 0, or check data.ranked_replies"
        )
    random = np.random.default_rng(seed)
    elsewhere = _RepliesByLength(own["text"])
    added: list[dict[str, Any]] = []
    n_mismatched = 0
    for group_id, group in own.groupby("group_id", sort=True):
        texts = group["text"].tolist()
        common = {"group_id": group_id, "prompt": group["prompt"].iloc[0], "rank": group["rank"].max() + 1}
        # Without the others' scores it would teach to give noughts.
        score = None if group["score"].isna().any() else _IRRELEVANT
        found = list(elsewhere.mismatched(texts, mismatched, random))
        n_mismatched += len(found)
        added += [{**common, "text": text, "score": score} for text in found]
        last = group["text"].loc[group["rank"].idxmax()]
        copies = dict.fromkeys(_corrupted(last, texts, elsewhere, random) for _ in range(corrupted))
        # How much worse a copy is nobody has said.
        added += [{**common, "text": text, "score": None} for text in copies if text not in {*texts, *found}]
    negatives = pd.DataFrame(added, columns=list(EFT.columns)).astype(own.dtypes)
    return replace(
        data,
        table=pd.concat([own, negatives], ignore_index=True),
        n_mismatched=n_mismatched,
        n_corrupted=len(negatives) - n_mismatched,
    )


class _RepliesByLength:
    """All replies, to be found by their length.

    Args:
        texts: Of all prompts.
    """

    def __init__(self, texts: pd.Series) -> None:
        self._texts = sorted(set(texts), key=lambda text: (len(text), text))
        self._lengths = np.array([len(text) for text in self._texts])

    def mismatched(self, own: list[str], count: int, random: np.random.Generator) -> Iterator[str]:
        """Draw replies that are none of a prompt's own, each about as long as one of those, drawn at random."""
        taken = set(own)
        for _ in range(count):
            length = len(own[random.integers(len(own))])
            # Wide enough that all who are taken cannot fill it.
            place, reach = int(np.searchsorted(self._lengths, length)), _NEAR + len(taken)
            around = self._texts[max(0, place - reach) : place + reach]
            near = sorted((text for text in around if text not in taken), key=lambda text: abs(len(text) - length))
            if not near:
                return
            chosen = near[random.integers(min(_NEAR, len(near)))]
            taken.add(chosen)
            yield chosen


def _corrupted(text: str, own: list[str], elsewhere: _RepliesByLength, random: np.random.Generator) -> str:
    words = text.split(" ")
    way = random.integers(3 if len(words) >= _MIN_WORDS_TO_CUT else 2)
    if way == 0:
        sentences = [sentence for sentence in _SENTENCE.split(text) if sentence.strip()]
        sentence = sentences[random.integers(len(sentences))]
        # About twice as long as it was.
        times = min(max(1, len(text) // len(sentence)), _MAX_REPETITIONS)
        return " ".join([text, *[sentence] * times])
    if way == 1:
        return "\n\n".join([text, *elsewhere.mismatched(own, 1, random)])
    return " ".join(words[: len(words) // 2])
