"""The report over all iterations: who is champion and why, and how the figures went."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from markupsafe import Markup

from srlm_pipeline.evaluation.assessment import Assessment
from srlm_pipeline.evaluation.champion import champion_before
from srlm_pipeline.evaluation.evidence import failed_monitors
from srlm_pipeline.evaluation.judge_accuracy import measure_judge
from srlm_pipeline.evaluation.measures import figure, measure_named
from srlm_pipeline.evaluation.opponents import ROLE_NAMES
from srlm_pipeline.evaluation.verifiable.scoring import measure_verifiable
from srlm_pipeline.reporting import words
from srlm_pipeline.reporting.charts import curves
from srlm_pipeline.reporting.figures import findings, jury_table
from srlm_pipeline.reporting.iteration import Iteration
from srlm_pipeline.reporting.pages import Table, render, report_name, sentence
from srlm_pipeline.reporting.words import NOT_MEASURED, Estimate, written
from srlm_pipeline.store import BASE, SFT_BASELINE, model_name
from srlm_pipeline.tables import MONITORS, PREFERENCE_PAIRS

# Title of the curve, by head of the column.
_CURVES = {
    "judge accuracy": "Judge: pairwise accuracy",
    "checkable instructions": "Checkable instructions followed",
    "closed tasks": "Closed tasks solved",
    "go in circles": "Replies that go in circles",
    "mean length": "Mean reply length, characters",
    "readable": "Judgements with a readable score",
    "pairs": "Preference pairs kept",
}
_WRITERS: Mapping[str, Callable[[float | None], str]] = {
    "mean length": words.count,
    "pairs": words.count,
    "time": words.seconds,
}
_UNKNOWN: Estimate = (None, None, None)


def overview_html(iterations: Sequence[Iteration], seconds: Mapping[int, float]) -> str:
    """Return the page.

    Args:
        iterations: Those that have been decided, in order; at least one.
        seconds: What each took, where it is known.

    Raises:
        TableError: If a table or a decision is missing.
    """
    last = iterations[-1]
    champion = champion_before(last.store, last.number + 1)
    # By model and by head of the column.
    told = {name: _figures(last, last.found[name]) for name in (BASE, SFT_BASELINE, model_name(1))}
    told |= {it.model: _win_rates(it) | _figures(it, it.found[it.model]) | _work(it, seconds) for it in iterations}
    made = {model_name(1): 0} | {it.model: it.number for it in iterations}
    known = {head for row in told.values() for head in row}
    roles = [role for role in map(_against, ROLE_NAMES.values()) if role in known]
    return render(
        "overview.html",
        it=last,
        champion=champion,
        verdict=overview_verdict(iterations, champion),
        reports={it.model: report_name(it.number) for it in iterations},
        verdicts=findings(
            "model",
            "main reason",
            [
                (it.model, words.verdict(it.decision.promoted, "promoted", "not promoted"), _reasons(it))
                for it in iterations
            ],
        ),
        charts=_charts({made[name]: row for name, row in told.items() if name in made}, roles),
        figures=_table(told, made, (*roles, *_CURVES, "time"), champion),
        jury=jury_table(last),
    )


def overview_verdict(iterations: Sequence[Iteration], champion: str) -> str:
    """Return which model is the champion and why, and what became of the newest one."""
    newest, promoted = iterations[-1], sum(it.decision.promoted for it in iterations)
    maker = next((it for it in iterations if it.model == champion), None)
    by = f", made by iteration {maker.number}," if maker else ""
    return (
        f"{champion}{by} is the champion{': ' + sentence(_reason(maker)) if maker else '.'} Of {len(iterations)} "
        f"iterations {promoted} led to a promotion; the newest model, {newest.model}, was "
        f"{'' if newest.decision.promoted else 'not '}promoted."
    )


def _figures(it: Iteration, assessment: Assessment) -> dict[str, Estimate]:
    judge = measure_judge(assessment.judgements)
    found = {
        "judge accuracy": (judge.pairwise_accuracy, judge.pairwise_low, judge.pairwise_high),
        "closed tasks": _measured(assessment, "closed_tasks"),
        "go in circles": _measured(assessment, "loops"),
        "readable": (judge.parse_rate, None, None),
        "mean length": (float(it.replies[assessment.model]["reply"].str.len().mean()), None, None),
    }
    if len(assessment.checkable):
        v = measure_verifiable(assessment.checkable, it.settings.evaluation.bootstrap_samples)
        followed = (v.instruction_strict, v.instruction_strict_low, v.instruction_strict_high)
        found["checkable instructions"] = followed
    return found


def _measured(assessment: Assessment, name: str) -> Estimate:
    found = figure(assessment, measure_named(name))
    return found.value, found.low, found.high


def _win_rates(it: Iteration) -> dict[str, Estimate]:
    return {
        _against(ROLE_NAMES[role]): (match.win_rate, match.low, match.high)
        for name, opponent in it.opponents.items()
        for role in opponent.roles
        # Where an earlier iteration was done again since, another champion may stand before this one now.
        if (match := it.matches.get(name))
    }


def _work(it: Iteration, seconds: Mapping[int, float]) -> dict[str, Estimate]:
    pairs = float(len(it.table(PREFERENCE_PAIRS, "preference_pairs")))
    return {"pairs": (pairs, None, None), "time": (seconds.get(it.number), None, None)}


def _against(role: str) -> str:
    return f"win rate against the {role}"


def _table(
    told: Mapping[str, Mapping[str, Estimate]], made: Mapping[str, int], heads: Sequence[str], champion: str
) -> Table:
    rows = [
        (
            (name, "champion") if name == champion else name,
            str(made.get(name, NOT_MEASURED)),
            *(written(row.get(head, _UNKNOWN), _WRITERS.get(head, words.share)) for head in heads),
        )
        for name, row in told.items()
    ]
    return Table(("model", "iteration", *heads), rows)


def _charts(told: Mapping[int, Mapping[str, Estimate]], roles: Sequence[str]) -> Iterator[tuple[str, Markup | None]]:
    """Draw what changes over iterations; models that no iteration made are left out."""
    yield (
        "Win rate",
        curves("Win rate", {role.removeprefix("win rate "): _curve(told, role) for role in roles}, reference=0.5),
    )
    for head, title in _CURVES.items():
        reference = 0.5 if head == "judge accuracy" else None
        yield title, curves(title, {title: _curve(told, head)}, _WRITERS.get(head, words.share), reference)


def _curve(told: Mapping[int, Mapping[str, Estimate]], head: str) -> dict[int, Estimate]:
    return {t: row.get(head, _UNKNOWN) for t, row in told.items()}


def _reasons(it: Iteration) -> str:
    monitors = failed_monitors(it.table(MONITORS, "collapse_monitors"))
    failed = f"; failed monitors: {', '.join(monitors).replace('_', ' ')}" if monitors else ""
    return _reason(it) + failed


def _reason(it: Iteration) -> str:
    rules = it.decision.failures or it.decision.rules
    reason = f"{rules[0].name}: {rules[0].explanation}" if rules else "no rule is asked for"
    before = champion_before(it.store, it.number)
    if it.decision.champion == before:
        return reason
    return (
        f"{reason}; that was against {it.decision.champion}, but {before} is the champion before it since an earlier "
        f"iteration was done again: materialize iteration {it.number} again"
    )
