"""The report over all iterations: who is champion and why, and how the figures went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from srlm_pipeline.evaluation.champion import champion_before
from srlm_pipeline.evaluation.evidence import failed_monitors
from srlm_pipeline.evaluation.opponents import ROLE_NAMES
from srlm_pipeline.reporting import words
from srlm_pipeline.reporting.charts import curves
from srlm_pipeline.reporting.figures import PAIRWISE, findings, jury_table
from srlm_pipeline.reporting.iteration import Iteration
from srlm_pipeline.reporting.pages import Column, Figures, Table, render, report_name, sentence
from srlm_pipeline.reporting.words import NOT_MEASURED, Cell
from srlm_pipeline.store import BASE
from srlm_pipeline.tables import MONITORS, PREFERENCE_PAIRS

_WON = tuple(Column(f"win rate against the {name}", role) for role, name in ROLE_NAMES.items())
# By title of the curve.
_DRAWN = {
    "Judge: pairwise accuracy": Column("judge accuracy", PAIRWISE),
    "Verifiable instructions followed": Column("verifiable instructions", "verifiable/instruction_strict"),
    "Closed tasks solved": Column("closed tasks", "vital/closed_tasks"),
    "Replies that go in circles": Column("go in circles", "vital/loops"),
    "Mean reply length, characters": Column("mean length", "length/mean", words.count),
    "Judgements with a readable score": Column("readable", "judge/parse_rate"),
    "Preference pairs kept": Column("pairs", "pairs", words.count),
}


def overview_html(iterations: Sequence[Iteration], seconds: Mapping[int, float]) -> str:
    """Return the page.

    Args:
        iterations: Those that have been decided, in order; at least one.
        seconds: What each took, where it is known.

    Raises:
        TableError: If a table or a decision is missing.
    """
    last = iterations[-1]
    seed = replace(last, number=0)
    champion = champion_before(last.store, last.number + 1)
    # By iteration, what its model shows.
    made: dict[int, Figures] = {
        it.number: {**last.figures[it.model], **_work(it, seconds.get(it.number))} for it in (seed, *iterations)
    }
    rows: dict[Cell, Figures] = {last.label(name): last.figures[name] for name in seed.opponents}
    for it in (seed, *iterations):
        rows[(it.model, "champion") if it.model == champion else it.model] = made[it.number]
    won = [column for column in _WON if any(column.names in figures for figures in made.values())]
    time = Column("time", "seconds", words.seconds)
    columns = (Column("iteration", "iteration", words.count), *won, *_DRAWN.values(), time)
    charts = {"Win rate": curves("Win rate", won, made, 0.5)}
    for title, column in _DRAWN.items():
        charts[title] = curves(title, [column], made, 0.5 if column.names == PAIRWISE else None)
    verdicts = [(seed.model, f"{NOT_MEASURED} not judged", "the seed model, and the first champion")]
    verdicts += [
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
        figures=Table.of("model", columns, rows),
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


def _work(it: Iteration, seconds: float | None) -> dict[str, float | None]:
    """Return what only a model that the seed or an iteration made has: whom it beat, by role, and what it took."""
    pairs = len(it.table(PREFERENCE_PAIRS, "preference_pairs")) if it.number else None
    found: dict[str, float | None] = {"iteration": it.number, "pairs": pairs, "seconds": seconds}
    for name, opponent in it.opponents.items():
        # Where an earlier iteration was done again since, another champion may stand before this one now.
        if name in it.matches:
            won = it.matches[name]
            # Without SFT the baseline is the base model, whose figures are shown once.
            for role in [role for role in opponent.roles if name != BASE or role == "base"]:
                found |= {role: won.win_rate, f"{role}_low": won.low, f"{role}_high": won.high}
    return found


def _reasons(it: Iteration) -> str:
    monitors = failed_monitors(it.table(MONITORS, "collapse_monitors"))
    failed = f"; failed monitors: {', '.join(monitors).replace('_', ' ')}" if monitors else ""
    return _reason(it) + failed


def _reason(it: Iteration) -> str:
    before = champion_before(it.store, it.number)
    if it.decision.champion == before:
        return it.decision.reason
    return (
        f"{it.decision.reason}; that was against {it.decision.champion}, but {before} is the champion before it since "
        f"an earlier iteration was done again: materialize iteration {it.number} again"
    )
