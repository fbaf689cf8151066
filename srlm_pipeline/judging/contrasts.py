"""Made-up bad replies among the ranked ones (not in the paper): a judge is to see what is wrong with them.

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
# So many replies are near enough in length to draw from; with fewer the same few would be everybody's strangers.
_NEAR = 10
# A shorter reply is not cut in two, which could leave nothing wrong with it.
_MIN_WORDS_TO_CUT = 8
_MAX_REPETITIONS = 8
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def with_contrasts(data: EftData, strangers: int, spoiled: int, seed: int) -> EftData:
    """Add made-up replies below each prompt's own ones; nothing is said of their order among themselves.

    Strangers are replies to other prompts, and as long as the prompt's own. Spoiled replies are copies of the
    last-ranked one, which another prompt's reply follows, or one of its sentences again and again, or whose second
    half is gone: of these three ways to be worse two are longer.

    Args:
        data: Judging data.
        strangers: So many for each prompt.
        spoiled: So many for each prompt; with neither the data stays as it is.
        seed: Of all that is drawn.

    Raises:
        EmptyDataError: If there is no other prompt to take replies from.
    """
    if not strangers and not spoiled:
        return data
    own = data.table
    if own["group_id"].nunique() < 2:
        raise EmptyDataError(
            "eft.strangers and eft.spoiled take replies from other prompts, and the judging data has "
            f"{own['group_id'].nunique()} of them: set both to 0, or check data.ranked_replies"
        )
    random = np.random.default_rng(seed)
    elsewhere = _RepliesByLength(own["text"])
    added: list[dict[str, Any]] = []
    n_strangers = 0
    for group_id, group in own.groupby("group_id", sort=True):
        texts = group["text"].tolist()
        common = {"group_id": group_id, "prompt": group["prompt"].iloc[0], "rank": group["rank"].max() + 1}
        # Without the others' scores it would teach to give noughts.
        score = None if group["score"].isna().any() else _IRRELEVANT
        found = list(elsewhere.strangers(texts, strangers, random))
        n_strangers += len(found)
        added += [{**common, "text": text, "score": score} for text in found]
        last = group["text"].loc[group["rank"].idxmax()]
        copies = dict.fromkeys(_spoiled(last, texts, elsewhere, random) for _ in range(spoiled))
        # How much worse a copy is nobody has said.
        added += [{**common, "text": text, "score": None} for text in copies if text not in {*texts, *found}]
    contrasts = pd.DataFrame(added, columns=list(EFT.columns)).astype(own.dtypes)
    return replace(
        data,
        table=pd.concat([own, contrasts], ignore_index=True),
        n_strangers=n_strangers,
        n_spoiled=len(contrasts) - n_strangers,
    )


class _RepliesByLength:
    """All replies, to be found by their length.

    Args:
        texts: Of all prompts.
    """

    def __init__(self, texts: pd.Series) -> None:
        self._texts = sorted(set(texts), key=lambda text: (len(text), text))
        self._lengths = np.array([len(text) for text in self._texts])

    def strangers(self, own: list[str], count: int, random: np.random.Generator) -> Iterator[str]:
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


def _spoiled(text: str, own: list[str], elsewhere: _RepliesByLength, random: np.random.Generator) -> str:
    words = text.split(" ")
    way = random.integers(3 if len(words) >= _MIN_WORDS_TO_CUT else 2)
    if way == 0:
        sentences = [sentence for sentence in _SENTENCE.split(text) if sentence.strip()]
        sentence = sentences[random.integers(len(sentences))]
        # About twice as long as it was.
        times = min(max(1, len(text) // len(sentence)), _MAX_REPETITIONS)
        return " ".join([text, *[sentence] * times])
    if way == 1:
        return "\n\n".join([text, *elsewhere.strangers(own, 1, random)])
    return " ".join(words[: len(words) // 2])
