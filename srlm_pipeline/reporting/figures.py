"""The figures of an iteration as tables and charts: each function makes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from srlm_pipeline.evaluation.assessment import Assessment
from srlm_pipeline.evaluation.head_to_head import HeadToHead
from srlm_pipeline.evaluation.judge_accuracy import JudgeAccuracy
from srlm_pipeline.evaluation.jury import jury_report
from srlm_pipeline.evaluation.matches import length_ratio
from srlm_pipeline.evaluation.measures import MEASURES, Measure, change, figure, measure_named
from srlm_pipeline.evaluation.opening import juror_names
from srlm_pipeline.evaluation.promotion import Rule
from srlm_pipeline.evaluation.verifiable_accuracy import VerifiableAccuracy
from srlm_pipeline.judging.rubric import MAX_SCORE
from srlm_pipeline.reporting import words
from srlm_pipeline.reporting.charts import dot_chart, histograms
from srlm_pipeline.reporting.iteration import Iteration, StageCost
from srlm_pipeline.reporting.pages import Table
from srlm_pipeline.reporting.words import BAD, GOOD, NOT_MEASURED, Cell, Estimate, written
from srlm_pipeline.tables import JUDGED_SCORES, MONITORS

_MONITOR_NAMES = {"kl": "distance from M1 (KL)", "variety": "variety within replies"}
_UNITS = {"cosine": "cosine, more is better", "nats": "nats per token, less is better"}
_OTHER_ANSWERS = "other model's answers"
# The ends of a 95 % interval.
_ONE_SIDED = 0.975


def rule_table(rules: Sequence[Rule]) -> Table:
    """Return the rules of promotion: broken ones first, then those that decided nothing, then those that are met."""
    ordered = sorted(rules, key=lambda rule: {False: 0, None: 1, True: 2}[rule.passed])
    return findings("rule", "figures", [(r.name, words.verdict(r.passed), r.explanation) for r in ordered])


def monitor_table(it: Iteration) -> Table:
    """Return the signs of collapse."""
    found = []
    for row in it.table(MONITORS, "collapse_monitors").to_dict("records"):
        name = _MONITOR_NAMES.get(row["name"], row["name"].replace("_", " "))
        passed = None if pd.isna(row["passed"]) else bool(row["passed"])
        found.append((name, words.verdict(passed), row["explanation"]))
    return findings("monitor", "figures", found)


def findings(what: str, why: str, rows: Sequence[Sequence[Cell]]) -> Table:
    """Return a table of names, verdicts and explanations."""
    return Table((what, "verdict", why), rows, range(3))


def vital_table(it: Iteration) -> Table:
    """Return the measures that no judge takes part in, with what is proved of the new model against each other."""
    *others, new = it.compared
    rows = []
    for measure in MEASURES:
        write = words.share if measure.unit == "share" else words.number
        found = [figure(a, measure, it.settings.evaluation.bootstrap_samples) for a in (*others, new)]
        changes = {a.model: _change(it, a, measure) for a in others}
        worse = ", ".join(name for name, (_, _, most) in changes.items() if most is not None and most < 0)
        better = ", ".join(name for name, (_, least, _) in changes.items() if least is not None and least > 0)
        told = (f"{BAD} worse than {worse}",) * bool(worse) + (f"{GOOD} better than {better}",) * bool(better)
        note = found[-1].note
        if note or not told:
            told = (f"{NOT_MEASURED} " + (f"not measured: {note}" if note else "no difference proved"),)
        unit = _UNITS.get(measure.unit)
        name = (measure.title, unit) if unit else measure.title
        rows.append((name, *(written((f.value, f.low, f.high), write) for f in found), told))
    heads = ("measure", *(a.model for a in (*others, new)), f"{new.model}, with 95 % confidence")
    return Table(heads, rows, (0, len(heads) - 1))


def match_table(it: Iteration) -> Table:
    """Return the results of the matches; of a jury also how far its members agree."""
    jurors = len(it.settings.evaluation.arbiters)
    heads = (
        f"{it.model} against", "wins", "ties", "losses", "win rate (95%)", "length-controlled", "decided only",
        "sign test p", "length ratio", "orders disagree", "position bias",
        *(("jurors agree", "effective votes") if jurors > 1 else ()),
    )  # fmt: skip
    rows = []
    for name, match in it.matches.items():
        row: list[Cell] = [
            _named(name, _role(it, name)), str(match.wins), str(match.ties), str(match.losses),
            *map(written, _win_rates(match).values()), words.p_value(match.p_value),
            words.number(length_ratio(it.replies[it.model], it.replies[name])), words.share(match.disagreement),
            words.signed(match.position_bias),
        ]  # fmt: skip
        if jurors > 1:
            jury = jury_report(it.win_rates[name])
            row += [words.share(jury.mean_agreement), f"{words.number(jury.effective_votes)} of {jurors}"]
        rows.append(row)
    return Table(heads, rows)


def match_chart(it: Iteration) -> Markup | None:
    """Draw the win rates."""
    names = {name: words.in_line(_named(name, _role(it, name))) for name in it.matches}
    rows = {f"against {names[name]}": _win_rates(match) for name, match in it.matches.items()}
    return dot_chart("Win rates with 95% intervals", rows, {"equally good": 0.5})


def jury_table(it: Iteration) -> Table:
    """Return who decides the matches, and how often they agree with people."""
    names, agreement = juror_names(it.settings.evaluation), it.around.agreement
    rows = []
    for name, chosen in zip(names, it.settings.evaluation.arbiters, strict=True):
        keys = ("agreement", "decided") if len(names) == 1 else (f"agreement of {name}", f"decided by {name}")
        rows.append((name, words.number(chosen.weight), *(words.share(agreement.get(key)) for key in keys)))
    return Table(("juror", "weight", "agrees with people", "decides"), rows)


def judge_table(judges: Mapping[str, JudgeAccuracy]) -> Table:
    """Return how far the models' judgements agree with people's."""
    heads = (
        "model", "pairwise (95%)", "longer is better", "length-balanced", "5-best", "exact match", "Spearman",
        "Kendall", "readable", "prompts", "pairs",
    )  # fmt: skip
    rows = [
        (
            model, written((j.pairwise_accuracy, j.pairwise_low, j.pairwise_high)), words.share(j.length_baseline),
            words.share(j.length_balanced_accuracy), words.share(j.five_best), words.share(j.exact_match),
            words.number(j.spearman), words.number(j.kendall), words.share(j.parse_rate), words.count(j.n_groups),
            words.count(j.n_pairs),
        )
        for model, j in judges.items()
    ]  # fmt: skip
    return Table(heads, rows)


def judge_chart(judges: Mapping[str, JudgeAccuracy]) -> Markup | None:
    """Draw the same beside what chance and what the length alone would reach; the last model's length counts."""
    rows = {
        model: {
            "pairwise accuracy": (j.pairwise_accuracy, j.pairwise_low, j.pairwise_high),
            "length-balanced accuracy": (j.length_balanced_accuracy, None, None),
        }
        for model, j in judges.items()
    }
    by_length = list(judges.values())[-1].length_baseline
    return dot_chart("Agreement with human rankings", rows, {"chance": 0.5, "longer is better": by_length})


def verifiable_table(it: Iteration, verifiable: Mapping[str, VerifiableAccuracy]) -> Table:
    """Return what the models follow of the instructions that a program checks, and the new one against the others."""
    shares = ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose")
    rows = []
    for model, accuracy in verifiable.items():
        m = accuracy.metrics()
        told: Cell = ""
        if model != it.model:
            ahead = _change(it, it.found[model], measure_named("verifiable"))
            told = words.in_line(written(ahead, words.change)) if ahead[0] is not None else ""
        estimates = (written((m[name], m[f"{name}_low"], m[f"{name}_high"])) for name in shares)
        rows.append((model, *estimates, words.count(m["n_prompts"]), words.count(m["n_instructions"]), told))
    heads = ("prompts, strict", "prompts, loose", "instructions, strict", "instructions, loose")
    return Table(("model", *heads, "prompts", "instructions", f"{it.model} against it"), rows)


def kind_table(verifiable: Mapping[str, VerifiableAccuracy]) -> Table:
    """Return which share of each kind of instruction the models follow strictly."""
    counts = {kind.kind: kind.n for accuracy in verifiable.values() for kind in accuracy.kinds}
    followed = {name: {kind.kind: kind.share for kind in accuracy.kinds} for name, accuracy in verifiable.items()}
    rows = [(k, str(n), *(words.share(shares.get(k)) for shares in followed.values())) for k, n in counts.items()]
    return Table(("kind", "instructions", *followed), rows)


def task_table(it: Iteration) -> Table:
    """Return the model's scores in tasks of lm-evaluation-harness."""
    rows = [(*key, words.in_line(written(score))) for key, score in it.around.tasks.items()]
    return Table(("task", "metric", it.model), rows, (0, 1))


def score_figures(it: Iteration) -> tuple[Markup | None, Table]:
    """Draw and tell how the candidates' scores are distributed, in this iteration and the one before."""
    numbers = dict.fromkeys([it.number, max(it.number - 1, 1)])
    values = {f"iteration {n}": it.table(JUDGED_SCORES, "judged_scores", n)["score"] for n in numbers}
    return _distributed("scores", "Scores of the candidates", values, words.number, (0.0, float(MAX_SCORE)))


def length_figures(it: Iteration) -> tuple[Markup | None, Table]:
    """Draw and tell how long the evaluation replies are, in characters."""
    values = {model: it.replies[model]["reply"].str.len() for model in dict.fromkeys([it.model, *it.opponents])}
    return _distributed("lengths", "Length of the evaluation replies in characters", values, words.count)


def cost_table(costs: Sequence[StageCost]) -> Table:
    """Return what the stages took beside what was planned; columns of which nothing is known are left out."""
    heads = ("stage", "time", "planned", "actual / planned", "tokens written", "planned", "tokens read, planned")
    rows = [_cost_row(cost.stage, [cost]) for cost in costs]
    rows = [(*row[:2], _planned(cost), *row[3:]) for row, cost in zip(rows, costs, strict=True)]
    known = [n for n in range(len(heads)) if n < 2 or any(row[n] != NOT_MEASURED for row in rows)]
    chosen = [[row[n] for n in known] for row in (heads, *rows, _cost_row("all", costs))]
    return Table(chosen[0], chosen[1:-1], total=chosen[-1])


def _cost_row(name: str, costs: Sequence[StageCost]) -> tuple[str, ...]:
    plans = [cost.plan for cost in costs if cost.plan]
    both = [(cost.seconds, cost.plan.seconds.likely) for cost in costs if cost.plan and cost.seconds is not None]
    actual, likely = (sum(part) for part in zip(*both, strict=True)) if both else (0.0, 0.0)
    return (
        name,
        words.seconds(_sum([cost.seconds for cost in costs])),
        words.seconds(_sum([plan.seconds.likely for plan in plans])),
        words.number(actual / likely if likely else None),
        words.count(_sum([cost.tokens for cost in costs])),
        words.count(_sum([plan.tokens_written for plan in plans])),
        words.count(_sum([plan.tokens_read for plan in plans])),
    )


def _planned(cost: StageCost) -> str:
    range_ = cost.plan.seconds if cost.plan else None
    return words.in_line(written((range_.likely, range_.low, range_.high), words.seconds)) if range_ else NOT_MEASURED


def _distributed(
    head: str,
    title: str,
    values: Mapping[str, pd.Series],
    write: Callable[[float | None], str],
    bounds: tuple[float, float] | None = None,
) -> tuple[Markup | None, Table]:
    known = {name: column.dropna().to_numpy(dtype=float) for name, column in values.items()}
    rows = [(name, *_described(array, write)) for name, array in known.items() if len(array)]
    heads = (head, "replies", "mean", "lowest tenth below", "median", "highest tenth above")
    return histograms(title, known, bounds), Table(heads, rows)


def _described(values: NDArray[np.float64], write: Callable[[float | None], str]) -> list[str]:
    return [words.count(len(values)), *map(write, [values.mean(), *np.quantile(values, [0.1, 0.5, 0.9])])]


def _win_rates(match: HeadToHead) -> dict[str, Estimate]:
    return {
        "win rate": (match.win_rate, match.low, match.high),
        "length-controlled": (match.length_controlled, match.length_controlled_low, match.length_controlled_high),
        "decided prompts only": (match.decided_win_rate, match.decided_low, match.decided_high),
    }


def _change(it: Iteration, other: Assessment, measure: Measure) -> Estimate:
    """Return by how much the new model exceeds another."""
    found = change(it.found[it.model], other, measure, _ONE_SIDED, it.settings.evaluation.bootstrap_samples)
    return (found.gain, found.least, found.most) if found else (None, None, None)


def _role(it: Iteration, name: str) -> str:
    return it.opponents[name].description if name in it.opponents else _OTHER_ANSWERS


def _named(name: str, role: str) -> Cell:
    return name if role == name else (name, role)


def _sum(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) if present else None
