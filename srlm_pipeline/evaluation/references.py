"""An arbiter that nobody trains: the reply that is nearer in meaning to a good reference reply is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from srlm_pipeline.evaluation.arbiters import Comparison
from srlm_pipeline.progress import ProgressReporter


class Encoder(Protocol):
    """Says how near texts are."""

    def nearness(self, first: Sequence[str], second: Sequence[str]) -> NDArray[np.float64]:
        """Return a figure in -1..1 for every two texts, shape (texts,)."""
        ...


class ReferenceArbiter:
    """Compares how near two replies are to the reference reply; without one it has no opinion.

    Of two replies one of which is the reference itself it has no opinion either: it would be right by having been told.

    Args:
        encoder: Reads the texts.
        references: Reference replies by prompt; blanks around prompts do not matter.
    """

    def __init__(self, encoder: Encoder, references: Mapping[str, str]) -> None:
        self._encoder = encoder
        self._references = {prompt.strip(): reference for prompt, reference in references.items()}

    @property
    def name(self) -> str:
        """What it is."""
        return "reference"

    def prefer_first(self, comparisons: Sequence[Comparison], progress: ProgressReporter) -> NDArray[np.float64]:
        """Return the difference of the two cosines, in -2..2; see `Arbiter.prefer_first`."""
        known = {
            (c.prompt, reply): reference
            for c in comparisons
            for reply in (c.first, c.second)
            if (reference := self._references.get(c.prompt.strip())) is not None and c.first != c.second
        }
        with progress.task("comparing replies with reference replies", len(known), "replies") as task:
            near = self._encoder.nearness([reply for _, reply in known], list(known.values()))
            task.advance(len(known))
        value = {
            key: np.nan if key[1].strip() == reference.strip() else float(cosine)
            for (key, reference), cosine in zip(known.items(), near, strict=True)
        }
        return np.array(
            [
                0.0
                if c.first == c.second
                else value.get((c.prompt, c.first), np.nan) - value.get((c.prompt, c.second), np.nan)
                for c in comparisons
            ]
        )


def references_of(prompts: pd.DataFrame, ranked: pd.DataFrame) -> dict[str, str]:
    """Return the reference replies that a project has, by prompt.

    Args:
        prompts: Table `EVALUATION_PROMPTS`; of those without a reference nothing is known.
        ranked: Table `RANKED_REPLIES`: the best reply to a held-out prompt is the reference for the others, by which
            the arbiter shows how often it agrees with people.
    """
    best = best_replies(ranked)
    known = prompts[prompts["reference"].notna()]
    return dict(zip(best["prompt"], best["text"], strict=True)) | dict(
        zip(known["prompt"], known["reference"], strict=True)
    )


def best_replies(ranked: pd.DataFrame) -> pd.DataFrame:
    """Return the best human reply to every prompt, by `group_id`; of equals the first.

    Args:
        ranked: Rows of table `RANKED_REPLIES`.
    """
    return ranked.sort_values("rank", kind="stable").drop_duplicates("group_id").sort_values("group_id")
