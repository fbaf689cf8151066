"""The report over all iterations: who is champion and why, and how the figures went."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from srlm_pipeline.evaluation.champion import champion_before
from srlm_pipeline.evaluation.evidence import failed_monitors
from srlm_pipeline.evaluation.measures import figure, measure_named
from srlm_pipeline.evaluation.opponents import ROLE_NAMES
from srlm_pipeline.evaluation.verifiable_accuracy import measure_verifiable
from srlm_pipeline.reporting import words
from srlm_pipeline.reporting.charts import curves
from srlm_pipeline.reporting.figures import findings, jury_table
from srlm_pipeline.reporting.iteration import Iteration
from srlm_pipeline.reporting.pages import Table, render, report_name, sentence
from srlm_pipeline.reporting.words import NOT_MEASURED, Estimate, written
from srlm_pipeline.store import BASE, model_name
from srlm_pipeline.tables import MONITORS, PREFERENCE_PAIRS

_AGAINST = {role: f"win rate against the {name}" for role, name in ROLE_NAMES.items()}
_MEASURES = {"judge accuracy": "judge", "closed tasks": "closed_tasks", "go in circles": "loops"}
# Title of the curve, by head of the column.
_CURVES = {
    "judge accuracy": "Judge: pairwise accuracy",
    "verifiable instructions": "Verifiable instructions followed",
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
    told = {name: _figures(last, name) for name in (BASE, last.store.baseline, model_name(1))}
    told |= {it.model: _figures(it, it.model) | _work(it, seconds.get(it.number)) for it in iterations}
    made = {model_name(1): 0} | {it.model: it.number for it in iterations}
    against = [head for head in _AGAINST.values() if any(head in row for row in told.values())]
    heads = (*against, *_CURVES, "time")
    rows = {name: {head: row.get(head, _UNKNOWN) for head in heads} for name, row in told.items()}

    def curve(head: str) -> dict[int, Estimate]:
        return {made[name]: row[head] for name, row in rows.items() if name in made}

    charts = {"Win rate": curves("Win rate", {h.removeprefix("win rate "): curve(h) for h in against}, reference=0.5)}
    for head, title in _CURVES.items():
        reference = 0.5 if head == "judge accuracy" else None
        charts[title] = curves(title, {title: curve(head)}, _WRITERS.get(head, words.share), reference)
    cells = {
        name: [written(estimate, _WRITERS.get(head, words.share)) for head, estimate in row.items()]
        for name, row in rows.items()
    }
    verdicts = [
        (it.model, words.verdict(it.decision.promoted, "promoted", "not promoted"), _reasons(it)) for it in iterations
    ]
    return render(
        "overview.html",
        it=last,
        champion=champion,
        verdict=overview_verdict(iterations, champion),
        reports={it.model: report_name(it.number) for it in iterations},
        verdicts=findings("model", "main reason", verdicts),
        charts=charts,
        figures=Table(
            ("model", "iteration", *heads),
            [
                ((name, "champion") if name == champion else name, str(made.get(name, NOT_MEASURED)), *row)
                for name, row in cells.items()
            ],
        ),
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


def _figures(it: Iteration, name: str) -> dict[str, Estimate]:
    """Return a model's figures by head of the column."""
    model = it.found[name]
    measured = {head: figure(model, measure_named(measure)) for head, measure in _MEASURES.items()}
    found: dict[str, Estimate] = {head: (f.value, f.low, f.high) for head, f in measured.items()}
    found["mean length"] = (float(it.replies[name]["reply"].str.len().mean()), None, None)
    found["readable"] = (float(model.judgements["score"].notna().mean()), None, None)
    if len(model.verifiable):
        v = measure_verifiable(model.verifiable, it.settings.evaluation.bootstrap_samples)
        found["verifiable instructions"] = (v.instruction_strict, v.instruction_strict_low, v.instruction_strict_high)
    return found


def _work(it: Iteration, seconds: float | None) -> dict[str, Estimate]:
    """Return what only a model that an iteration made has."""
    pairs = len(it.table(PREFERENCE_PAIRS, "preference_pairs"))
    # Where an earlier iteration was done again since, another champion may stand before this one now.
    met = [(role, it.matches[name]) for name, o in it.opponents.items() for role in o.roles if name in it.matches]
    rates: dict[str, Estimate] = {_AGAINST[role]: (match.win_rate, match.low, match.high) for role, match in met}
    return rates | {"pairs": (float(pairs), None, None), "time": (seconds, None, None)}


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
