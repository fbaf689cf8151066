"""Whether an arbiter says anything that the loop could not have taught its model to please.

A model is trained on pairs that a judge chose. A win before that judge, or before one that the same training made,
shows that the training worked, not that the model got better.
"""

from __future__ import annotations

from srlm_pipeline.config import PROGRAMS, VERIFIERS, ArbiterSettings, Settings

SELF = "self"
ADVICE = (
    "name a judge that takes no part in choosing pairs in evaluation.arbiters: another model, a server, reference, "
    "verifiers or people (docs/arbiters.md)"
)


def dependence(chosen: ArbiterSettings, settings: Settings) -> str | None:
    """Return why an arbiter is not independent of what it decides on; None if it is.

    Args:
        chosen: The arbiter.
        settings: `judge.panel`, `base_model` and `baselines` tell who chose the pairs, and who descends from whom.
    """
    if chosen.model in PROGRAMS:
        return None
    if chosen.model == SELF:
        return "M1, which every later model descends from, and whose training its judges share"
    if any(
        member.model == chosen.model and member.server.base_url == chosen.server.base_url
        for member in settings.judge.panel
    ):
        return f"{chosen.model} sits in judge.panel, and chose the pairs"
    if chosen.model == settings.base_model and not chosen.server.base_url:
        return f"{chosen.model} is the model that the loop started from"
    return None


def trained_measures(settings: Settings) -> frozenset[str]:
    """Return the names of the measures that the loop trains on, a gain in which proves no more than that it did.

    Args:
        settings: `judge.panel` and `prompt_generation.evolution` are read.
    """
    checked = any(member.model == VERIFIERS for member in settings.judge.panel)
    return frozenset(
        {"verifiable", "verifiable_seen"} if checked and settings.prompt_generation.evolution.constrain else ()
    )


def dependences(settings: Settings) -> tuple[str, ...]:
    """Return why the arbiters of a project are not independent, each reason once; nothing if all are."""
    found = (dependence(chosen, settings) for chosen in settings.evaluation.arbiters)
    return tuple(dict.fromkeys(reason for reason in found if reason))
