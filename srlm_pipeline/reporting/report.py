"""The report on one iteration: a page, verdict first, and its head as Markdown for terminals and Dagster's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import yaml

from srlm_pipeline.data.conversations import transcript
from srlm_pipeline.evaluation.head_to_head import HeadToHead
from srlm_pipeline.evaluation.independence import dependences
from srlm_pipeline.evaluation.promotion import Decision
from srlm_pipeline.preference.pairs import select
from srlm_pipeline.prompting.family import family_trees
from srlm_pipeline.reporting import figures
from srlm_pipeline.reporting.iteration import Iteration
from srlm_pipeline.reporting.pages import OVERVIEW, Table, candidates_name, plain, reading_name, render, sentence
from srlm_pipeline.reporting.reading import Reading, telling
from srlm_pipeline.store import BASE
from srlm_pipeline.tables import GENERATED_PROMPTS, JUDGED_SCORES, PREFERENCE_PAIRS, REFUSED_PROMPTS

# Two models are alike where the interval of the win rate is no further from one half.
_ALIKE = 0.15
_EXCHANGES_SHOWN, _PAIRS_SHOWN, _PROMPTS_SHOWN, _REFUSED_SHOWN, _FAMILIES_SHOWN = 5, 5, 8, 3, 12


def iteration_pages(it: Iteration, reading: Reading) -> tuple[str, str]:
    """Return the report as HTML, and its head as Markdown.

    Args:
        it: The iteration.
        reading: All replies; those that tell most are shown.

    Raises:
        TableError: If a table or the decision is missing.
    """
    generated, refused = it.table(GENERATED_PROMPTS, "generated_prompts"), it.table(REFUSED_PROMPTS, "refused_prompts")
    selection = select(it.table(JUDGED_SCORES, "judged_scores"), it.settings.pairs)
    dropped = {
        "ties": selection.n_ties,
        "too few readable scores": selection.n_too_few_valid,
        "scores too low": selection.n_too_low,
        "no candidate fit to be chosen": selection.n_unfit,
        "none that passes its checks and is liked": selection.n_failed,
    }
    pairs = it.table(PREFERENCE_PAIRS, "preference_pairs")
    told = exchanges(it)
    groups = choose_exchanges(told)
    (match_chart, matches), (judge_chart, judge) = figures.match_figures(it), figures.judge_figures(it)
    tables = {
        "rules": figures.rule_table(it),
        "comparisons": figures.comparison_table(it),
        "monitors": figures.monitor_table(it),
        "vital": figures.vital_table(it),
        "matches": matches,
        "jury": figures.jury_table(it),
        "judge": judge,
        "verifiable": figures.verifiable_table(it),
        "kinds": figures.kind_table(it),
        "tasks": figures.task_table(it),
        "costs": figures.cost_table(it.around.costs),
    }
    html = render(
        "iteration.html",
        it=it,
        plain=in_plain_words(it),
        verdict=verdict(it.decision),
        tables=tables,
        compared=reading.compared,
        telling=telling(reading),
        dependences=dependences(it.settings),
        match_chart=match_chart,
        judge_chart=judge_chart,
        scores=figures.score_figures(it),
        lengths=figures.length_figures(it),
        groups=groups,
        n_exchanges=len(told),
        kept=generated["prompt"][generated["operator"] == "few_shot"].head(_PROMPTS_SHOWN),
        evolved=generated["operator"][generated["operator"] != "few_shot"].value_counts().to_dict(),
        families=[tree for tree in family_trees(generated) if tree.is_evolved][:_FAMILIES_SHOWN],
        n_kept=len(generated),
        n_attempts=len(generated) + len(refused),
        refused=[
            (reason, len(rows), rows["prompt"][rows["prompt"] != ""].head(_REFUSED_SHOWN))
            for reason, rows in sorted(refused.groupby("reason", sort=False), key=lambda found: -len(found[1]))
        ],
        pairs=pairs.head(_PAIRS_SHOWN).astype(object).where(pairs.notna(), None).to_dict("records"),
        n_pairs=len(pairs),
        selection=selection,
        dropped=[f"{n:,} {reason}" for reason, n in dropped.items() if n],
        settings=yaml.safe_dump(it.settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        files={
            it.model: it.store.model_folder(it.model),
            "tables": it.store.tables,
            "journals": it.store.root / "journals",
        },
        reading_address=reading_name(it.number),
        candidates_address=candidates_name(it.number),
        overview_address=OVERVIEW,
    )
    return html, _summary(it, tables)


def in_plain_words(it: Iteration) -> str:
    """Return how the model fares against champion and SFT baseline, for who knows nothing of how it was made.

    A win rate whose 95 % interval holds one half is no proof of anything; where it is wide, not even of likeness.
    """
    champion, baseline = it.decision.champion, it.store.baseline
    called = {champion: champion, baseline: "the base model" if baseline == BASE else "plain fine-tuning"}
    met = {name: it.matches[name] for name in called if name in it.matches and name != it.model}
    if not met:
        return f"{it.model} has met neither {champion} nor {called[baseline]}."
    told: dict[str, list[str]] = {}
    for name, won in met.items():
        told.setdefault(_fares(won), []).append(f"{called[name]} ({_counted(won)})")
    parts = [f"{fares} {' and '.join(others)}" for fares, others in told.items()]
    who = "In the opinion of its own judge, " if dependences(it.settings) else ""
    return f"{who}{it.model} {' and '.join(parts)}."


def _fares(won: HeadToHead) -> str:
    if won.low > 0.5:
        return "is better than"
    if won.high < 0.5:
        return "trails"
    alike = won.wins + won.losses > 0 and max(0.5 - won.low, won.high - 0.5) <= _ALIKE
    return "is about as good as" if alike else "cannot be told from"


def _counted(won: HeadToHead) -> str:
    ties = f", {won.ties} {'tie' if won.ties == 1 else 'ties'}" if won.ties else ""
    return f"{won.wins}:{won.losses}{ties}{': no proof' if won.low <= 0.5 <= won.high else ''}"


def verdict(decision: Decision) -> str:
    """Return what was decided and what was decisive, in one sentence."""
    others = len(decision.failures) - 1
    more = f" (and {others} more {'rule' if others == 1 else 'rules'} failed)" if others > 0 else ""
    place = f", in place of {decision.champion}" if decision.champion != decision.model else ""
    told = (
        f"promoted to champion{place}" if decision.promoted else f"not promoted, {decision.champion} remains champion"
    )
    return f"{decision.model} is {told}: {sentence(decision.reason, more)}"


def exchanges(it: Iteration) -> pd.DataFrame:
    """Return all prompts of the match against the champion with both replies.

    Returns:
        By prompt id: `verdict`; `preference` for the new model's reply over both orders, below 0 for the champion's;
        `dispute`, how far the orders and the jurors are apart; `prompt`, `reply` and `finish_reason` of both sides.
    """
    if it.decision.champion not in it.win_rates:
        return pd.DataFrame(columns=["preference", "dispute"])
    rows = it.win_rates[it.decision.champion].groupby("prompt_id", sort=False)
    told = {"verdict": rows["verdict"].agg(_verdict), "preference": rows["preference"].mean()}
    frame = pd.DataFrame(told | {"dispute": rows["opinions"].agg(_dispute)})
    for side, name in (("new", it.model), ("old", it.decision.champion)):
        replies = it.replies[name].assign(prompt=it.replies[name]["prompt"].map(transcript))
        frame = frame.join(replies.set_index("prompt_id").add_prefix(f"{side}_"))
    return frame


def choose_exchanges(told: pd.DataFrame, each: int = _EXCHANGES_SHOWN) -> dict[tuple[str, str], list[Any]]:
    """Choose the best, the worst and the most disputed prompts, at most so many each; none is chosen twice.

    Args:
        told: What `exchanges` returns.
        each: How many.

    Returns:
        Rows by title and explanation; titles without any are left out.
    """
    chosen: dict[tuple[str, str], list[Any]] = {}
    left = told
    for title, explanation, column, sign in (
        ("Best", "Where the arbiter prefers the model most.", "preference", 1),
        ("Worst", "Where the arbiter prefers the opponent most.", "preference", -1),
        ("Most disputed", "Where the two orders, or the jurors, are furthest apart.", "dispute", 1),
    ):
        best = left.assign(by=sign * left[column]).query("by > 0").sort_values("by", ascending=False, kind="stable")
        if len(best):
            chosen[title, explanation] = list(best.head(each).itertuples())
            left = left.drop(best.head(each).index)
    return chosen


def _verdict(orders: pd.Series) -> str:
    return {"win": "Won", "loss": "Lost"}.get(orders.iloc[0], "Tie") if orders.nunique() == 1 else "Tie"


def _dispute(opinions: pd.Series) -> float:
    """Return the spread of everything that was said of a prompt: in both orders, by every juror."""
    said = [o["preference"] for text in opinions for o in json.loads(text) if o["preference"] is not None]
    return float(np.std(said)) if said else 0.0


def _summary(it: Iteration, tables: Mapping[str, Table]) -> str:
    own = plain("; ".join(dependences(it.settings)))
    rare = ("decided prompts only", "sign test p", "length ratio", "position bias", "jurors agree", "effective votes")
    parts = [
        f"# {it.settings.project}, iteration {it.number}\n",
        plain(in_plain_words(it)) + "\n",
        verdict(it.decision) + "\n",
        tables["rules"].markdown() if tables["rules"].rows else "",
        tables["monitors"].markdown(),
        "## Vital signs, without any judge\n",
        tables["vital"].markdown(brief=True),
        "## Head to head\n",
        f"The loop's own opinion: the arbiter is not independent ({own}).\n" if own else "",
        tables["matches"].markdown(without=rare),
        f"Decided by {plain(', '.join(str(row[0]) for row in tables['jury'].rows))}.\n",
        "## As a judge, on held-out human rankings\n",
        tables["judge"].markdown(without=("prompts", "pairs")),
    ]
    if tables["verifiable"].rows:
        counted = ("prompts", "instructions")
        parts += ["## Verifiable instructions\n", tables["verifiable"].markdown(without=counted)]
    return "\n".join(part for part in parts if part)
