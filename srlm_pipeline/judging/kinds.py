"""Of which kind a prompt is, as a model tells by the letter that it would answer with."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from srlm_pipeline.generation.engine import TextEngine
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.judging.judges import JudgeItem
from srlm_pipeline.judging.kind_rubrics import kind_rubrics
from srlm_pipeline.judging.reading import MINIMUM_MASS, Place, read_places
from srlm_pipeline.judging.rubric import kind_prompt
from srlm_pipeline.progress import ProgressReporter

_START = "Answer: "
# Prompts of no kind at all, from which a model's liking for some letters shows (Zhao et al. 2021, arXiv 2102.09690,
# section 5).
_CONTENT_FREE = ("N/A", "", "[MASK]")


@dataclass(frozen=True)
class ToldKind:
    """What a model says of a prompt.

    Attributes:
        kind: The likeliest; None where the model was about to say something else than a letter.
        probabilities: Of every known kind, the model's liking for letters taken out; in sum 1.
    """

    kind: str | None
    probabilities: Mapping[str, float]


def kind_place(prompt: str) -> Place:
    """Return where a model is asked of which kind a prompt is: each kind is an option with a letter."""
    options = [
        f"{letter}. {kind.replace('_', ' ')}: {description}"
        for letter, (kind, description) in zip(_letters(), kind_rubrics().descriptions.items(), strict=True)
    ]
    return Place(kind_prompt(options, prompt), _START)


def tell_kinds(
    engine: TextEngine, prompts: Sequence[str], progress: ProgressReporter, journal: Journal | None = None
) -> list[ToldKind]:
    """Tell of which kind each prompt is.

    The kinds are options with letters. Probabilities p of the letters are calibrated by those that follow prompts
    without content, p0: the kinds' are proportional to p / p0, with the geometric mean of p0 over these prompts.

    Args:
        engine: Who tells.
        prompts: Each different one is read once.
        progress: Where progress is shown.
        journal: Probabilities are read from it and added to it.
    """
    if not prompts:
        return []
    kinds = list(kind_rubrics().by_kind)
    groups = [[kind_place(prompt)] for prompt in (*_CONTENT_FREE, *prompts)]
    masses = np.concatenate(read_places(engine, groups, _letters(), "telling kinds", progress, journal))
    logs = np.log(np.maximum(masses, np.finfo(float).tiny))
    prior = logs[: len(_CONTENT_FREE)].mean(axis=0)
    told = []
    for mass, log in zip(masses[len(_CONTENT_FREE) :], logs[len(_CONTENT_FREE) :], strict=True):
        likelihood = np.exp(log - prior - (log - prior).max())
        probabilities = dict(zip(kinds, (likelihood / likelihood.sum()).tolist(), strict=True))
        known = bool(mass.sum() >= MINIMUM_MASS)
        told.append(ToldKind(max(probabilities, key=probabilities.__getitem__) if known else None, probabilities))
    return told


def kinds_of(
    engine: TextEngine, items: Sequence[JudgeItem], progress: ProgressReporter, journal: Journal | None = None
) -> list[str | None]:
    """Return the kind of each item's prompt: the data's where it is a known one, else what the model tells.

    Args:
        engine: Who tells.
        items: To be judged.
        progress: Where progress is shown.
        journal: See `tell_kinds`.
    """
    known = kind_rubrics().by_kind
    unknown = list(dict.fromkeys(item.prompt for item in items if item.kind not in known))
    told = dict(zip(unknown, tell_kinds(engine, unknown, progress, journal), strict=True))
    return [item.kind if item.kind in known else told[item.prompt].kind for item in items]


def _letters() -> str:
    return string.ascii_uppercase[: len(kind_rubrics().by_kind)]
