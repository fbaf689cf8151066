"""A project of two iterations as its stages would leave it, without any model: what reports are made from."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa
from assessed import assessed

from srlm_pipeline.config import EvaluationSettings, Settings
from srlm_pipeline.evaluation.assessment import Assessment
from srlm_pipeline.evaluation.head_to_head import ORDERS
from srlm_pipeline.evaluation.promotion import Decision, Rule, write_decision
from srlm_pipeline.models.checkpoint import write_marker
from srlm_pipeline.reporting.iteration import Iteration, Surroundings
from srlm_pipeline.reporting.reading import Reading, read_replies
from srlm_pipeline.store import BASE, SFT_BASELINE, ProjectStore
from srlm_pipeline.tables import (
    GENERATED_PROMPTS,
    JUDGED_SCORES,
    MONITORS,
    PREFERENCE_PAIRS,
    REFUSED_PROMPTS,
    WIN_RATES,
    write_table,
)

OTHER = "another model"
REPLIES = {
    BASE: ["base says", "base says", "base says", "base says"],
    SFT_BASELINE: ["tuned says", "tuned says", "tuned says", "tuned says"],
    "M1": ["first says", "first says", "first says", "first says"],
    "M2": ["Because.", "No idea.", "Then.", "Here."],
    "M3": ["Because of this.", "So.", "Now.", "There."],
}
# What the two jurors say of the new model's reply: won, lost, undecided, disputed.
OPINIONS = ((2.0, 1.0), (-1.0, -1.0), (0.0, 0.0), (1.0, -1.0))
PLANNED = {
    "planned": 120, "planned_low": 80, "planned_high": 200, "tokens_planned": 60000, "read_planned": 9500,
}  # fmt: skip
AROUND = Surroundings(
    made_at="Made on 3 July.",
    agreement={"agreement of verifiers": 0.684, "decided by verifiers": 0.93},
    position_bias={"M1": -0.073},
    tasks={("arc_easy", "acc"): {"score": 0.44, "score_low": 0.41, "score_high": 0.47}},
    costs={"candidates": {"seconds": 143.4, "tokens": 61210} | PLANNED, "judged_scores": {"seconds": 61.0}},
    links={"MLflow run": "http://127.0.0.1:5000/#/runs/1"},
)
REFUSED = Rule("wins against the champion", False, "win rate 53.1%; more than 55.0% needed")
RULES = (Rule("judges as well", True, "71.9% after 72.4%"), Rule("not measured", None, "switched off"), REFUSED)
SETTINGS = Settings(
    project="demo",
    base_model="someone/base-model",
    evaluation=EvaluationSettings.model_validate(
        {
            "bootstrap_samples": 100,
            "arbiters": [{"model": "verifiers"}, {"model": "self", "method": "scores", "weight": 2.0}],
        }
    ),
)


def measured(name: str, text: str = "", **changes: Any) -> Assessment:
    """Return a model's assessment: the newer, the better; `text` is put behind every reply."""
    better = list(REPLIES).index(name)
    told: dict[str, Any] = {
        "replies": [reply + text for reply in REPLIES[name]],
        "loops": [better < 2, False, False, False],
        "closed": [1.0] * (better + 1) + [0.0] * (5 - better),
        "followed": [min(better, 2), 1, 0],
        "scores": [(4.0, 2.0), (3.0, 3.0), (5.0, 1.0)],
        "nats": [2.5, 2.0 + 0.1 * better],
    }
    return assessed(name, digest=name, **(told | changes))


def make_project(root: Path, text: str = "", other: str = OTHER, rules: Sequence[Rule] = RULES) -> ProjectStore:
    """Write two iterations' tables: M2 was promoted, M3 was not; `text` is put behind everything that was written."""
    store = ProjectStore(root, root)
    for name, parent in ((SFT_BASELINE, "someone/base-model"), ("M1", SFT_BASELINE), ("M2", "M1"), ("M3", "M2")):
        folder = store.model_folder(name)
        folder.mkdir(parents=True)
        (folder / "weights").write_text(name)
        made = {"dpo": {}, "pairs": 1, "iteration": int(name[1]) - 1} if name in ("M2", "M3") else {}
        write_marker(folder, name, store.checkpoint(parent).digest if "/" not in parent else parent, made)
    first = pd.DataFrame([row for name in (BASE, SFT_BASELINE) for row in _verdicts(name)], columns=WIN_RATES.columns)
    write_table(first, WIN_RATES, store.table_path("seed_evaluation"))
    for number in (1, 2):
        write_iteration(store, number, text, other)
        promoted, name = number == 1, f"M{number + 1}"
        told = [
            replace(rule, explanation=rule.explanation + text) for rule in rules if not promoted or rule is not REFUSED
        ]
        decision = Decision(name, store.checkpoint(name).digest, f"M{number}", promoted, tuple(told))
        store.decision_path(number).parent.mkdir(exist_ok=True)
        write_decision(decision, store.decision_path(number))
    return store


def write_iteration(store: ProjectStore, number: int, text: str, other: str) -> None:
    """Write the tables of an iteration."""

    def write(schema: pa.DataFrameSchema, asset: str, rows: list[tuple[Any, ...]]) -> None:
        path = store.table_path(asset, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        # What was drawn is in no report.
        told = [name for name in schema.columns if not name.endswith("token_ids")]
        drawn = dict.fromkeys(set(schema.columns) - set(told))
        table = pd.DataFrame(rows, columns=told).assign(**drawn)
        write_table(table[list(schema.columns)], schema, path)

    met = [BASE, SFT_BASELINE, f"M{number}", other]
    write(WIN_RATES, "win_rates", [row for opponent in met for row in _verdicts(opponent)])
    monitors = [("kl", True, 0.1, 1.0, "close by" + text), ("tie_rate", number == 1, 0.1, 0.2, "12.0% tied" + text)]
    write(MONITORS, "collapse_monitors", [*monitors, ("variety", None, None, 0.1, "not measured" + text)])
    write(
        GENERATED_PROMPTS,
        "generated_prompts",
        [
            ("p0", "Plan a trip." + text, "few_shot", 0, "", "", 0.1, 3),
            ("p1", "Plan a trip. Use no commas." + text, "constrain", 1, "p0", "", 0.6, 6),
        ],
    )
    refused = [(0, "not_novel", "Write a poem." + text), (1, "too_long", ""), (2, "not_novel", "Write again." + text)]
    write(REFUSED_PROMPTS, "refused_prompts", refused)
    scored = [
        (f"p{n // 2}", n % 2, "Sum?" + text, f"Sum {n}.", 1, "stop", "", "M1", score, 1, 0, None, None, None, None, "")
        for n, score in enumerate((4.3, 1.9, 3.0, 3.0, None, 2.0))
    ]
    write(JUDGED_SCORES, "judged_scores", scored)
    pair = (
        "p0",
        "Sum?" + text,
        "best_worst",
        0,
        0,
        0,
        1,
        "Four." + text,
        "Five." + text,
        "stop",
        "stop",
        4.3,
        1.9,
        2.4,
        None,
        None,
        "",
        "M1",
    )
    write(PREFERENCE_PAIRS, "preference_pairs", [pair])


def _verdicts(opponent: str) -> list[tuple[Any, ...]]:
    rows = []
    for prompt, said in enumerate(OPINIONS):
        preference = sum(said) / 2
        opinions = [{"juror": f"juror {n}", "weight": 1.0, "preference": value} for n, value in enumerate(said)]
        verdict = "win" if preference > 0 else "loss" if preference < 0 else "tie"
        rows += [(f"e{prompt}", opponent, order, verdict, preference, json.dumps(opinions)) for order in ORDERS]
    return rows


def iterations_of(
    store: ProjectStore,
    text: str = "",
    other: str = OTHER,
    settings: Settings = SETTINGS,
    around: Surroundings = AROUND,
    **changes: Any,
) -> list[Iteration]:
    """Return both iterations of a project; `changes` are of everything that was measured of each model."""
    found = {name: measured(name, text, **changes) for name in REPLIES}
    answers = found["M1"].evaluation_replies().assign(model=other)
    return [Iteration(settings, store, number, found, {other: answers}, around) for number in (1, 2)]


def reading_of(it: Iteration) -> Reading:
    """Return the replies of an iteration's model beside the champion's."""
    names = [it.decision.champion, it.model]
    return read_replies({name: it.found[name] for name in names}, {}, names[0], {}, "")
