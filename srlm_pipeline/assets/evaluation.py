"""Measuring: head to head against the SFT baseline and the previous model, judge accuracy, promotion, report."""

from dataclasses import dataclass, replace
from typing import Any

import dagster as dg
import pandas as pd

from srlm_pipeline.assets.automation import newest_materialization
from srlm_pipeline.assets.common import Stopwatch, check, mlflow_link, srlm_asset, table_result
from srlm_pipeline.assets.seed import M1, seed_model, sft_baseline
from srlm_pipeline.assets.self_instruction import policy
from srlm_pipeline.assets.training import iteration_model
from srlm_pipeline.evaluation.head_to_head import Arbiter, HeadToHead, summarise
from srlm_pipeline.evaluation.judge_accuracy import measure_judge
from srlm_pipeline.evaluation.measuring import (
    arbiter_agreement,
    evaluation_replies,
    judge_ranked_replies,
    match,
    open_arbiter,
)
from srlm_pipeline.evaluation.promotion import ModelFigures, decide_promotion
from srlm_pipeline.evaluation.text_measures import describe_replies
from srlm_pipeline.files import replacing_file
from srlm_pipeline.planning.plan import Plan, StageTime, compare, plan_path, read_record
from srlm_pipeline.prompting.filters import NoveltyIndex
from srlm_pipeline.report import IterationFacts, iteration_markdown
from srlm_pipeline.resources.project import ProjectResource
from srlm_pipeline.store import SFT_BASELINE, iteration_number, model_name, partition_key
from srlm_pipeline.tables import JUDGE_ACCURACY, read_table

BASELINE, PREVIOUS = "baseline", "previous"
OVERLAP_ROUGE_L = 0.7
LENGTH_GROWTH_WARNING = 1.3
REPLIES_IN_REPORT = 6


@srlm_asset(
    "judge",
    "evaluation",
    "seed",
    group="seed",
    kinds={"torch", "mlflow"},
    deps=[sft_baseline, seed_model],
    check_specs=[
        dg.AssetCheckSpec("evaluation_prompt_overlap", asset="seed_evaluation"),
        dg.AssetCheckSpec("arbiter_agrees_with_humans", asset="seed_evaluation"),
    ],
)
def seed_evaluation(
    context: dg.AssetExecutionContext,
    project: ProjectResource,
    ift_dataset: pd.DataFrame,
    ranked_replies: pd.DataFrame,
    evaluation_prompts: pd.DataFrame,
) -> dg.MaterializeResult[pd.DataFrame]:
    """Where everything starts: base model, SFT baseline and M1 as judges, M1 against the baseline, the arbiter."""
    settings, store = project.settings, project.store
    progress = project.progress(context)
    watch = Stopwatch()
    held_out = ranked_replies[ranked_replies["split"] == "held_out"]
    models = [store.base_checkpoint(settings), store.checkpoint(SFT_BASELINE), store.checkpoint(M1)]
    metadata: dict[str, Any] = {}
    tables: list[pd.DataFrame] = []
    with project.tracked(context, ["judge", "evaluation"]) as run:
        for checkpoint in models:
            judged = judge_ranked_replies(checkpoint, held_out, settings, store, project.engine, progress)
            tables.append(judged)
            accuracy = measure_judge(judged)
            run.metrics({f"judge_of_{checkpoint.name}/{k}": v for k, v in accuracy.metrics().items()})
            metadata |= {f"{checkpoint.name}_{k}": v for k, v in accuracy.metrics().items()}
            if checkpoint.name == M1:
                run.curve(judge_metrics(accuracy.metrics()), 0)
        replies = _replies(context, project, [M1, SFT_BASELINE], evaluation_prompts)
        arbiter = open_arbiter(settings, store, project.engine)
        agreement = arbiter_agreement(arbiter, held_out, progress, settings.evaluation.tie_margin)
        run.metrics({f"arbiter/{k}": v for k, v in agreement.items()})
        metadata |= {f"arbiter_{k}": v for k, v in agreement.items()}
        result = _match(context, project, replies[M1], replies[SFT_BASELINE], SFT_BASELINE, arbiter)
        run.curve(win_metrics(BASELINE, result.outcome.metrics()), 0)
        run.curve({"length/mean": result.description["length_mean"]}, 0)
        metadata |= {f"M1_vs_baseline_{k}": v for k, v in result.outcome.metrics().items()}
        run.metrics({"seconds": watch.seconds})
    trained_on = NoveltyIndex([*ift_dataset["prompt"], *ranked_replies["prompt"].unique()])
    overlapping = [p for p in evaluation_prompts["prompt"] if trained_on.nearest(p) >= OVERLAP_ROUGE_L]
    checks = [
        check(
            "evaluation_prompt_overlap",
            not overlapping,
            f"{len(overlapping)} evaluation prompts are too like training prompts"
            + (f", e.g. {overlapping[0]!r}" if overlapping else ""),
        ),
        check(
            "arbiter_agrees_with_humans",
            agreement["agreement"] > 0.5,
            f"the arbiter agrees with {agreement['agreement']:.1%} of the human preferences that it decides",
            agreement=agreement["agreement"],
        ),
    ]
    metadata |= {"seconds": round(watch.seconds, 2), **mlflow_link(run.url)}
    return table_result(pd.concat(tables, ignore_index=True), metadata, checks)


@srlm_asset(
    "judge",
    "seed",
    group="iteration",
    kinds={"torch", "pandas", "mlflow"},
    per_iteration=True,
    deps=[iteration_model],
    check_specs=[dg.AssetCheckSpec("beats_length", asset="judge_accuracy")],
)
def judge_accuracy(
    context: dg.AssetExecutionContext, project: ProjectResource, ranked_replies: pd.DataFrame
) -> dg.MaterializeResult[pd.DataFrame]:
    """How well M_{t+1} judges: its scores of held-out replies against the human ranking."""
    settings, store = project.settings, project.store
    iteration = iteration_number(context.partition_key)
    watch = Stopwatch()
    held_out = ranked_replies[ranked_replies["split"] == "held_out"]
    with project.tracked(context, ["judge"]) as run:
        table = judge_ranked_replies(
            store.checkpoint(model_name(iteration + 1)),
            held_out,
            settings,
            store,
            project.engine,
            project.progress(context),
        )
        accuracy = measure_judge(table)
        run.curve(judge_metrics(accuracy.metrics()), iteration)
    balanced = accuracy.length_balanced_accuracy
    checks = [
        check(
            "beats_length",
            balanced is not None and balanced > 0.5,
            "length-balanced accuracy "
            + (
                f"{balanced:.1%}, where preferring the longer reply reaches 50 %"
                if balanced
                else "could not be measured"
            ),
        )
    ]
    metadata = {**accuracy.metrics(), "seconds": round(watch.seconds, 2), **mlflow_link(run.url)}
    return table_result(table, metadata, checks)


@srlm_asset(
    "evaluation",
    "judge.rubric",
    "seed",
    group="iteration",
    kinds={"torch", "pandas", "mlflow"},
    per_iteration=True,
    deps=[iteration_model, policy, sft_baseline, seed_model],
    check_specs=[dg.AssetCheckSpec("length_growth", asset="win_rates")],
)
def win_rates(
    context: dg.AssetExecutionContext, project: ProjectResource, evaluation_prompts: pd.DataFrame
) -> dg.MaterializeResult[pd.DataFrame]:
    """M_{t+1} head to head against the SFT baseline and against M_t, each prompt in both orders, M1 as arbiter."""
    iteration = iteration_number(context.partition_key)
    name, previous = model_name(iteration + 1), model_name(iteration)
    watch = Stopwatch()
    metadata: dict[str, Any] = {}
    tables: list[pd.DataFrame] = []
    with project.tracked(context, ["evaluation"]) as run:
        replies = _replies(context, project, [name, SFT_BASELINE, previous], evaluation_prompts)
        arbiter = open_arbiter(project.settings, project.store, project.engine)
        for label, opponent in ((BASELINE, SFT_BASELINE), (PREVIOUS, previous)):
            result = _match(context, project, replies[name], replies[opponent], opponent, arbiter)
            tables.append(result.table)
            run.curve(win_metrics(label, result.outcome.metrics()), iteration)
            metadata |= {f"win_rate_vs_{label}": result.outcome.win_rate}
            metadata |= {f"vs_{label}_{k}": v for k, v in result.outcome.metrics().items() if k != "win_rate"}
            growth = result.description["length_mean"] / max(result.opponent_description["length_mean"], 1e-9)
            metadata |= {f"length_vs_{label}": growth}
        run.curve({f"length/{k.removeprefix('length_')}": v for k, v in result.description.items()}, iteration)
    metadata |= result.description
    checks = [
        check(
            "length_growth",
            growth <= LENGTH_GROWTH_WARNING,
            f"replies are {growth:.2f} times as long as {previous}'s",
            growth=growth,
        )
    ]
    metadata |= {"seconds": round(watch.seconds, 2), **mlflow_link(run.url)}
    return table_result(pd.concat(tables, ignore_index=True), metadata, checks)


@srlm_asset(
    "promotion", group="iteration", kinds={"mlflow"}, compute=False, per_iteration=True, deps=[iteration_model, policy]
)
def promotion(
    context: dg.AssetExecutionContext,
    project: ProjectResource,
    win_rates: pd.DataFrame,
    judge_accuracy: pd.DataFrame,
    seed_evaluation: pd.DataFrame,
    evaluation_prompts: pd.DataFrame,
) -> dg.MaterializeResult:
    """Registers M_{t+1} in MLflow and moves the alias `champion` to it, if every rule is met."""
    from srlm_pipeline.tracking import Tracker

    settings, store = project.settings, project.store
    iteration = iteration_number(context.partition_key)
    facts = _facts(context, project, win_rates, judge_accuracy, seed_evaluation, evaluation_prompts)
    with project.tracked(context, ["promotion"]) as run:
        checkpoint = store.checkpoint(model_name(iteration + 1))
        version = Tracker(settings).register(
            settings.project,
            checkpoint.path,
            run.run_id,
            {
                "model": checkpoint.name,
                "digest": checkpoint.digest,
                "iteration": str(iteration),
                "verdict": "promoted" if facts.promoted else "rejected",
            },
            champion=facts.promoted,
        )
        run.curve({"promotion/promoted": float(facts.promoted)}, iteration)
    lines = [f"- {'passed' if r.passed else 'FAILED'}: {r.name}: {r.explanation}" for r in facts.rules]
    return dg.MaterializeResult(
        metadata={
            "promoted": facts.promoted,
            "rules": dg.MetadataValue.md("\n".join(lines)),
            "registered_version": version,
            **mlflow_link(run.url),
        },
        data_version=dg.DataVersion(f"{checkpoint.digest}-{facts.promoted}"),
    )


@srlm_asset(
    group="iteration",
    kinds={"markdown", "mlflow"},
    compute=False,
    per_iteration=True,
    deps=[promotion, sft_baseline, policy],
)
def iteration_report(
    context: dg.AssetExecutionContext,
    project: ProjectResource,
    win_rates: pd.DataFrame,
    judge_accuracy: pd.DataFrame,
    seed_evaluation: pd.DataFrame,
    evaluation_prompts: pd.DataFrame,
    preference_pairs: pd.DataFrame,
) -> dg.MaterializeResult:
    """One page for the morning: the verdict, win rates, judge accuracy, replies side by side."""
    facts = _facts(context, project, win_rates, judge_accuracy, seed_evaluation, evaluation_prompts)
    facts = replace(
        facts,
        figures={**facts.figures, "preference pairs": float(len(preference_pairs))},
        times=_times(context, project),
    )
    text = iteration_markdown(facts)
    path = project.store.root / "reports" / f"{context.partition_key}.md"
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    with project.tracked(context, []) as run:
        run.text(text, "report.md")
    return dg.MaterializeResult(
        metadata={
            "report": dg.MetadataValue.md(text),
            "path": dg.MetadataValue.path(str(path)),
            "win_rate_vs_baseline": facts.matches[SFT_BASELINE].win_rate,
            "win_rate_vs_previous": facts.matches[facts.previous].win_rate,
            **mlflow_link(run.url),
        }
    )


def _times(context: dg.AssetExecutionContext, project: ProjectResource) -> list[StageTime]:
    """Put what was planned beside what was needed; the seed's stages in the first report only."""
    plan = read_record(Plan, plan_path(project.store.root, project.settings))
    if plan is None:
        return []
    first = iteration_number(context.partition_key) == 1
    partitions = {
        stage.stage: None if stage.phase == "seed" else context.partition_key
        for stage in plan.stages
        if first or stage.phase == "iteration"
    }
    return compare(plan, {stage: _seconds(context.instance, stage, key) for stage, key in partitions.items()})


def _seconds(instance: dg.DagsterInstance, asset: str, partition: str | None) -> float | None:
    newest = newest_materialization(instance, dg.AssetKey(asset), partition)
    event = newest.asset_materialization if newest else None
    return float(event.metadata["seconds"].value) if event and "seconds" in event.metadata else None


def judge_metrics(figures: dict[str, float]) -> dict[str, float]:
    """Return judge figures under their names in MLflow."""
    return {f"judge/{name}": value for name, value in figures.items()}


def win_metrics(label: str, figures: dict[str, float]) -> dict[str, float]:
    """Return a match's figures under their names in MLflow: ``win_rate/vs_baseline``, ``..._low``, ..."""
    short = {"win_rate": ""}
    return {f"win_rate/vs_{label}{short.get(name, '_' + name)}": value for name, value in figures.items()}


@dataclass(frozen=True)
class _Match:
    """A match's table and result, and what both sides' replies look like."""

    table: pd.DataFrame
    outcome: HeadToHead
    description: dict[str, float]
    opponent_description: dict[str, float]


def _replies(
    context: dg.AssetExecutionContext, project: ProjectResource, names: list[str], prompts: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """Return each model's replies to the evaluation prompts; those in its journal need no model."""
    settings, store, progress = project.settings, project.store, project.progress(context)
    return {
        name: evaluation_replies(store.checkpoint(name), prompts, settings, store, project.engine, progress)
        for name in names
    }


def _match(
    context: dg.AssetExecutionContext,
    project: ProjectResource,
    mine: pd.DataFrame,
    theirs: pd.DataFrame,
    opponent: str,
    arbiter: Arbiter,
) -> _Match:
    table, outcome = match(mine, theirs, opponent, arbiter, project.settings, project.progress(context))
    described = [describe_replies(side["reply"].tolist(), side["n_tokens"].tolist()) for side in (mine, theirs)]
    return _Match(table, outcome, *described)


def _facts(
    context: dg.AssetExecutionContext,
    project: ProjectResource,
    win_rates: pd.DataFrame,
    judge_accuracy: pd.DataFrame,
    seed_evaluation: pd.DataFrame,
    evaluation_prompts: pd.DataFrame,
) -> IterationFacts:
    """Gather what promotion and report look at. Replies come from the journals; no model is loaded."""
    settings, store = project.settings, project.store
    iteration = iteration_number(context.partition_key)
    name, previous = model_name(iteration + 1), model_name(iteration)
    matches = {
        str(opponent): summarise(rows, resamples=settings.evaluation.bootstrap_samples)
        for opponent, rows in win_rates.groupby("opponent", sort=False)
    }
    judged = [seed_evaluation]
    if iteration > 1:
        earlier = store.tables / "judge_accuracy" / f"{partition_key(iteration - 1)}.parquet"
        judged.append(read_table(JUDGE_ACCURACY, earlier))
    judged.append(judge_accuracy)
    judges = {str(model): measure_judge(rows) for table in judged for model, rows in table.groupby("model", sort=False)}
    sides = {BASELINE: SFT_BASELINE, PREVIOUS: previous, "model": name}
    written = _replies(context, project, list(sides.values()), evaluation_prompts)
    replies = {label: written[side] for label, side in sides.items()}
    described = {
        label: describe_replies(table["reply"].tolist(), table["n_tokens"].tolist()) for label, table in replies.items()
    }
    rules = decide_promotion(
        ModelFigures(
            win_rate=matches[previous].win_rate,
            judge_accuracy=judges[name].pairwise_accuracy,
            previous_judge_accuracy=judges[previous].pairwise_accuracy,
            length_mean=described["model"]["length_mean"],
            previous_length_mean=described[PREVIOUS]["length_mean"],
        ),
        settings.promotion,
    )
    shown = pd.DataFrame({"prompt": evaluation_prompts["prompt"], **{k: v["reply"] for k, v in replies.items()}})
    return IterationFacts(
        project=settings.project,
        iteration=iteration,
        model=name,
        previous=previous,
        arbiter=f"{M1} (`evaluation.arbiter: {settings.evaluation.arbiter}`)",
        matches=matches,
        judges=judges,
        promoted=all(rule.passed for rule in rules),
        rules=rules,
        replies=shown.head(REPLIES_IN_REPORT),
        figures={f"{k} ({label})": v for label, d in described.items() for k, v in d.items()},
    )
