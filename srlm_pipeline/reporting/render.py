"""Reports as HTML: Jinja2 templates with every value escaped, no script, nothing loaded from anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from srlm_pipeline.files import replacing_file
from srlm_pipeline.reporting import words
from srlm_pipeline.reporting.charts import LineChart, dot_chart, histogram, line_chart
from srlm_pipeline.reporting.facts import (
    Estimate,
    Exchange,
    IterationReport,
    ModelSummary,
    OverviewReport,
    StageCost,
    TaskFigures,
    VerifiableFigures,
)

_Write = Callable[[float], str]
_EXCHANGES_SHOWN = 5
_ROLES_DRAWN = 4
_HIGHEST_SCORE = 5.0
# Control characters and halves of surrogate pairs, which HTML and UTF-8 do not allow.
UNPRINTABLE = dict.fromkeys(
    [*(c for c in range(0x20) if chr(c) not in "\t\n\r"), *range(0x7F, 0xA0), *range(0xD800, 0xE000)], "\ufffd"
)


def iteration_html(report: IterationReport) -> str:
    """Return the report on one iteration, verdict first.

    Args:
        report: Sections whose facts are missing are left out.
    """
    matches = {
        f"against {m.opponent}" + (f" ({m.role})" if m.role != m.opponent else ""): {
            "win rate": m.win_rate,
            "length-controlled": m.length_controlled,
            "decided prompts only": m.decided,
        }
        for m in report.matches
    }
    judges = {
        j.model: {"pairwise accuracy": j.pairwise, "length-balanced accuracy": _point(j.length_balanced)}
        for j in report.judges
    }
    by_length = next((j.length_baseline for j in report.judges if j.model == report.model), None)
    rulers = {"chance": 0.5} | ({} if by_length is None else {"longer is better": by_length})
    return _render(
        "iteration.html",
        report=report,
        verdict=iteration_verdict(report),
        match_chart=dot_chart("Win rates with 95% intervals", matches, {"equally good": 0.5}),
        judge_chart=dot_chart("Agreement with human rankings", judges, rulers),
        kinds=_by_kind(report.verifiable),
        tasks=_by_task(report.tasks),
        score_chart=histogram("Scores of the candidates", report.scores, (0.0, _HIGHEST_SCORE)),
        length_chart=histogram("Length of the evaluation replies in characters", report.lengths),
        groups=choose_exchanges(report.replies.exchanges) if report.replies else (),
        costs=_cost_table(report.costs),
    )


def overview_html(report: OverviewReport) -> str:
    """Return the report over all iterations, verdict first.

    Args:
        report: Curves whose facts are missing are left out.
    """
    roles = list(dict.fromkeys(role for model in report.models for role in model.win_rates))
    return _render(
        "overview.html",
        report=report,
        verdict=overview_verdict(report),
        roles=roles,
        charts=_curves(report.models, roles[:_ROLES_DRAWN]),
    )


def write_report(path: Path, html: str) -> None:
    """Write a report, atomically: a reader finds the old one or the new one, never half of either."""
    with replacing_file(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def iteration_verdict(report: IterationReport) -> str:
    """Return what was decided and what was decisive, in one sentence."""
    if report.promoted:
        place = f", in place of {report.champion}" if report.champion not in (None, report.model) else ""
        met = next((rule for rule in report.rules if rule.passed), None)
        reason = _sentence(met.explanation) if met else "no rule is set."
        return f"{report.model} is promoted to champion{place}: {reason}"
    failed = [rule for rule in report.rules if rule.passed is False]
    others = len(failed) - 1
    more = f" (and {others} more {'rule' if others == 1 else 'rules'} failed)" if others > 0 else ""
    reason = f": {_sentence(failed[0].explanation, more)}" if failed else "."
    stays = f", {report.champion} remains champion" if report.champion else ""
    return f"{report.model} is not promoted{stays}{reason}"


def overview_verdict(report: OverviewReport) -> str:
    """Return which model is the champion and why, and what became of the newest one."""
    decided = [m for m in report.models if m.promoted is not None and m.iteration is not None]
    promoted = sum(m.promoted is True for m in decided)
    tally = ""
    if decided:
        newest = max(decided, key=lambda m: m.iteration or 0)
        tally = (
            f" Of {len(decided)} iterations {promoted} led to a promotion; the newest model, {newest.model}, was "
            f"{'' if newest.promoted else 'not '}promoted."
        )
    if report.champion is None:
        return f"There is no champion yet.{tally}"
    row = next((m for m in report.models if m.model == report.champion), None)
    origin = f", made by iteration {row.iteration}," if row and row.iteration else ""
    reason = f": {_sentence(row.reason)}" if row and row.reason else "."
    return f"{report.champion}{origin} is the champion{reason}{tally}"


def _sentence(text: str, more: str = "") -> str:
    return text.strip().rstrip(".") + more + "."


@dataclass(frozen=True)
class ExchangeGroup:
    """Exchanges that are shown under one heading."""

    title: str
    explanation: str
    exchanges: tuple[Exchange, ...]

    @property
    def size(self) -> int:
        """How many they are."""
        return len(self.exchanges)


def choose_exchanges(exchanges: Sequence[Exchange], each: int = _EXCHANGES_SHOWN) -> tuple[ExchangeGroup, ...]:
    """Choose the best, the worst and the most disputed exchanges; none is shown twice.

    Args:
        exchanges: Of one match.
        each: At most so many of a kind.
    """
    taken: set[int] = set()

    def choose(key: Callable[[Exchange], float]) -> tuple[Exchange, ...]:
        places = [n for n, e in enumerate(exchanges) if n not in taken and key(e) > 0]
        places = sorted(places, key=lambda n: -key(exchanges[n]))[:each]
        taken.update(places)
        return tuple(exchanges[n] for n in places)

    groups = (
        ExchangeGroup("Best", "Where the arbiter prefers the model most.", choose(lambda e: e.advantage)),
        ExchangeGroup("Worst", "Where the arbiter prefers the opponent most.", choose(lambda e: -e.advantage)),
        ExchangeGroup(
            "Most disputed", "Where the two orders, or the jurors, are furthest apart.", choose(lambda e: e.dispute)
        ),
    )
    return tuple(group for group in groups if group.exchanges)


@dataclass(frozen=True)
class Table:
    """Heads, rows and a total, as texts; the first cell of a row is its name."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: tuple[str, ...] = ()


def _cost_table(costs: Sequence[StageCost]) -> Table | None:
    if not costs:
        return None
    likely = [c.planned_seconds.value if c.planned_seconds else None for c in costs]
    actual = [c.seconds for c in costs]
    columns: list[tuple[str, list[str], str]] = [
        ("time", [words.seconds(value) for value in actual], words.seconds(_sum(actual)))
    ]
    if any(value is not None for value in likely):
        both = [(a, p) for a, p in zip(actual, likely, strict=True) if a is not None and p is not None]
        total = sum(a for a, _ in both) / sum(p for _, p in both) if any(p for _, p in both) else None
        columns += [
            ("planned", [_planned(c.planned_seconds) for c in costs], words.seconds(_sum(likely))),
            ("actual / planned", [_ratio(a, p) for a, p in zip(actual, likely, strict=True)], words.number(total)),
        ]
    for head, values in (
        ("tokens written", [c.tokens_written for c in costs]),
        ("planned", [c.planned_tokens_written for c in costs]),
        ("tokens read", [c.tokens_read for c in costs]),
        ("planned", [c.planned_tokens_read for c in costs]),
    ):
        if any(value is not None for value in values):
            columns.append((head, [words.count(v) for v in values], words.count(_sum(values))))
    rows = tuple((cost.stage, *(cells[n] for _, cells, _ in columns)) for n, cost in enumerate(costs))
    return Table(("stage", *(head for head, _, _ in columns)), rows, ("all", *(total for _, _, total in columns)))


def _planned(planned: Estimate | None) -> str:
    if planned is None or planned.low is None or planned.high is None:
        return words.seconds(planned.value if planned else None)
    return f"{words.seconds(planned.value)} ({words.seconds(planned.low)} to {words.seconds(planned.high)})"


def _ratio(actual: float | None, planned: float | None) -> str:
    return words.number(actual / planned if actual is not None and planned else None)


def _sum(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) if present else None


def _by_kind(models: Sequence[VerifiableFigures]) -> Table | None:
    """Put the models side by side, one row per kind of instruction."""
    kinds = {kind.kind: kind.n for model in models for kind in model.by_kind}
    if not kinds:
        return None
    cells = {(model.model, kind.kind): words.share(kind.share) for model in models for kind in model.by_kind}
    names = [model.model for model in models]
    rows = tuple(
        (kind, str(n), *(cells.get((name, kind), words.NOT_MEASURED) for name in names)) for kind, n in kinds.items()
    )
    return Table(("kind", "instructions", *names), rows)


def _by_task(tasks: Sequence[TaskFigures]) -> Table | None:
    if not tasks:
        return None
    names = list(dict.fromkeys(task.model for task in tasks))
    cells = {(task.task, task.metric, task.model): words.share_with_interval(task.score) for task in tasks}
    rows = tuple(
        (task, metric, *(cells.get((task, metric, name), words.NOT_MEASURED) for name in names))
        for task, metric in dict.fromkeys((task.task, task.metric) for task in tasks)
    )
    return Table(("task", "metric", *names), rows)


def _curves(models: Sequence[ModelSummary], roles: Sequence[str]) -> list[LineChart]:
    """Draw what changes over iterations; models that no iteration made are left out."""
    by_iteration = {m.iteration: m for m in models if m.iteration is not None}
    win_rates = {f"against the {role}": {t: m.win_rates.get(role) for t, m in by_iteration.items()} for role in roles}

    def chart(
        title: str, figure: Callable[[ModelSummary], Estimate | None], write: _Write, include: Sequence[float] = (0.0,)
    ) -> LineChart | None:
        return line_chart(title, {title: {t: figure(m) for t, m in by_iteration.items()}}, write, include)

    drawn = (
        line_chart("Win rate", win_rates, words.share, reference=0.5),
        line_chart(
            "Judge: pairwise accuracy",
            {"pairwise accuracy": {t: m.judge_accuracy for t, m in by_iteration.items()}},
            words.share,
            reference=0.5,
        ),
        chart("Checkable instructions followed", lambda m: m.verifiable, words.share),
        chart("Closed tasks solved", lambda m: m.closed_tasks, words.share),
        chart("Replies that go in circles", lambda m: m.loops, words.share),
        chart("Mean reply length, characters", lambda m: _point(m.length), words.count),
        chart("Judgements with a readable score", lambda m: _point(m.parse_rate), words.share, (0.0, 1.0)),
        chart("Preference pairs kept", lambda m: _point(m.pairs_kept), words.count),
    )
    return [found for found in drawn if found]


def _point(value: float | None) -> Estimate | None:
    return None if value is None else Estimate(value)


@cache
def environment() -> Environment:
    """Return the templates, with the filters that write figures as people read them."""
    environment = Environment(
        loader=PackageLoader("srlm_pipeline.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "share": words.share,
        "number": words.number,
        "count_of": words.count,
        "signed": words.signed,
        "interval": words.share_with_interval,
        "main": words.main_share,
        "change": words.change_with_interval,
        "ends": words.interval,
        "p_value": words.p_value,
        "seconds": words.seconds,
        "fold": words.fold,
        "address": words.safe_address,
        "file_address": words.file_address,
        "at": lambda value: f"{value:.2f}".rstrip("0").rstrip("."),
    }
    return environment


def _render(template: str, **values: object) -> str:
    return environment().get_template(template).render(**values).translate(UNPRINTABLE)
