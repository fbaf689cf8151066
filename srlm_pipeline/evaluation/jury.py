"""From what arbiters prefer to what is decided: both orders, the place taken out, several jurors combined.

An arbiter that changes its mind when the replies change places has no opinion: that is a tie. One that prefers whatever
stands first would call everything a tie; its mean preference for the first place over both orders of all prompts says
nothing about the replies, so it is subtracted (batch calibration, Zhou et al. 2023), from each juror's preferences
before they are combined.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from srlm_pipeline.evaluation.arbiters import Arbiter, Comparison
from srlm_pipeline.evaluation.statistics import effective_votes, pairwise_agreement
from srlm_pipeline.progress import ProgressReporter

# Sums of weights differ in the last bits; less than this is nothing.
_NOTHING = 1e-9


@dataclass(frozen=True)
class Juror:
    """One arbiter among others.

    Attributes:
        name: For people; unique in its jury.
        arbiter: Who is asked.
        weight: Of its vote.
    """

    name: str
    arbiter: Arbiter
    weight: float = 1.0


@dataclass(frozen=True)
class Jury:
    """Arbiters who decide together; one alone decides as it is.

    Jurors are asked one after another, each about everything. The weighted mean of their preferences decides, each
    divided by its juror's typical size (root mean square); who has no opinion is left out.

    Attributes:
        jurors: At least one.
    """

    jurors: tuple[Juror, ...]


@dataclass(frozen=True)
class Opinion:
    """What one juror says of pairs of replies.

    Attributes:
        juror: Its name.
        weight: Of its vote.
        forward: How much it prefers each pair's first reply when that stands first, calibrated; NaN for no opinion.
            Shape (pairs,).
        backward: The same when that reply stands second.
        position_bias: Share of preferences for the first place minus those for the second, before calibration.
    """

    juror: str
    weight: float
    forward: NDArray[np.float64]
    backward: NDArray[np.float64]
    position_bias: float

    def verdicts(self) -> NDArray[np.float64]:
        """Return 1 where both orders are for a pair's first reply, -1 where they are against it, 0 otherwise.

        Where there is no opinion in an order it is NaN.
        """
        return _in_both_orders(self.forward, self.backward)


@dataclass(frozen=True)
class Decision:
    """What a jury decides on pairs of replies.

    Attributes:
        forward: How much each pair's first reply is preferred when it stands first. Shape (pairs,).
        backward: The same when it stands second.
        margin: Preferences up to this are for neither.
        position_bias: The jurors' weighted mean.
        opinions: Of every juror.
    """

    forward: NDArray[np.float64]
    backward: NDArray[np.float64]
    margin: float
    position_bias: float
    opinions: tuple[Opinion, ...]

    def verdicts(self) -> NDArray[np.float64]:
        """Return 1 where both orders are for a pair's first reply, -1 where they are against it, 0 otherwise."""
        return _in_both_orders(self.forward, self.backward, self.margin)


def decide(
    arbiter: Arbiter | Jury, pairs: Sequence[Comparison], progress: ProgressReporter, tie_margin: float = 0.0
) -> Decision:
    """Ask about pairs of replies in both orders.

    Args:
        arbiter: One, or several.
        pairs: Each in one order.
        progress: Where progress is shown.
        tie_margin: Preferences up to this are for neither. Of a single arbiter in its own units, of a jury in typical
            sizes.
    """
    jury = arbiter if isinstance(arbiter, Jury) else Jury((Juror(arbiter.name, arbiter),))
    alone = len(jury.jurors) == 1
    shown = [*pairs, *(pair.swap() for pair in pairs)]
    opinions = tuple(
        _opinion(juror, juror.arbiter.prefer_first(shown, progress), tie_margin if alone else 0.0)
        for juror in jury.jurors
    )
    weights = np.array([opinion.weight for opinion in opinions])
    spoken = [np.concatenate([opinion.forward, opinion.backward]) for opinion in opinions]
    if not alone:
        spoken = [values / _typical_size(values) for values in spoken]
    margin = tie_margin if alone else max(tie_margin, _NOTHING)
    forward, backward = np.split(_weighted_mean(np.array(spoken), weights), 2)
    bias = float(np.average([opinion.position_bias for opinion in opinions], weights=weights))
    return Decision(forward, backward, margin, bias, opinions)


def calibrate(raw: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Take the preference for a place out of an arbiter's preferences.

    Over both orders every reply stands first once: what remains on average belongs to the place. A verdict that two
    replies are equal (0) is none for a place, and remains.

    Args:
        raw: Preference for the first reply: n comparisons, then the same ones swapped. Shape (2 n,); NaN for no
            opinion.

    Returns:
        How much the side that stands first in the first half is preferred, in either order; shape (n,) each.
    """
    forward, backward = np.split(raw, 2)
    # Summed pair by pair: an arbiter without a bias then has one of exactly 0.
    sums = forward + backward
    known = sums[~np.isnan(sums)]
    bias = float(known.mean() / 2) if len(known) else 0.0
    return np.where(forward == 0, 0.0, forward - bias), np.where(backward == 0, 0.0, bias - backward)


def signs(preferences: NDArray[np.float64], margin: float = 0.0) -> NDArray[np.float64]:
    """Return 1, -1, or 0 for preferences up to the margin; NaN remains."""
    return np.where(np.abs(preferences) <= margin, 0.0, np.sign(preferences))


@dataclass(frozen=True)
class JuryReport:
    """How the jurors of one match, or of several, get on with each other.

    Attributes:
        weights: By juror's name.
        opinions: Share of prompts on which a juror has an opinion in both orders.
        decided: Share of prompts that a juror alone would decide: both orders for the same reply.
        agreement: By two jurors' names, the share of the prompts that both decide on which they decide alike; None if
            there are none.
        effective_votes: How many independent votes the jury is worth, from 1 to the number of jurors; 0 if none of
            them ever changes its mind.
    """

    weights: Mapping[str, float]
    opinions: Mapping[str, float]
    decided: Mapping[str, float]
    agreement: Mapping[tuple[str, str], float | None]
    effective_votes: float

    @property
    def mean_agreement(self) -> float | None:
        """Over all two jurors that have decided a prompt in common; None without any."""
        known = [share for share in self.agreement.values() if share is not None]
        return float(np.mean(known)) if known else None

    def metrics(self) -> dict[str, float]:
        """Return the figures that exist, by name."""
        figures = {"effective_votes": self.effective_votes, "agreement": self.mean_agreement}
        return {name: value for name, value in figures.items() if value is not None}


def opinions_text(opinions: Sequence[Opinion], place: int, forward: bool) -> str:
    """Return as JSON what every juror says of one pair in one order, as table `WIN_RATES` keeps it."""
    values = [float((opinion.forward if forward else opinion.backward)[place]) for opinion in opinions]
    return json.dumps(
        [
            {"juror": o.juror, "weight": o.weight, "preference": None if np.isnan(value) else value}
            for o, value in zip(opinions, values, strict=True)
        ],
        ensure_ascii=False,
    )


def jury_report(table: pd.DataFrame) -> JuryReport:
    """Measure the jurors by what they said.

    Args:
        table: Table `WIN_RATES`, of one opponent or several.
    """
    keys = table[["opponent", "prompt_id", "order"]].itertuples(index=False)
    said = [
        {"comparison": (k.opponent, k.prompt_id), "order": k.order, **entry}
        for k, text in zip(keys, table["opinions"], strict=True)
        for entry in json.loads(text)
    ]
    spoken = pd.DataFrame(said)
    weights = dict(zip(spoken["juror"], spoken["weight"].astype(float), strict=True))
    # Shape (comparisons, orders, jurors).
    wide = spoken.astype({"preference": float}).pivot(index="comparison", columns=["juror", "order"])["preference"]
    orders = sorted(spoken["order"].unique())
    values = np.stack([wide[[(juror, o) for o in orders]].to_numpy(float) for juror in weights], axis=2)
    each = signs(values)
    verdicts = np.trunc(each.mean(axis=1))
    decided = np.where(verdicts == 0, np.nan, verdicts)
    alike = pairwise_agreement(decided)
    places = {name: place for place, name in enumerate(weights)}

    def share(a: str, b: str) -> float | None:
        found = alike[places[a], places[b]]
        return None if np.isnan(found) else float(found)

    return JuryReport(
        weights=weights,
        opinions={name: float((~np.isnan(verdicts[:, place])).mean()) for name, place in places.items()},
        decided={name: float((~np.isnan(decided[:, place])).mean()) for name, place in places.items()},
        agreement={(a, b): share(a, b) for a, b in itertools.combinations(weights, 2)},
        effective_votes=effective_votes(values.mean(axis=1), list(weights.values())),
    )


def _in_both_orders(
    forward: NDArray[np.float64], backward: NDArray[np.float64], margin: float = 0.0
) -> NDArray[np.float64]:
    return np.trunc((signs(forward, margin) + signs(backward, margin)) / 2)


def _opinion(juror: Juror, raw: NDArray[np.float64], margin: float) -> Opinion:
    forward, backward = calibrate(raw)
    bias = float((raw > margin).mean() - (raw < -margin).mean()) if len(raw) else 0.0
    return Opinion(juror.name, juror.weight, forward, backward, bias)


def _typical_size(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(np.sqrt((known**2).mean())) or 1.0 if len(known) else 1.0


def _weighted_mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over jurors, those without an opinion left out; 0 where nobody has one. Shape (comparisons,)."""
    known = ~np.isnan(values)
    total = (weights[:, None] * known).sum(axis=0)
    return (weights[:, None] * np.where(known, values, 0.0)).sum(axis=0) / np.where(total > 0, total, 1.0)
