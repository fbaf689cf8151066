"""The figures of an iteration as tables and charts: what stands in which column, told once.

Figures have the names that they have in MLflow and in what `metrics()` of their dataclasses returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pandas as pd
from markupsafe import Markup

from srlm_pipeline.evaluation.jury import jury_report
from srlm_pipeline.evaluation.matches import length_ratio
from srlm_pipeline.evaluation.measures import SHOWN, Change, Unit, amount, change, measure_named
from srlm_pipeline.evaluation.opening import juror_names
from srlm_pipeline.evaluation.promotion import CONFIDENCE, sure_confidence
from srlm_pipeline.evaluation.verifiable_accuracy import shares_by_kind
from srlm_pipeline.judging.rubric import MAX_SCORE
from srlm_pipeline.reporting import words
from srlm_pipeline.reporting.charts import dot_chart, histograms
from srlm_pipeline.reporting.iteration import Iteration
from srlm_pipeline.reporting.pages import Column, Figures, Table
from srlm_pipeline.reporting.words import BAD, GOOD, NOT_MEASURED, Cell
from srlm_pipeline.tables import JUDGED_SCORES, MONITORS

_MONITOR_NAMES = {"kl": "distance from M1 (KL)", "variety": "variety within replies"}
# The ends of a 95 % interval.
_ONE_SIDED = 0.975
_WINS = (
    Column("win rate (95%)", "win_rate low high", meaning="wins and half of the ties, as a share of all prompts"),
    Column(
        "length-controlled", "length_controlled",
        meaning="the win rate that would be expected, had both models' replies the same length",
    ),
    Column("decided prompts only", "decided_win_rate decided_low decided_high", meaning="wins among wins and losses"),
)  # fmt: skip
_MATCH = (
    *(Column(count, count, words.count) for count in ("wins", "ties", "losses")),
    *_WINS,
    Column("sign test p", "p_value", words.p_value, "how often models of equal strength would part at least as far"),
    Column("length ratio", "length_ratio", words.number, "mean length of the replies, divided by the opponent's"),
    Column(
        "orders disagree", "disagreement",
        meaning="prompts on which the verdict turned when the replies changed places; they count as ties",
    ),
    Column(
        "position bias", "position_bias", words.signed,
        "from \u22121 (always the second place) to +1 (always the first)",
    ),
    Column("jurors agree", "agreement", optional=True),
    Column(
        "effective votes", "effective_votes", words.number,
        "how many independent jurors the jury is worth; jurors who always agree are one", optional=True,
    ),
)  # fmt: skip
_JUROR = (
    Column("weight", "weight", words.number),
    Column("agrees with people", "agreement"),
    Column("decides", "decided"),
)
PAIRWISE = "judge/pairwise_accuracy judge/pairwise_low judge/pairwise_high"
_AS_A_JUDGE = (
    Column(
        "pairwise (95%)", PAIRWISE,
        meaning="pairs of replies to one prompt that are scored in the human order; equal scores count half",
    ),
    Column(
        "length-balanced", "judge/length_balanced_accuracy",
        meaning="mean over pairs that the longer and pairs that the shorter reply wins; length alone reaches 50%",
    ),
)  # fmt: skip
_JUDGE = (
    *_AS_A_JUDGE,
    Column(
        "longer is better", "judge/length_baseline",
        meaning="the first figure for whoever always prefers the longer reply",
    ),
    Column("5-best", "judge/five_best", meaning="replies given a perfect 5 that people ranked top"),
    Column("exact match", "judge/exact_match", meaning="prompts whose whole order is the human one"),
    Column("Spearman", "judge/spearman", words.number),
    Column("Kendall", "judge/kendall", words.number),
    Column("readable", "judge/parse_rate", meaning="replies that got a score at all"),
    Column("prompts", "judge/n_groups", words.count),
    Column("pairs", "judge/n_pairs", words.count),
)  # fmt: skip
_VERIFIABLE = (
    Column("prompts, strict", "verifiable/prompt_strict"),
    Column("prompts, loose", "verifiable/prompt_loose"),
    Column("instructions, strict", "verifiable/instruction_strict"),
    Column("instructions, loose", "verifiable/instruction_loose"),
    Column("prompts", "verifiable/n_prompts", words.count),
    Column("instructions", "verifiable/n_instructions", words.count),
)
_COST = (
    Column("time", "seconds", words.seconds),
    Column("planned", "planned", words.seconds, optional=True),
    Column("actual / planned", "ratio", words.number, optional=True),
    Column("tokens written", "tokens", words.count, optional=True),
    Column("planned", "tokens_planned", words.count, optional=True),
    Column("tokens read, planned", "read_planned", words.count, optional=True),
)
_PARTS = {"mean": "mean", "10%": "lowest tenth below", "50%": "median", "90%": "highest tenth above"}


def findings(what: str, why: str, rows: Iterable[tuple[str, str, str]]) -> Table:
    """Return a table of names, verdicts and explanations."""
    return Table((what, "verdict", why), list(rows), range(3))


def rule_table(it: Iteration) -> Table:
    """Return the rules of promotion: broken ones first, then those that decided nothing, then those that are met."""
    ordered = sorted(it.decision.rules, key=lambda rule: {False: 0, None: 1, True: 2}[rule.passed])
    return findings("rule", "figures", [(r.name, words.verdict(r.passed), r.explanation) for r in ordered])


def comparison_table(it: Iteration) -> Table:
    """Return every comparison that the rules of promotion rest on, as the rules were decided by it."""
    confidences = (CONFIDENCE, sure_confidence(it.settings.promotion))
    bounds = (f"with {100 * confidence:.3g} % confidence" for confidence in confidences)
    rows = [
        (
            (c.measure, c.basis) if c.basis else c.measure,
            (c.beside, c.role) if c.role else c.beside,
            *(cell or NOT_MEASURED for cell in (c.new, c.other, c.bound, c.sure, c.asked)),
        )
        for c in it.decision.comparisons
    ]
    return Table(("measure", "beside", it.model, "the other", *bounds, "asked"), rows, (0, 1, 4, 5, 6))


def monitor_table(it: Iteration) -> Table:
    """Return the signs of collapse."""
    found = it.table(MONITORS, "collapse_monitors")
    names = [_MONITOR_NAMES.get(name, name.replace("_", " ")) for name in found["name"]]
    verdicts = [words.verdict(None if pd.isna(passed) else bool(passed)) for passed in found["passed"]]
    return findings("monitor", "figures", zip(names, verdicts, found["explanation"], strict=True))


def vital_table(it: Iteration) -> Table:
    """Return the measures that no judge takes part in, with what is proved of the new model against each other."""
    *others, new = it.compared
    rows = []
    for measure in SHOWN:
        column = Column(measure.title, f"vital/{measure.name}", _in_unit(measure.unit))
        changes = {it.label(name): _change(it, name, measure.name) for name in others}
        worse = ", ".join(name for name, found in changes.items() if found and found.most < 0)
        better = ", ".join(name for name, found in changes.items() if found and found.least > 0)
        told: Cell = (f"{BAD} worse than {worse}",) * bool(worse) + (f"{GOOD} better than {better}",) * bool(better)
        if column.estimate(it.figures[new])[0] is None:
            told = f"{NOT_MEASURED} not measured: {measure.absent}"
        note = measure.detail
        if measure.unit != "share":
            note += f", {'more' if measure.higher_is_better else 'less'} is better"
        cells = (column.cell(it.figures[name]) for name in it.compared)
        rows.append(
            ((measure.title, note) if note else measure.title, *cells, told or f"{NOT_MEASURED} no difference proved")
        )
    heads = ("measure", *map(it.label, it.compared), f"{new}, with 95 % confidence (two-sided)")
    return Table(heads, rows, (0, len(heads) - 1))


def match_figures(it: Iteration) -> tuple[Markup | None, Table]:
    """Draw and tell the results of the matches; of a jury also how far its members agree."""
    jury = len(it.settings.evaluation.arbiters) > 1
    rows: dict[Cell, Figures] = {
        (name, it.role(name)): match.metrics()
        | {"length_ratio": length_ratio(it.replies[it.model], it.replies[name])}
        | (jury_report(it.win_rates[name]).metrics() if jury else {})
        for name, match in it.matches.items()
    }
    drawn = {f"against {words.in_line(name)}": figures for name, figures in rows.items()}
    chart = dot_chart("Win rates with 95% intervals", drawn, _WINS, {"equally good": 0.5})
    return chart, Table.of(f"{it.model} against", _MATCH, rows)


def jury_table(it: Iteration) -> Table:
    """Return who decides the matches, and how often they agree with people."""
    names, said = juror_names(it.settings.evaluation), it.around.agreement
    of, by = ("", "") if len(names) == 1 else (" of {}", " by {}")
    rows: dict[Cell, Figures] = {
        name: {
            "weight": chosen.weight,
            "agreement": said.get("agreement" + of.format(name)),
            "decided": said.get("decided" + by.format(name)),
        }
        for name, chosen in zip(names, it.settings.evaluation.arbiters, strict=True)
    }
    return Table.of("juror", _JUROR, rows)


def judge_figures(it: Iteration) -> tuple[Markup | None, Table]:
    """Draw and tell how far the models' judgements agree with people's, beside what chance and length would reach."""
    rows: dict[Cell, Figures] = {it.label(name): it.figures[name] for name in it.compared}
    references = {"chance": 0.5, "longer is better": it.figures[it.model].get("judge/length_baseline")}
    drawn = {words.in_line(name): figures for name, figures in rows.items()}
    return dot_chart("Agreement with human rankings", drawn, _AS_A_JUDGE, references), Table.of("model", _JUDGE, rows)


def verifiable_table(it: Iteration) -> Table:
    """Return what the models follow of the instructions that a program checks, and the new one against the others."""
    rows: dict[Cell, Figures] = {}
    for name in it.compared:
        if len(it.found[name].verifiable):
            found = _change(it, name, "verifiable") if name != it.model else None
            ahead = {"ahead": found.gain, "ahead_low": found.least, "ahead_high": found.most} if found else {}
            rows[it.label(name)] = it.figures[name] | ahead
    return Table.of("model", (*_VERIFIABLE, Column(f"{it.model} against it", "ahead", words.change)), rows)


def kind_table(it: Iteration) -> Table:
    """Return which share of each kind of instruction the models follow strictly."""
    rows: dict[Cell, dict[str, float]] = {}
    for name in it.compared:
        for kind in shares_by_kind(it.found[name].verifiable):
            rows.setdefault(kind.kind, {"instructions": kind.n})[name] = kind.share
    followed = (Column(it.label(name), name, optional=True) for name in it.compared)
    return Table.of("kind", (Column("instructions", "instructions", words.count), *followed), rows)


def task_table(it: Iteration) -> Table:
    """Return the model's scores in tasks of lm-evaluation-harness."""
    return Table.of("task", [Column(it.model, "score")], it.around.tasks)


def score_figures(it: Iteration) -> tuple[Markup | None, Table]:
    """Draw and tell how the candidates' scores are distributed, in this iteration and the one before."""
    numbers = dict.fromkeys([it.number, max(it.number - 1, 1)])
    values = {f"iteration {n}": it.table(JUDGED_SCORES, "judged_scores", n)["score"] for n in numbers}
    return _distributed("scores", "Scores of the candidates", values, words.number, (0.0, float(MAX_SCORE)))


def length_figures(it: Iteration) -> tuple[Markup | None, Table]:
    """Draw and tell how long the evaluation replies are, in characters."""
    names = dict.fromkeys([it.model, *it.opponents])
    values = {it.label(name): it.replies[name]["reply"].str.len() for name in names}
    return _distributed("lengths", "Length of the evaluation replies in characters", values, words.count)


def cost_table(costs: Mapping[str, Figures]) -> Table:
    """Return what the stages took beside what was planned."""
    names = [name for column in _COST for name in column.names.split()]
    told = pd.DataFrame(list(costs.values()), columns=names, dtype=float)
    total, both = told.sum(min_count=1), told.dropna(subset=["seconds", "planned"]).sum(min_count=1)
    ratio = (told["seconds"] / told["planned"]).to_list()
    rows: dict[Cell, Figures] = {
        stage: {**row, "ratio": r} for (stage, row), r in zip(costs.items(), ratio, strict=True)
    }
    return Table.of("stage", _COST, rows, {**total, "ratio": both["seconds"] / both["planned"]})


def _distributed(
    head: str,
    title: str,
    values: Mapping[str, pd.Series],
    write: Callable[[float | None], str],
    bounds: tuple[float, float] | None = None,
) -> tuple[Markup | None, Table]:
    known = {name: column.dropna().astype(float) for name, column in values.items()}
    rows: dict[Cell, Figures] = {
        name: column.describe(percentiles=[0.1, 0.5, 0.9]).to_dict() for name, column in known.items() if len(column)
    }
    columns = (Column("replies", "count", words.count), *(Column(part, name, write) for name, part in _PARTS.items()))
    drawn = histograms(title, {name: column.to_numpy() for name, column in known.items()}, bounds)
    return drawn, Table.of(head, columns, rows)


def _change(it: Iteration, other: str, measure: str) -> Change | None:
    """Return by how much the new model exceeds another."""
    mine, theirs, resamples = it.found[it.model], it.found[other], it.settings.evaluation.bootstrap_samples
    return change(mine, theirs, measure_named(measure), _ONE_SIDED, resamples)


def _in_unit(unit: Unit) -> Callable[[float | None], str]:
    return lambda value: NOT_MEASURED if value is None else amount(value, unit)
