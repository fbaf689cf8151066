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
from srlm_pipeline.evaluation.opponents import opponents_of
from srlm_pipeline.planning.plan import Plan, plan_path, read_record
from srlm_pipeline.reads import Reads
from srlm_pipeline.reporting.facts import Estimate, Link, StageCost, TaskFigures
from srlm_pipeline.reporting.gather import (
    OVERVIEW,
    Surroundings,
    gather_iteration,
    gather_overview,
    gather_reading,
    reading_name,
    report_name,
)
from srlm_pipeline.reporting.reading import reading_html
from srlm_pipeline.reporting.render import iteration_html, iteration_verdict, overview_html, write_report
from srlm_pipeline.reporting.summary import iteration_summary
from srlm_pipeline.store import iteration_number, model_name, partition_key

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
REPORT, READING, ALL_ITERATIONS = "report.html", "replies.html", "all_iterations.html"


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
    report = gather_iteration(settings, store, iteration, found, others, around)
    roles = {opponent.name: opponent.roles for opponent in opponents_of(store, iteration)}
    page = iteration_html(report)
    seconds = {number: _seconds(stage.context.instance, partition_key(number)) for number in shown}
    overview = overview_html(gather_overview(settings, store, shown, found, others, around, seconds))
    decision = standing_decision(store, iteration)
    assert decision is not None, "the report needs a decision, and gather_iteration says so"
    reading = reading_html(gather_reading(settings, store, iteration, found, decision, around))
    for name, artifact, html in (
        (report_name(iteration), REPORT, page),
        (reading_name(iteration), READING, reading),
        (OVERVIEW, ALL_ITERATIONS, overview),
    ):
        write_report(folder / name, html)
        stage.run.text(html, artifact)
    summary = iteration_summary(report)
    # What the terminal shows.
    write_report((folder / report_name(iteration)).with_suffix(".md"), summary)
    return dg.MaterializeResult(
        metadata={
            "verdict": iteration_verdict(report),
            # A browser does not open a file from a page of a server, but MLflow shows the artefact.
            "report": dg.MetadataValue.url(stage.run.artifact_url(REPORT)),
            "replies": dg.MetadataValue.url(stage.run.artifact_url(READING)),
            "all_iterations": dg.MetadataValue.url(stage.run.artifact_url(ALL_ITERATIONS)),
            "path": dg.MetadataValue.path(str(folder / report_name(iteration))),
            "summary": dg.MetadataValue.md(summary),
            # Under names that stay the same, so that Dagster draws them over the iterations.
            **{
                f"win_rate_vs_{role}": match.win_rate.value
                for match in report.matches
                for role in roles.get(match.opponent, ())
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
        tasks=task_figures(metadata_of(instance, "assessment", key), model_name(iteration_number(key) + 1)),
        costs=_costs(stage),
        links=(Link("MLflow run", stage.run.url),),
    )


def task_figures(recorded: Mapping[str, Any], model: str) -> tuple[TaskFigures, ...]:
    """Return the scores that lm-evaluation-harness gave, each with 95 % of a normal distribution around it."""
    found = []
    for key, score in recorded.items():
        if not key.startswith(HARNESS) or "_stderr" in key:
            continue
        task, metric, *way = key.removeprefix(HARNESS).split("/")
        reach = 1.96 * float(recorded.get(HARNESS + "/".join([task, f"{metric}_stderr", *way]), "nan"))
        found.append(TaskFigures(task, "/".join([metric, *way]), model, Estimate(score, score - reach, score + reach)))
    return tuple(found)


def _costs(stage: Stage) -> tuple[StageCost, ...]:
    """Put what was planned beside what was needed; the seed's stages in the first report only."""
    plan = read_record(Plan, plan_path(stage.store.root, stage.settings))
    planned = {stage.stage: stage for stage in plan.stages} if plan else {}
    key = stage.partition
    stages: dict[str, str | None] = dict.fromkeys(SEED_STAGES) if iteration_number(key) == 1 else {}
    stages |= dict.fromkeys(ITERATION_STAGES, key)
    costs = []
    for name, partition in stages.items():
        recorded = metadata_of(stage.context.instance, name, partition)
        foreseen = planned.get(name)
        tokens = recorded.get("tokens")
        costs.append(
            StageCost(
                name,
                recorded.get("seconds"),
                Estimate(foreseen.seconds.likely, foreseen.seconds.low, foreseen.seconds.high) if foreseen else None,
                tokens,
                foreseen.tokens_written if foreseen else None,
                None,
                foreseen.tokens_read if foreseen else None,
            )
        )
    return tuple(costs)


def _seconds(instance: dg.DagsterInstance, partition: str) -> float:
    return sum(float(metadata_of(instance, stage, partition).get("seconds") or 0.0) for stage in ITERATION_STAGES)
