"""Reports: one page per iteration and one over all of them, self-contained, linked from Dagster and MLflow."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pandas as pd

from srlm_pipeline.assets.assessment import HARNESS, assessment, seed_assessment
from srlm_pipeline.assets.automation import metadata_of
from srlm_pipeline.assets.entering import policy
from srlm_pipeline.assets.evaluation import all_met, comparable_iterations, seed_evaluation, win_rates
from srlm_pipeline.assets.monitoring import collapse_monitors
from srlm_pipeline.assets.promotion import promotion
from srlm_pipeline.assets.seed import sft_baseline
from srlm_pipeline.assets.self_instruction import preference_pairs
from srlm_pipeline.assets.stage import Stage, iterations, srlm_asset
from srlm_pipeline.evaluation.champion import standing_decision
from srlm_pipeline.planning.plan import Plan, plan_path, read_record
from srlm_pipeline.reads import Reads
from srlm_pipeline.reporting.candidates import candidates_html
from srlm_pipeline.reporting.framing import framed, with_pages
from srlm_pipeline.reporting.iteration import Iteration, Surroundings
from srlm_pipeline.reporting.overview import overview_html
from srlm_pipeline.reporting.pages import (
    OVERVIEW,
    Figures,
    candidates_name,
    reading_name,
    report_name,
    write_report,
)
from srlm_pipeline.reporting.reading import read_iteration, reading_html
from srlm_pipeline.reporting.report import in_plain_words, iteration_pages, verdict
from srlm_pipeline.reporting.words import Cell
from srlm_pipeline.store import partition_key

SEED_STAGES = ("sft_baseline", "eft_dataset", "seed_model", "seed_assessment", "seed_evaluation")
ITERATION_STAGES = (
    "generated_prompts",
    "candidates",
    "judged_scores",
    "preference_pairs",
    "iteration_model",
    "assessment",
    "win_rates",
    "collapse_monitors",
    "promotion",
)
REPORT, READING, CANDIDATES, ALL_ITERATIONS = "report.html", "replies.html", "candidates.html", "all_iterations.html"


@srlm_asset(
    Reads(),
    group="iteration",
    kinds={"html", "mlflow"},
    compute=False,
    per_iteration=True,
    deps=[
        promotion,
        sft_baseline,
        policy,
        preference_pairs,
        win_rates,
        assessment,
        seed_assessment,
        seed_evaluation,
        collapse_monitors,
    ],
)
def iteration_report(stage: Stage, evaluation_prompts: pd.DataFrame) -> dg.MaterializeResult:
    """The page for the morning: the verdict and its reasons, win rates, judge accuracy, replies side by side, costs."""
    settings, store, iteration = stage.settings, stage.store, stage.iteration
    decided = [
        number
        for number in range(1, len(iterations.get_partition_keys()) + 1)
        if standing_decision(store, number) is not None
    ]
    shown = comparable_iterations(stage, iteration, decided)
    found, others = all_met(stage, shown, evaluation_prompts)
    folder = store.root / "reports"
    around = _surroundings(stage)
    made = {number: Iteration(settings, store, number, found, others, around) for number in shown}
    it = made[iteration]
    reading = read_iteration(it)
    page, summary = iteration_pages(it, reading)
    title = f"Iteration {iteration}: {it.model}"
    replies = reading_html(reading, settings.project, title, around.made_at, report_name(iteration))
    seconds = {number: _seconds(stage.context.instance, partition_key(number)) for number in shown}
    pages = {
        report_name(iteration): (REPORT, page),
        reading_name(iteration): (READING, replies),
        candidates_name(iteration): (CANDIDATES, candidates_html(it, report_name(iteration))),
        OVERVIEW: (ALL_ITERATIONS, overview_html(list(made.values()), seconds)),
    }
    artifacts = {name: artifact for name, (artifact, _) in pages.items()}
    linked = {name: html for name, (_, html) in pages.items()}
    for name, (artifact, html) in pages.items():
        write_report(folder / name, html)
        content = with_pages(name, linked) if artifact == REPORT else framed(html, artifacts)
        stage.run.text(content, artifact)
        stage.run.text(content, artifact, of_project=True)
    stage.run.project_settings(settings)
    # What the terminal shows.
    write_report((folder / report_name(iteration)).with_suffix(".md"), summary)
    return dg.MaterializeResult(
        metadata={
            "in_plain_words": in_plain_words(it),
            "verdict": verdict(it.decision),
            # A browser does not open a file from a page of a server, but MLflow shows the artefact.
            "report": dg.MetadataValue.url(stage.run.artifact_url(REPORT)),
            "replies": dg.MetadataValue.url(stage.run.artifact_url(READING)),
            "candidates": dg.MetadataValue.url(stage.run.artifact_url(CANDIDATES)),
            "all_iterations": dg.MetadataValue.url(stage.run.artifact_url(ALL_ITERATIONS)),
            "path": dg.MetadataValue.path(str(folder / report_name(iteration))),
            "summary": dg.MetadataValue.md(summary),
            # Under names that stay the same, so that Dagster draws them over the iterations.
            **{
                f"win_rate_vs_{role}": it.matches[name].win_rate
                for name, opponent in it.opponents.items()
                for role in opponent.roles
                if name in it.matches
            },
        }
    )


def _surroundings(stage: Stage) -> Surroundings:
    """Gather what Dagster has recorded of the iteration's stages."""
    instance, key = stage.context.instance, stage.partition
    seed, wins = metadata_of(instance, "seed_evaluation", None), metadata_of(instance, "win_rates", key)
    agreement = {k.removeprefix("arbiter_"): v for k, v in seed.items() if k.startswith("arbiter_")}
    return Surroundings(
        made_at=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        agreement=agreement,
        position_bias=wins.get("position_bias") or {},
        tasks=task_scores(metadata_of(instance, "assessment", key)),
        costs=_costs(stage),
        links={"MLflow run": stage.run.url},
    )


def task_scores(recorded: Mapping[str, Any]) -> dict[Cell, Figures]:
    """Return by task and metric what lm-evaluation-harness gave, with 95 % of a normal distribution around it."""
    found: dict[Cell, Figures] = {}
    for key, score in recorded.items():
        if not key.startswith(HARNESS) or "_stderr" in key:
            continue
        task, metric, *way = key.removeprefix(HARNESS).split("/")
        reach = 1.96 * float(recorded.get(HARNESS + "/".join([task, f"{metric}_stderr", *way]), "nan"))
        ends = {"score_low": score - reach, "score_high": score + reach}
        found[task, "/".join([metric, *way])] = {"score": score, **ends}
    return found


def _costs(stage: Stage) -> dict[str, Figures]:
    """Put what was planned beside what was needed; the seed's stages in the first report only."""
    plan = read_record(Plan, plan_path(stage.store.root, stage.settings))
    stages: dict[str, str | None] = dict.fromkeys(SEED_STAGES) if stage.iteration == 1 else {}
    stages |= dict.fromkeys(ITERATION_STAGES, stage.partition)
    costs: dict[str, dict[str, Any]] = {}
    for name, key in stages.items():
        recorded = metadata_of(stage.context.instance, name, key)
        costs[name] = {"seconds": recorded.get("seconds"), "tokens": recorded.get("tokens")}
    for planned in plan.stages if plan else ():
        if planned.stage in costs:
            expected = {"planned": planned.seconds.likely, "tokens_planned": planned.tokens_written}
            ends = {"planned_low": planned.seconds.low, "planned_high": planned.seconds.high}
            costs[planned.stage] |= expected | ends | {"read_planned": planned.tokens_read}
    return dict(costs)


def _seconds(instance: dg.DagsterInstance, partition: str) -> float:
    return sum(float(metadata_of(instance, stage, partition).get("seconds") or 0.0) for stage in ITERATION_STAGES)
