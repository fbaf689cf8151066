"""The iteration report: what a person reads in the morning, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from srlm_pipeline.evaluation.head_to_head import HeadToHead
from srlm_pipeline.evaluation.judge_accuracy import JudgeAccuracy
from srlm_pipeline.evaluation.promotion import Rule
from srlm_pipeline.planning.plan import Range, StageTime

_EXCERPT = 300


@dataclass(frozen=True)
class IterationFacts:
    """Everything that a report shows.

    Attributes:
        project: Name.
        iteration: From 1.
        model: Name of the model that this iteration made.
        previous: Name of the model that entered it.
        arbiter: Who decided the matches, in words.
        matches: Results by opponent.
        judges: Judge accuracy by model, the new one last.
        promoted: The decision.
        rules: Its reasons.
        replies: Columns prompt, baseline, previous, model.
        figures: Further figures by name.
        times: Planned and actual seconds of the stages; empty if nothing was planned.
    """

    project: str
    iteration: int
    model: str
    previous: str
    arbiter: str
    matches: dict[str, HeadToHead]
    judges: dict[str, JudgeAccuracy]
    promoted: bool
    rules: Sequence[Rule]
    replies: pd.DataFrame
    figures: dict[str, float]
    times: Sequence[StageTime] = ()


def iteration_markdown(facts: IterationFacts) -> str:
    """Return the report, verdict first."""
    verdict = "promoted to champion" if facts.promoted else "not promoted"
    lines = [
        f"# {facts.project}, iteration {facts.iteration}: {facts.model} {verdict}",
        "",
        "| rule | verdict | figures |",
        "|---|---|---|",
        *(f"| {r.name} | {'passed' if r.passed else '**failed**'} | {r.explanation} |" for r in facts.rules),
        "",
        "## Head to head",
        "",
        f"{facts.model} against | wins | ties | losses | win rate (95 %) | orders disagree",
        "---|---|---|---|---|---",
        *(
            f"{name} | {m.wins} | {m.ties} | {m.losses} | {m.win_rate:.1%} ({m.low:.1%} to {m.high:.1%}) | "
            f"{m.disagreement:.0%}"
            for name, m in facts.matches.items()
        ),
        "",
        f"Decided by {facts.arbiter}. How far it agrees with people is measured in `seed_evaluation`.",
        "",
        "## As a judge, on held-out human rankings",
        "",
        "model | pairwise (95 %) | length baseline | length-balanced | 5-best | exact match | Spearman | Kendall | "
        "parsed",
        "---|---|---|---|---|---|---|---|---",
        *(
            f"{name} | {_share(j.pairwise_accuracy)} ({_share(j.pairwise_low)} to {_share(j.pairwise_high)}) | "
            f"{_share(j.length_baseline)} | {_share(j.length_balanced_accuracy)} | {_share(j.five_best)} | "
            f"{_share(j.exact_match)} | {_number(j.spearman)} | {_number(j.kendall)} | {j.parse_rate:.0%}"
            for name, j in facts.judges.items()
        ),
        "",
        "## Figures",
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {name} | {value:.4g} |" for name, value in facts.figures.items()),
        "",
        *_times(facts.times),
        "## Replies side by side",
        "",
    ]
    for row in facts.replies.itertuples():
        lines += [
            f"**{_cell(row.prompt)}**",
            "",
            f"- *SFT baseline:* {_cell(row.baseline)}",
            f"- *{facts.previous}:* {_cell(row.previous)}",
            f"- *{facts.model}:* {_cell(row.model)}",
            "",
        ]
    return "\n".join(lines)


def _times(times: Sequence[StageTime]) -> list[str]:
    if not times:
        return []
    known = [time for time in times if time.actual is not None]
    planned, actual = sum(time.planned.likely for time in known), sum(time.actual or 0.0 for time in known)
    return [
        "## Planned and actual",
        "",
        "| stage | planned, s | range | actual, s | actual / planned |",
        "|---|---|---|---|---|",
        *(
            f"| {time.stage} | {time.planned.likely:.0f} | {time.planned.low:.0f} to {time.planned.high:.0f} | "
            + ("none | none |" if time.actual is None else f"{time.actual:.0f} | {_ratio(time.actual, time.planned)} |")
            for time in times
        ),
        f"| all that are known | {planned:.0f} | | {actual:.0f} | {actual / max(planned, 1e-9):.2f} |",
        "",
        "Planned by `srlm plan` for the same settings. A stage that found finished work in its journal is faster.",
        "",
    ]


def _ratio(actual: float, planned: Range) -> str:
    outside = not planned.low <= actual <= planned.high
    return f"{actual / max(planned.likely, 1e-9):.2f}" + (" (outside)" if outside else "")


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _cell(text: object) -> str:
    """One line of plain text: what a model wrote must not become markup of the report."""
    flat = " ".join(str(text).split())
    cut = flat if len(flat) <= _EXCERPT else flat[:_EXCERPT] + "\u2026"
    return "".join("\\" + c if c in "\\`*_{}[]<>|#~&" else c for c in cut)
