"""Whom a model meets: the base model, the SFT baseline, the model that entered the iteration, and the champion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from srlm_pipeline.evaluation.champion import champion_before
from srlm_pipeline.store import BASE, ProjectStore

Role = Literal["base", "baseline", "previous", "champion"]
ROLE_NAMES: dict[Role, str] = {
    "base": "base model",
    "baseline": "SFT baseline",
    "previous": "previous model",
    "champion": "champion",
}


@dataclass(frozen=True)
class Opponent:
    """A model that is met once, whatever it is to the new model.

    Attributes:
        name: The model's.
        roles: What it is, at least one.
    """

    name: str
    roles: tuple[Role, ...]

    @property
    def description(self) -> str:
        """Its roles in words, e.g. ``previous model, champion``; without SFT ``base model, SFT baseline``."""
        return ", ".join(ROLE_NAMES[role] for role in self.roles)


def opponents_of(store: ProjectStore, iteration: int) -> tuple[Opponent, ...]:
    """Return whom an iteration's model meets, the base model first; a model with two roles once.

    Args:
        store: Where the entering model and the promotions are known.
        iteration: From 1; 0 for the seed, whose model M1 comes after nobody and is the first champion.
    """
    named: dict[Role, str] = {"base": BASE, "baseline": store.baseline}
    if iteration:
        named |= {"previous": store.entering_model(iteration).name, "champion": champion_before(store, iteration)}
    return tuple(
        Opponent(name, tuple(role for role, who in named.items() if who == name))
        for name in dict.fromkeys(named.values())
    )
