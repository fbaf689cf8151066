"""Whether a new model may become the champion. This is the only place where a promotion is decided.

A loop can make its own judge happy with replies that nobody would read. So the new model has to prove two things by
measures that the loop did not train on: that it has lost nothing, against the champion, the SFT baseline and the base
model, and that it has gained something against the champion.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from srlm_pipeline.config import PromotionSettings
from srlm_pipeline.errors import RecordError
from srlm_pipeline.evaluation.measures import MEASURES, Change, Measure, Unit, amount
from srlm_pipeline.files import replacing_file

CONFIDENCE = 0.95
# 0.65 - 0.6 is a little more than 0.05.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Rule:
    """One rule with its figures and verdict.

    Attributes:
        name: What is asked of the model.
        passed: Whether it is met; None if nothing was decided by it: it could not be measured, or is only shown.
        explanation: With its figures, in words.
        value: What was measured; None if it could not be.
        threshold: What it is compared with.
    """

    name: str
    passed: bool | None
    explanation: str
    value: float | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Compared:
    """The new model beside another, by one measure.

    Attributes:
        measure: By what.
        opponent: Name of the other.
        role: What it is to the new model, in words.
        change: None if there was nothing to compare.
        sure_gain: What the gain is at least, at the confidence that is left when every measure is asked; None as
            `change`.
        untold: Why a comparison would tell nothing; blank if it tells something.
    """

    measure: Measure
    opponent: str
    role: str
    change: Change | None
    sure_gain: float | None = None
    untold: str = ""


@dataclass(frozen=True)
class Opinion:
    """What somebody says of the new model against the champion.

    Attributes:
        win_rate: Ties count half.
        low: What it is at least, with 95 % confidence (one-sided).
        sure_low: What it is at least at the confidence that is left when every measure is asked.
        length_controlled: Had the replies the same length; None if it could not be estimated.
        n: Prompts.
        agrees: Share of held-out human preferences that the arbiters agree with; None if it is not known.
    """

    win_rate: float
    low: float
    sure_low: float
    length_controlled: float | None
    n: int
    agrees: float | None = None


@dataclass(frozen=True)
class Evidence:
    """What promotion looks at.

    Attributes:
        champion: Name of the model to be replaced.
        opinion: Of the arbiters.
        dependences: Why the arbiters are not independent of what they decide on; nothing if they are.
        compared: The new model beside every model that it must not be worse than, by every measure.
        people: What people say who read blind; None if nobody did.
        length_growth: Mean reply length divided by the longest among champion, SFT baseline and base model: a champion
            of few words must not forbid a sentence.
        failed_monitors: Names.
    """

    champion: str
    opinion: Opinion
    dependences: Sequence[str]
    compared: Sequence[Compared]
    people: Opinion | None
    length_growth: float
    failed_monitors: Sequence[str] = ()


@dataclass(frozen=True)
class Comparison:
    """What a rule rests on, in the words in which it is told; a blank stands for what there is not.

    Attributes:
        measure: By what the two are compared; the rule about it has the same name.
        basis: Of what the figures are, where the measure leaves that open.
        beside: Name of the other.
        role: What the other is to the new model.
        new: The new model's figure.
        other: The other's.
        bound: What the gain, or the figure, is at least, with 95 % confidence (one-sided).
        sure: The same at `sure_confidence`.
        asked: What the rule asks for, or why it tells nothing.
    """

    measure: str
    basis: str
    beside: str
    role: str
    new: str
    other: str = ""
    bound: str = ""
    sure: str = ""
    asked: str = ""


@dataclass(frozen=True)
class Decision:
    """What was decided of a model, and why.

    Attributes:
        model: Name.
        digest: Of its weights.
        champion: Whom it was to replace.
        promoted: Whether no rule is broken.
        rules: All of them.
        comparisons: All that they rest on; none in records of before they were kept.
    """

    model: str
    digest: str
    champion: str
    promoted: bool
    rules: tuple[Rule, ...]
    comparisons: tuple[Comparison, ...] = ()

    @property
    def failures(self) -> list[Rule]:
        """The rules that are not met, the weightiest first."""
        return [rule for rule in self.rules if rule.passed is False]

    @property
    def reason(self) -> str:
        """The weightiest rule that is not met, or where all are the weightiest that is met; with its figures."""
        met = [rule for rule in self.rules if rule.passed]
        return next((f"{rule.name}: {rule.explanation}" for rule in [*self.failures, *met]), "no rule is set")


def decide_promotion(evidence: Evidence, settings: PromotionSettings) -> tuple[Rule, ...]:
    """Apply every rule that the settings ask for; the model is promoted only if none is broken."""
    rules = [
        rule
        for measure in dict.fromkeys(compared.measure for compared in evidence.compared)
        if (margin := getattr(settings.margins, measure.name, None)) is not None
        for rule in [_no_harm([c for c in evidence.compared if c.measure is measure], measure, margin)]
    ]
    if settings.proven_gain:
        rules.insert(0, _gain(evidence, settings))
    rules += _opinions(evidence, settings)
    if settings.max_length_growth is not None:
        rules.append(
            Rule(
                "replies did not just get longer",
                evidence.length_growth <= settings.max_length_growth + _ROUNDING,
                f"mean length {evidence.length_growth:.2f} times the longest of those before, "
                f"{settings.max_length_growth:.2f} allowed",
                evidence.length_growth,
                settings.max_length_growth,
            )
        )
    if settings.monitors:
        failed = list(evidence.failed_monitors)
        rules.append(
            Rule(
                "no sign of collapse",
                not failed,
                f"failed monitors: {', '.join(failed)}" if failed else "all monitors passed",
                float(len(failed)),
                0.0,
            )
        )
    return tuple(rules)


def comparisons(evidence: Evidence, settings: PromotionSettings) -> tuple[Comparison, ...]:
    """Return every comparison that the rules rest on, the decisive ones and the others."""
    found = [_compared(one, settings) for one in evidence.compared]
    said, champion = evidence.opinion, (evidence.champion, "champion")
    for basis, opinion, asked in (
        ("by the arbiters", said, settings.min_win_rate),
        ("by people who read blind", evidence.people, 0.5),
    ):
        if opinion is not None:
            bound, sure = (f"at least {low:.1%}" for low in (opinion.low, opinion.sure_low))
            over = "" if asked is None else f"more than {asked:.1%}"
            found.append(Comparison("win rate", basis, *champion, f"{opinion.win_rate:.1%}", "", bound, sure, over))
    if said.length_controlled is not None:
        asked, value = settings.min_length_controlled_win_rate, f"{said.length_controlled:.1%}"
        over = "" if asked is None else f"more than {asked:.1%}"
        found.append(Comparison("length-controlled win rate", "by the arbiters", *champion, value, asked=over))
    if said.agrees is not None:
        basis = "with the human preferences that they decide"
        found.append(Comparison("agreement of the arbiters", basis, "people", "", f"{said.agrees:.1%}"))
    most, basis = settings.max_length_growth, "of the longest of those before"
    at_most = "" if most is None else f"at most {most:.2f} times"
    growth = Comparison("mean length", basis, "all before", "", f"{evidence.length_growth:.2f} times", asked=at_most)
    return (*found, growth)


def _compared(one: Compared, settings: PromotionSettings) -> Comparison:
    measure, unit, found = one.measure, one.measure.unit, one.change
    margin = getattr(settings.margins, measure.name, None)
    return Comparison(
        measure.title,
        measure.basis,
        one.opponent,
        one.role,
        new="" if found is None else amount(found.new, unit),
        other="" if found is None else amount(found.other, unit),
        bound="" if found is None else _bound(found.least, unit),
        sure="" if one.sure_gain is None else _bound(one.sure_gain, unit),
        asked=one.untold or ("" if margin is None else f"worse by at most {_points(margin, unit)}"),
    )


def asked_measures(settings: PromotionSettings) -> list[Measure]:
    """Return the measures that have a margin."""
    return [measure for measure in MEASURES if getattr(settings.margins, measure.name) is not None]


def sure_confidence(settings: PromotionSettings) -> float:
    """Return the confidence at which one of several measures has to be better, so that none is by chance alone.

    Among many measures one is soon better by accident: with Bonferroni's correction that happens in at most 5 % of all
    cases where nothing is better. Two more are counted, for arbiters and readers.
    """
    return 1 - (1 - CONFIDENCE) / (len(asked_measures(settings)) + 2)


def _points(value: float, unit: Unit) -> str:
    return f"{100 * value:.1f} points" if unit == "share" else amount(value, unit)


def _no_harm(compared: Sequence[Compared], measure: Measure, margin: float) -> Rule:
    """Ask for proof that the new model is not worse than any of the others by more than the margin."""
    name = f"no harm: {measure.title}"
    told = [c for c in compared if not c.untold]
    if not told:
        return Rule(name, None, f"not decided by: {'; '.join(c.untold for c in compared)}", None, -margin)
    compared = told
    known = [(c, c.change) for c in compared if c.change is not None]
    if len(known) < len(compared):
        # Nobody was asked, or everybody but one: the second is no proof of anything.
        lacking = ", ".join(c.opponent for c in compared if c.change is None)
        none = not known
        return Rule(
            name,
            None if none else False,
            f"not measured: {measure.absent}" if none else f"could not be compared with {lacking}",
            None,
            -margin,
        )
    # The most lenient comparison counts where one is enough, else the hardest.
    decisive = max if measure.lenient else min
    worst, found = decisive(known, key=lambda pair: pair[1].least)
    return Rule(
        name,
        found.least >= -margin - _ROUNDING,
        f"{_beside(found, measure, f' of {worst.opponent} ({worst.role})')}; "
        f"{_at_least(found.least, measure.unit)}, {_points(margin, measure.unit)} allowed",
        found.least,
        -margin,
    )


def _beside(found: Change, measure: Measure, whose: str = "") -> str:
    told = f"{amount(found.new, measure.unit)} after {amount(found.other, measure.unit)}{whose}"
    return f"{told}, {measure.basis}" if measure.basis else told


def _with(confidence: float) -> str:
    return f"with {100 * confidence:.3g} % confidence (one-sided)"


def _at_least(least: float, unit: Unit, confidence: float = CONFIDENCE) -> str:
    return f"{_with(confidence)} {_bound(least, unit)}"


def _bound(least: float, unit: Unit) -> str:
    return f"better by at least {_points(least, unit)}" if least >= 0 else f"worse by at most {_points(-least, unit)}"


def _gain(evidence: Evidence, settings: PromotionSettings) -> Rule:
    """Ask for one thing that is better, by a measure that the loop could not flatter."""
    name = f"better than the champion {evidence.champion} by a measure that the loop did not train on"
    confidence = sure_confidence(settings)
    against = [
        (c.measure, c.change, c.sure_gain)
        for c in evidence.compared
        if c.opponent == evidence.champion and c.change is not None and c.sure_gain is not None
    ]
    gains = [
        (
            measure.title,
            f"{measure.title}: {_beside(found, measure)}, {_at_least(sure, measure.unit, confidence)}",
            sure,
        )
        for measure, found, sure in against
        if sure > 0
    ]
    # Who asks for less than a half of independent arbiters does not call that a gain.
    least = max(0.5, settings.min_win_rate or 0.0)
    outside = [("people who read blind", evidence.people)]
    if not evidence.dependences:
        outside.append(("the independent arbiters", evidence.opinion))
    gains += [
        (
            who,
            f"{who} prefer it: {opinion.win_rate:.1%}, {_with(confidence)} at least {opinion.sure_low:.1%}",
            opinion.sure_low - least,
        )
        for who, opinion in outside
        if opinion is not None and opinion.sure_low > least
    ]
    if gains:
        return Rule(name, True, "; ".join(text for _, text, _ in gains), max(sure for _, _, sure in gains), 0.0)
    nearest = max(against, key=lambda entry: entry[2], default=None)
    return Rule(
        name,
        False,
        "nothing is proved to be better"
        + (f"; nearest to it: {nearest[0].title}, {_beside(nearest[1], nearest[0])}" if nearest else ""),
        nearest[2] if nearest else None,
        0.0,
    )


def _opinions(evidence: Evidence, settings: PromotionSettings) -> list[Rule]:
    rules = []
    said, needed = evidence.opinion, settings.min_win_rate
    figures = f"win rate {said.win_rate:.1%}, {_with(CONFIDENCE)} at least {said.low:.1%}"
    if evidence.dependences:
        agrees = (
            "" if said.agrees is None else f"; it agrees with {said.agrees:.1%} of the human preferences it decides"
        )
        rules.append(
            Rule(
                f"the loop's own opinion of it against {evidence.champion}",
                None,
                f"{figures}: shown, and decides nothing, for the arbiter is not independent "
                f"({'; '.join(evidence.dependences)}){agrees}",
                said.low,
                needed,
            )
        )
    else:
        if needed is not None:
            rules.append(
                Rule(
                    f"wins against the champion {evidence.champion}",
                    said.low > needed,
                    f"{figures}; more than {needed:.1%} needed",
                    said.low,
                    needed,
                )
            )
        if settings.min_length_controlled_win_rate is not None:
            rules.append(_length_controlled(said.length_controlled, settings.min_length_controlled_win_rate))
    if settings.min_people_pairs is not None:
        rules.append(_people(evidence, settings.min_people_pairs))
    return rules


def _people(evidence: Evidence, least_pairs: int) -> Rule:
    name, said = f"people who read blind prefer it to {evidence.champion}", evidence.people
    read = said.n if said else 0
    if said is None or read < least_pairs:
        return Rule(name, False, f"{read} of {least_pairs} pairs were read; `srlm read` shows them", None, 0.5)
    return Rule(
        name,
        said.low > 0.5,
        f"win rate {said.win_rate:.1%} over {read} pairs, {_with(CONFIDENCE)} at least {said.low:.1%}; "
        "more than 50.0% needed",
        said.low,
        0.5,
    )


def _length_controlled(value: float | None, least: float) -> Rule:
    name = "wins at equal length"
    if value is None:
        return Rule(name, False, "the win rate at equal length could not be estimated", None, least)
    return Rule(
        name, value > least, f"length-controlled win rate {value:.1%}, more than {least:.1%} needed", value, least
    )


def write_decision(decision: Decision, path: Path) -> None:
    """Keep a decision, atomically."""
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(asdict(decision), indent=2) + "\n", encoding="utf-8")


def read_decision(path: Path) -> Decision | None:
    """Return a decision that was kept, or None if there is none.

    Raises:
        RecordError: If what is kept is damaged.
    """
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        rules = tuple(Rule(**rule) for rule in facts["rules"])
        compared = tuple(Comparison(**one) for one in facts.get("comparisons", ()))
        return Decision(**{**facts, "rules": rules, "comparisons": compared})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecordError(path, error, "delete it, and `srlm run` decides again") from error
