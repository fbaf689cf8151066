"""Measuring: judge accuracy, matches against whoever came before, and instructions that a program checks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from srlm_pipeline.assets.common import Stopwatch, check, iterations, mlflow_link, srlm_asset, table_result
from srlm_pipeline.assets.seed import M1, seed_model, sft_baseline
from srlm_pipeline.assets.self_instruction import policy
from srlm_pipeline.assets.training import iteration_model
from srlm_pipeline.evaluation.champion import champion_before
from srlm_pipeline.evaluation.evidence import verifiable_difference
from srlm_pipeline.evaluation.harness import run_harness
from srlm_pipeline.evaluation.judge_accuracy import measure_judge
from srlm_pipeline.evaluation.matches import length_ratio
from srlm_pipeline.evaluation.measuring import (
    arbiter_agreement,
    evaluation_replies,
    judge_ranked_replies,
    match,
)
from srlm_pipeline.evaluation.opening import open_arbiter
from srlm_pipeline.evaluation.opponents import opponents_of
from srlm_pipeline.evaluation.other_answers import OtherAnswers, read_other_answers
from srlm_pipeline.evaluation.text_measures import describe_replies
from srlm_pipeline.evaluation.verifiable.asking import verifiable_replies
from srlm_pipeline.evaluation.verifiable.prompts import load_verifiable, verifiable_digest
from srlm_pipeline.evaluation.verifiable.scoring import measure_verifiable
from srlm_pipeline.files import digest_existing
from srlm_pipeline.models.loading import choose_device
from srlm_pipeline.prompting.filters import NoveltyIndex
from srlm_pipeline.resources.project import ProjectResource, definition_settings
from srlm_pipeline.store import SFT_BASELINE, iteration_number, model_name
from srlm_pipeline.tables import VERIFIABLE

OVERLAP_ROUGE_L = 0.7
# What scores of lm-evaluation-harness are called in metadata.
HARNESS = "harness_"
# Edited files make stale what was measured with them.
_CHECKABLE = verifiable_digest(definition_settings().evaluation.verifiable)
_OTHER_ANSWERS = digest_existing(definition_settings().evaluation.other_answers)


@srlm_asset(
    "judge",
    "evaluation",
    "seed",
    group="seed",
    kinds={"torch", "mlflow"},
    deps=[sft_baseline, seed_model],
    versions=(_CHECKABLE,),
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
    from srlm_pipeline.tracking import Tracker

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
        replies = replies_of(context, project, [M1, SFT_BASELINE], evaluation_prompts)
        prompts = load_verifiable(settings.evaluation.verifiable)
        for name in (SFT_BASELINE, M1) if prompts else ():
            table = verifiable_replies(store.checkpoint(name), prompts, settings, store, project.engine, progress)
            figures = measure_verifiable(table, settings.evaluation.bootstrap_samples).metrics()
            metadata |= {f"{name}_verifiable_{k}": v for k, v in figures.items()}
            if name == M1:
                run.curve({f"verifiable/{k}": v for k, v in figures.items()}, 0)
        # Last, for its model stays in memory.
        arbiter = open_arbiter(settings, store, project.engine)
        agreement = arbiter_agreement(arbiter, held_out, progress, settings.evaluation.tie_margin)
        run.metrics({f"arbiter/{k}": v for k, v in agreement.items()})
        metadata |= {f"arbiter_{k}": v for k, v in agreement.items()}
        _, outcome = match(replies[M1], replies[SFT_BASELINE], SFT_BASELINE, arbiter, settings, progress)
        run.curve(win_metrics("baseline", outcome.metrics()), 0)
        run.curve({"length/mean": float(replies[M1]["reply"].str.len().mean())}, 0)
        metadata |= {f"M1_vs_baseline_{k}": v for k, v in outcome.metrics().items()}
        first = store.checkpoint(M1)
        Tracker(settings).register(
            settings.project,
            store.keep(first),
            run.run_id,
            {"model": M1, "digest": first.digest, "iteration": "0", "verdict": "seed model"},
            # Until an iteration's model is promoted.
            champion=champion_before(store, len(iterations.get_partition_keys()) + 1) == M1,
        )
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
    versions=(_OTHER_ANSWERS,),
)
def win_rates(
    context: dg.AssetExecutionContext, project: ProjectResource, evaluation_prompts: pd.DataFrame
) -> dg.MaterializeResult[pd.DataFrame]:
    """M_{t+1} head to head against the SFT baseline, M_t, the champion and other models' answers, in both orders."""
    settings, store = project.settings, project.store
    iteration = iteration_number(context.partition_key)
    name, opponents = model_name(iteration + 1), opponents_of(store, iteration)
    watch = Stopwatch()
    metadata: dict[str, Any] = {}
    tables: list[pd.DataFrame] = []
    with project.tracked(context, ["evaluation"]) as run:
        replies = replies_of(context, project, [name, *(o.name for o in opponents)], evaluation_prompts)
        mine = replies[name]
        arbiter = open_arbiter(settings, store, project.engine)
        progress = project.progress(context)
        position_bias: dict[str, float] = {}
        for opponent in opponents:
            table, outcome = match(mine, replies[opponent.name], opponent.name, arbiter, settings, progress)
            tables.append(table)
            position_bias[opponent.name] = outcome.position_bias
            growth = length_ratio(mine, replies[opponent.name])
            for role in opponent.roles:
                run.curve(win_metrics(role, outcome.metrics()), iteration)
                metadata |= {f"win_rate_vs_{role}": outcome.win_rate, f"length_vs_{role}": growth}
                metadata |= {f"vs_{role}_{k}": v for k, v in outcome.metrics().items() if k != "win_rate"}
        for other in _other_answers(project, evaluation_prompts):
            table, outcome = match(other.met_by(mine), other.replies, other.model, arbiter, settings, progress)
            tables.append(table)
            position_bias[other.model] = outcome.position_bias
            run.curve(win_metrics(other.model, outcome.metrics()), iteration)
            metadata |= {f"vs_{other.model}_{k}": v for k, v in outcome.metrics().items()}
        description = describe_replies(mine["reply"].tolist(), mine["n_tokens"].tolist())
        run.curve({f"length/{k.removeprefix('length_')}": v for k, v in description.items()}, iteration)
    metadata |= {
        "opponents": {o.name: o.description for o in opponents},
        "position_bias": position_bias,
        **description,
        "seconds": round(watch.seconds, 2),
        **mlflow_link(run.url),
    }
    return table_result(pd.concat(tables, ignore_index=True), metadata)


@srlm_asset(
    "evaluation",
    "seed",
    group="iteration",
    kinds={"torch", "pandas", "mlflow"},
    per_iteration=True,
    deps=[iteration_model, policy, sft_baseline, seed_model],
    versions=(_CHECKABLE,),
)
def verifiable_scores(
    context: dg.AssetExecutionContext, project: ProjectResource
) -> dg.MaterializeResult[pd.DataFrame]:
    """Instructions that a program checks (IFEval): M_{t+1} beside the champion and the SFT baseline, no judge."""
    settings, store = project.settings, project.store
    iteration = iteration_number(context.partition_key)
    name, watch = model_name(iteration + 1), Stopwatch()
    compared = dict.fromkeys([name, *(o.name for o in opponents_of(store, iteration))])
    metadata: dict[str, Any] = {}
    tables: list[pd.DataFrame] = []
    with project.tracked(context, ["evaluation"]) as run:
        prompts = load_verifiable(settings.evaluation.verifiable)
        for model in compared if prompts else ():
            table = verifiable_replies(
                store.checkpoint(model), prompts, settings, store, project.engine, project.progress(context)
            )
            tables.append(table)
            figures = measure_verifiable(table, settings.evaluation.bootstrap_samples).metrics()
            if model == name:
                run.curve({f"verifiable/{k}": v for k, v in figures.items()}, iteration)
                metadata |= figures
            metadata |= {f"{model}_{k}": v for k, v in figures.items() if k in ("prompt_strict", "instruction_strict")}
        found = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(VERIFIABLE.columns))
        # A champion may have lost step by step what no single step is proved to lose.
        ahead = verifiable_difference(found, name, SFT_BASELINE, settings.evaluation.bootstrap_samples)
        if ahead is not None:
            values = {"": ahead.value, "_low": ahead.low, "_high": ahead.high}
            figures = {f"ahead_of_baseline{ending}": value for ending, value in values.items()}
            run.curve({f"verifiable/{k}": v for k, v in figures.items()}, iteration)
            metadata |= figures
        if settings.evaluation.harness_tasks:
            scores = run_harness(
                store.checkpoint(name).path,
                settings.evaluation.harness_tasks,
                settings.evaluation.harness_limit,
                choose_device(settings.model.device),
                settings.evaluation.batch_size,
            )
            run.curve({f"harness/{k}": v for k, v in scores.items()}, iteration)
            metadata |= {f"{HARNESS}{k}": v for k, v in scores.items()}
    metadata |= {"seconds": round(watch.seconds, 2), **mlflow_link(run.url)}
    return table_result(found, metadata)


def judge_metrics(figures: dict[str, float]) -> dict[str, float]:
    """Return judge figures under their names in MLflow."""
    return {f"judge/{name}": value for name, value in figures.items()}


def win_metrics(label: str, figures: dict[str, float]) -> dict[str, float]:
    """Return a match's figures under their names in MLflow: ``win_rate/vs_baseline``, ``..._low``, ..."""
    short = {"win_rate": ""}
    return {f"win_rate/vs_{label}{short.get(name, '_' + name)}": value for name, value in figures.items()}


def replies_of(
    context: dg.AssetExecutionContext, project: ProjectResource, names: Sequence[str], prompts: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """Return each model's replies to the evaluation prompts; those in its journal need no model."""
    settings, store, progress = project.settings, project.store, project.progress(context)
    return {
        name: evaluation_replies(store.checkpoint(name), prompts, settings, store, project.engine, progress)
        for name in names
    }


def all_replies(
    context: dg.AssetExecutionContext,
    project: ProjectResource,
    iterations: Sequence[int],
    prompts: pd.DataFrame,
) -> dict[str, pd.DataFrame]:
    """Return the replies of the seed's models, of the iterations' models and of all that these met."""
    store = project.store
    met = [o.name for iteration in iterations for o in opponents_of(store, iteration)]
    made = [model_name(iteration + 1) for iteration in iterations]
    replies = replies_of(context, project, list(dict.fromkeys([SFT_BASELINE, M1, *met, *made])), prompts)
    return replies | {other.model: other.replies for other in _other_answers(project, prompts)}


def _other_answers(project: ProjectResource, prompts: pd.DataFrame) -> list[OtherAnswers]:
    """Read other models' answers from their files; lengths in tokens are counted as M1 does."""
    settings, store = project.settings, project.store
    if not settings.evaluation.other_answers:
        return []
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(store.checkpoint(M1).path)
    return [
        answers
        for path in settings.evaluation.other_answers
        for answers in read_other_answers(Path(path), prompts, lambda text: len(tokenizer.encode(text)))
    ]
