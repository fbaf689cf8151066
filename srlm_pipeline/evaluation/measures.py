"""The figures by which models are compared without asking any judge, each defined once.

Whoever shows, tracks, or decides by such a figure goes through `MEASURES`. All are told item by item, so that two
models are compared on the same items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from srlm_pipeline.checks.instructions import NEVER_TRAINED
from srlm_pipeline.checks.text_measures import repeated_ngrams
from srlm_pipeline.checks.vital_signs import SIGNS
from srlm_pipeline.evaluation.assessment import Assessment, Part
from srlm_pipeline.evaluation.judge_accuracy import agreement_by_prompt
from srlm_pipeline.evaluation.statistics import (
    DEFAULT_RESAMPLES,
    PairedDifference,
    bootstrap_interval,
    exact_interval,
    paired_difference,
    paired_shares,
)
from srlm_pipeline.evaluation.verifiable_accuracy import kinds_in

Unit = Literal["share", "cosine", "nats"]
Pairing = Literal["plain", "excused", "both_fit"]
Values = Mapping[str, NDArray[np.float64]]
# Word pairs of a reply's beginning: replies of any length can be compared.
_VARIETY_WORDS = 64
# Fewer prompts with fit replies on both sides say nothing of their quality.
_FEWEST_FIT = 20


@dataclass(frozen=True)
class Measure:
    """One figure.

    Attributes:
        name: In settings, tables and MLflow.
        title: In words, as what a share is of, or a mean.
        unit: ``share`` of 0 to 1, ``cosine`` of -1 to 1, or ``nats`` per token.
        higher_is_better: Whether more of it is good.
        values: By item, in a model's assessment; items that could not be measured are left out.
        absent: Why it is not measured where there are no items.
        pairing: How two models' items are compared. ``excused``: a reply that is unfit in one way is no merit in
            another, so a sign counts only where the other model's reply is fit: who copies the prompt goes in no
            circles. ``both_fit``: only items where both replies are fit tell anything.
        lenient: Whether it is enough not to be worse than one of the other models: who says little is never cut off.
        chance: What knowing nothing reaches; who does not provably exceed it has nothing to lose.
        detail: What the figure is, where title and unit leave that open.
    """

    name: str
    title: str
    unit: Unit
    higher_is_better: bool
    values: Callable[[Assessment], Values]
    absent: str
    pairing: Pairing = "plain"
    lenient: bool = False
    chance: float | None = None
    detail: str = ""

    @property
    def basis(self) -> str:
        """What two models' figures in a comparison are, where the title leaves that open."""
        return "where both replies are fit" if self.pairing == "both_fit" else self.detail


@dataclass(frozen=True)
class Figure:
    """A measure of one model.

    Attributes:
        value: Mean over all values; None if there are none.
        low: Lower end of the 95 % interval; None if there are too few to tell one.
        high: Upper end.
        n: Items.
        note: Why it was not measured; blank if it was.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    note: str = ""


@dataclass(frozen=True)
class Change:
    """By how much one model is better than another in a measure, told on the same items.

    Attributes:
        new: The first model's figure on these items.
        other: The second's.
        gain: How much better the first is; below 0 it is worse, whichever way the measure counts.
        least: What the gain is at least, with the confidence that was asked for (one-sided).
        most: What it is at most, likewise.
        n: Items.
    """

    new: float
    other: float
    gain: float
    least: float
    most: float
    n: int


def _sign(name: str) -> Callable[[Assessment], Values]:
    def values(assessment: Assessment) -> Values:
        # A closed task's few words are too few to tell.
        return _by_item(assessment, ("evaluation", "verifiable"), name)

    return values


def _unfit(assessment: Assessment) -> Values:
    rows = assessment.replies[assessment.replies["part"].isin(("evaluation", "verifiable"))]
    keys, unfit = rows["part"] + "/" + rows["prompt_id"], rows[list(SIGNS)].any(axis=1).astype(float)
    return {key: np.array([value]) for key, value in zip(keys, unfit, strict=True)}


def _by_item(assessment: Assessment, parts: tuple[Part, ...], column: str) -> Values:
    rows = assessment.replies[assessment.replies["part"].isin(parts) & assessment.replies[column].notna()]
    keys = rows["part"] + "/" + rows["prompt_id"]
    return {key: np.array([value]) for key, value in zip(keys, rows[column].astype(float), strict=True)}


def _cut_off(assessment: Assessment) -> Values:
    rows = assessment.part("evaluation")
    cut = (rows["finish_reason"] == "length").astype(float)
    return {f"evaluation/{key}": np.array([value]) for key, value in zip(rows["prompt_id"], cut, strict=True)}


def _followed(assessment: Assessment) -> Values:
    rows = assessment.verifiable
    shares = rows["n_strict"] / rows["n_instructions"]
    return {key: np.array([share]) for key, share in zip(rows["key"], shares, strict=True)}


def _followed_of(seen: bool) -> Callable[[Assessment], Values]:
    """Return the shares of instructions followed, of the kinds that may be trained on, or of the others."""

    def values(assessment: Assessment) -> Values:
        shares = {}
        for row in assessment.verifiable.itertuples():
            asked, failed = (
                sum((kind not in NEVER_TRAINED) == seen for kind in kinds_in(names))
                for names in (row.instructions, row.failed)
            )
            if asked:
                shares[row.key] = np.array([1 - failed / asked])
        return shares

    return values


def _nats(assessment: Assessment) -> Values:
    rows = assessment.likelihood
    return {k: np.array([n / t]) for k, n, t in zip(rows["group_id"], rows["nats"], rows["n_tokens"], strict=True)}


def _variety(assessment: Assessment) -> Values:
    rows = assessment.part("evaluation")
    starts = [" ".join(reply.split()[:_VARIETY_WORDS]) for reply in rows["reply"]]
    return {
        key: np.array([1 - repeated_ngrams(start, 2)]) for key, start in zip(rows["prompt_id"], starts, strict=True)
    }


_NO_REPLIES = "no replies were asked for"
VERIFIABLE = "verifiable"
_NO_INSTRUCTIONS = "evaluation.verifiable.source is none"
MEASURES: tuple[Measure, ...] = (
    Measure("unfit", "replies with something wrong at first sight", "share", False, _unfit, _NO_REPLIES),
    Measure("loops", "replies that go in circles", "share", False, _sign("loops"), _NO_REPLIES, "excused"),
    Measure("echoes", "replies that are the prompt copied", "share", False, _sign("echoes"), _NO_REPLIES, "excused"),
    Measure("recites", "replies that recite", "share", False, _sign("recites"), _NO_REPLIES, "excused"),
    Measure("empty", "empty replies", "share", False, _sign("empty"), _NO_REPLIES, "excused"),
    Measure("refuses", "replies that refuse", "share", False, _sign("refuses"), _NO_REPLIES, "excused"),
    Measure(
        "other_language",
        "replies in another language than asked",
        "share",
        False,
        _sign("other_language"),
        _NO_REPLIES,
        "excused",
    ),
    Measure("cut_off", "replies that the token limit ended", "share", False, _cut_off, _NO_REPLIES, lenient=True),
    Measure(
        "closed_tasks",
        "closed tasks solved",
        "share",
        True,
        lambda a: _by_item(a, ("closed",), "right"),
        "evaluation.closed_tasks.source is none",
    ),
    Measure(
        VERIFIABLE,
        "verifiable instructions followed",
        "share",
        True,
        _followed,
        _NO_INSTRUCTIONS,
        detail="mean over prompts",
    ),
    Measure(
        "nearness",
        "nearness to the reference replies",
        "cosine",
        True,
        lambda a: _by_item(a, ("evaluation",), "nearness"),
        "the evaluation prompts have no `reference`, or there is no sentence encoder (srlm doctor tells)",
        "both_fit",
        detail="cosine",
    ),
    Measure(
        "human_likelihood",
        "surprise at the best human replies",
        "nats",
        False,
        _nats,
        "there are no held-out human replies",
        detail="per token",
    ),
    Measure(
        "judge",
        "human-ranked pairs judged right",
        "share",
        True,
        lambda a: agreement_by_prompt(a.judgements),
        "there are no held-out human rankings",
        chance=0.5,
    ),
)
# The kinds of instruction that invented prompts may ask for, and those that none does: what a loop has learned of
# following instructions, where its verifiers judge along, shows in the second.
SEEN, UNSEEN = (
    Measure(
        name,
        f"verifiable instructions followed, of kinds that {which} trained on",
        "share",
        True,
        _followed_of(seen),
        _NO_INSTRUCTIONS,
        detail="mean over prompts",
    )
    for name, which, seen in (("verifiable_seen", "may be", True), ("verifiable_unseen", "are never", False))
)
# What is told of a model; its promotion is decided by the measures before the last two.
SHOWN = (*MEASURES, SEEN, UNSEEN)
# Watched beside them: what a reply says twice, long before it goes in circles.
VARIETY = Measure("variety", "different word pairs within a reply", "share", True, _variety, _NO_REPLIES)


def measure_named(name: str) -> Measure:
    """Return a measure by its name.

    Raises:
        KeyError: If there is none.
    """
    return {measure.name: measure for measure in SHOWN}[name]


def figure(assessment: Assessment, measure: Measure, resamples: int = DEFAULT_RESAMPLES) -> Figure:
    """Return one model's figure with its 95 % interval: exact for shares of items, else a bootstrap over items.

    One item tells no interval, unless it is a share's.
    """
    groups = list(measure.values(assessment).values())
    if not groups:
        return Figure(None, None, None, 0, measure.absent)
    value = float(np.concatenate(groups).mean())
    if _binary(groups):
        low, high = exact_interval(round(value * len(groups)), len(groups))
    elif len(groups) == 1:
        return Figure(value, None, None, 1)
    else:
        low, high = bootstrap_interval(groups, resamples)
    return Figure(value, low, high, len(groups))


def change(
    new: Assessment,
    other: Assessment,
    measure: Measure,
    confidence: float = 0.95,
    resamples: int = DEFAULT_RESAMPLES,
) -> Change | None:
    """Return by how much a model is better than another; None if they have too few items in common to tell.

    Args:
        new: The model that is looked at.
        other: Whom it is compared with.
        measure: By what.
        confidence: One-sided, of what the gain is at least.
        resamples: Of the bootstrap.
    """
    sides = _paired(new, other, measure)
    shared = [item for item in sides[0] if item in sides[1]]
    ours, theirs = ([side[item] for item in shared] for side in sides)
    two_sided = 2 * confidence - 1
    if shared and _binary([*ours, *theirs]):
        found = paired_shares(np.concatenate(ours), np.concatenate(theirs), two_sided)
    elif len(shared) < 2:
        return None
    else:
        found = paired_difference(ours, theirs, resamples, confidence=two_sided)
    # As each is, whatever was excused in the comparison.
    as_they_are = [measure.values(assessment) for assessment in (new, other)]
    means = [float(np.concatenate([values[item] for item in shared]).mean()) for values in as_they_are]
    gains = found if measure.higher_is_better else PairedDifference(-found.value, -found.high, -found.low)
    return Change(means[0], means[1], gains.value, gains.low, gains.high, len(shared))


def why_not_compared(other: Assessment, new: Assessment, measure: Measure, resamples: int) -> str:
    """Return why a comparison would tell nothing; blank if it tells something.

    Args:
        other: Whom a model is compared with.
        new: That model.
        measure: By what.
        resamples: Of the bootstrap.
    """
    if measure.chance is not None:
        found = figure(other, measure, resamples)
        if found.n and found.low is None:
            return f"{found.n} prompt is too few to tell whether {other.model} does better than chance"
        if found.low is not None and found.low <= measure.chance:
            return f"{other.model} does no better than chance ({amount(measure.chance, measure.unit)})"
    if measure.pairing == "both_fit" and measure.values(new) and measure.values(other):
        sides = _paired(new, other, measure)
        fit = len(sides[0].keys() & sides[1].keys())
        if fit < _FEWEST_FIT:
            return f"only {fit} prompts have fit replies of both {new.model} and {other.model}"
    return ""


def amount(value: float, unit: Unit) -> str:
    """Return a figure in words: a share in percent, others with their unit."""
    return f"{value:.1%}" if unit == "share" else f"{value:.3f}" if unit == "cosine" else f"{value:.2f} nats"


def _paired(new: Assessment, other: Assessment, measure: Measure) -> tuple[Values, Values]:
    """Return both models' values, as far as they can be held against each other."""
    ours, theirs = measure.values(new), measure.values(other)
    if measure.pairing == "plain":
        return ours, theirs
    unfit = [{item for item, value in _unfit(assessment).items() if value[0]} for assessment in (new, other)]
    if measure.pairing == "both_fit":
        fit = {item: value for item, value in ours.items() if item not in unfit[0] | unfit[1]}
        return fit, theirs
    nothing = np.array([0.0])
    return (
        {item: nothing if item in unfit[1] else value for item, value in ours.items()},
        {item: nothing if item in unfit[0] else value for item, value in theirs.items()},
    )


def _binary(groups: list[NDArray[np.float64]]) -> bool:
    return all(len(group) == 1 and group[0] in (0.0, 1.0) for group in groups)
