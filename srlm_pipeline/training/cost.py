"""What training costs a model, without asking any judge: replies in which something is wrong, forgotten human ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from srlm_pipeline.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class DevelopmentFigures:
    """How a model does on development prompts.

    Attributes:
        unfit: Whether something is wrong at first sight with its greedy reply to each prompt, shape (prompts,).
        nats: Surprise at the best human replies, the mean of their means per token.
    """

    unfit: NDArray[np.bool_]
    nats: float


# Measures a model; always on the same prompts.
Measure = Callable[[Checkpoint], DevelopmentFigures]


@dataclass(frozen=True)
class Cost:
    """A model held against the one that training started from.

    Attributes:
        unfit: Share of its replies that are unfit.
        unfit_more: By how much that is more, prompt by prompt.
        unfit_error: Standard error of that difference.
        nats: Surprise at the best human replies, per token.
        nats_more: By how much that is more.
        tolerable: Whether neither is worse by more than is tolerated.
    """

    unfit: float
    unfit_more: float
    unfit_error: float
    nats: float
    nats_more: float
    tolerable: bool

    def figures(self) -> dict[str, float]:
        """Return what is tracked."""
        return {"unfit": self.unfit, "unfit_more": self.unfit_more, "nats": self.nats, "nats_more": self.nats_more}


def cost_of(now: DevelopmentFigures, before: DevelopmentFigures, max_nats_more: float) -> Cost:
    """Return what lies between two models, and whether it is nothing that can be seen on the development prompts.

    A cost is tolerable if the share of unfit replies is not higher by more than one standard error of the difference,
    and the best human replies have not become less likely by more than is tolerated.

    Args:
        now: Figures of the model.
        before: Those of M_t.
        max_nats_more: Tolerated, per token.
    """
    more = now.unfit.astype(float) - before.unfit.astype(float)
    difference, nats_more = float(more.mean()), now.nats - before.nats
    error = float(more.std(ddof=1) / np.sqrt(len(more))) if len(more) > 1 else 0.0
    tolerable = difference <= error and nats_more <= max_nats_more
    return Cost(float(now.unfit.mean()), difference, error, now.nats, nats_more, tolerable)
