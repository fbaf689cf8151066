"""What is known of each model, measured once: replies and what is wrong with them, tasks, instructions, judgements."""

from typing import Any

import dagster as dg
import pandas as pd

from srlm_pipeline.assets.measured import ASSESSED, assessed_contents
from srlm_pipeline.assets.results import check, table_digest, table_result
from srlm_pipeline.assets.seed import M1, base_contents, seed_model, sft_baseline
from srlm_pipeline.assets.stage import Stage, srlm_asset
from srlm_pipeline.assets.training import iteration_model
from srlm_pipeline.evaluation.assessing import assess_and_keep, assessment_metrics, vital_signs
from srlm_pipeline.evaluation.assessment import Assessment, read_assessment, read_assessments, write_assessment
from srlm_pipeline.evaluation.harness import run_harness
from srlm_pipeline.evaluation.judge_accuracy import JudgeAccuracy, measure_judge
from srlm_pipeline.generation.journal import fingerprint
from srlm_pipeline.models.checkpoint import COPY_OF
from srlm_pipeline.models.loading import choose_device
from srlm_pipeline.reads import Reads
from srlm_pipeline.store import BASE, SFT_BASELINE, model_name

# What scores of lm-evaluation-harness are called in metadata.
HARNESS = "harness_"
SEED_MODELS = (BASE, SFT_BASELINE, M1)


@srlm_asset(
    Reads(
        (*ASSESSED, "base_model"), contents=lambda settings: [*assessed_contents(settings), *base_contents(settings)]
    ),
    group="seed",
    kinds={"torch", "pandas", "mlflow"},
    deps=[sft_baseline, seed_model],
)
def seed_assessment(
    stage: Stage, ranked_replies: pd.DataFrame, evaluation_prompts: pd.DataFrame
) -> dg.MaterializeResult[pd.DataFrame]:
    """Base model, SFT baseline and M1, measured without any judge: what each later model must not be worse than."""
    metadata: dict[str, Any] = {}
    found: list[Assessment] = []
    for name in SEED_MODELS:
        found.append(_assess(stage, name, ranked_replies, evaluation_prompts))
        figures = assessment_metrics(found[-1], stage.settings.evaluation.bootstrap_samples)
        stage.run.metrics({f"{name}/{k}": v for k, v in figures.items()})
        metadata |= {f"{name}_{k}": v for k, v in short_names(figures).items()}
        metadata[f"{name}_digest"] = found[-1].digest
        if name == M1:
            stage.curve(figures)
    return _assessed(stage, found, metadata)


@srlm_asset(
    Reads((*ASSESSED, "evaluation.harness_tasks", "evaluation.harness_limit"), contents=assessed_contents),
    group="iteration",
    kinds={"torch", "pandas", "mlflow"},
    per_iteration=True,
    deps=[iteration_model, seed_assessment],
    check_specs=[
        dg.AssetCheckSpec(
            "beats_length", asset="assessment", description="It judges better than whoever prefers the longer reply."
        )
    ],
)
def assessment(
    stage: Stage, ranked_replies: pd.DataFrame, evaluation_prompts: pd.DataFrame
) -> dg.MaterializeResult[pd.DataFrame]:
    """M_{t+1}, measured without any judge: vital signs, closed tasks, verifiable instructions; and how it judges."""
    settings = stage.settings
    found = _assess(stage, model_name(stage.iteration + 1), ranked_replies, evaluation_prompts)
    figures = assessment_metrics(found, settings.evaluation.bootstrap_samples)
    stage.curve(figures)
    metadata: dict[str, Any] = short_names(figures)
    if settings.evaluation.harness_tasks:
        scores = run_harness(
            stage.store.checkpoint(found.model).path,
            settings.evaluation.harness_tasks,
            settings.evaluation.harness_limit,
            choose_device(settings.model.device),
            settings.evaluation.batch_size,
        )
        stage.curve({f"harness/{k}": v for k, v in scores.items()})
        metadata |= {f"{HARNESS}{k}": v for k, v in scores.items()}
    metadata["digest"] = found.digest
    return _assessed(stage, [found], metadata, [_beats_length(measure_judge(found.judgements))])


def _assessed(
    stage: Stage,
    found: list[Assessment],
    metadata: dict[str, Any],
    checks: list[dg.AssetCheckResult] | None = None,
) -> dg.MaterializeResult[pd.DataFrame]:
    """Return the vital signs as the asset's value; its version is that of all that was measured, replies included."""
    result = table_result(vital_signs(found, stage.settings.evaluation.bootstrap_samples), metadata, checks)
    tables = [table for a in found for table in (a.replies, a.verifiable, a.judgements, a.likelihood)]
    return result._replace(data_version=dg.DataVersion(fingerprint(map(table_digest, tables))))


def assessments(stage: Stage, names: list[str]) -> dict[str, Assessment]:
    """Return what was measured of some models, by name.

    Raises:
        TableError: If one of them was not assessed, or they were not asked the same.
    """
    settings, store = stage.settings, stage.store
    return read_assessments(store, [store.named_model(settings, name) for name in dict.fromkeys(names)])


def short_names(figures: dict[str, float]) -> dict[str, float]:
    """Return figures under their names in Dagster's metadata: ``loops``, ``pairwise_accuracy``, ``length_mean``."""
    return {name.replace("length/mean", "length/length_mean").split("/", 1)[1]: v for name, v in figures.items()}


def _assess(stage: Stage, name: str, ranked: pd.DataFrame, prompts: pd.DataFrame) -> Assessment:
    settings, store = stage.settings, stage.store
    model = store.named_model(settings, name)
    if COPY_OF in model.lineage:
        # Without SFT the base model, measured before, and the SFT baseline say the same.
        found = read_assessment(store, store.base_checkpoint(settings)).of_copy(model)
        write_assessment(found, store, model)
        return found
    return assess_and_keep(model, prompts, ranked, settings, store, stage.engine, stage.progress)


def _beats_length(accuracy: JudgeAccuracy) -> dg.AssetCheckResult:
    balanced = accuracy.length_balanced_accuracy
    told = (
        f"{balanced:.1%}, where preferring the longer reply reaches 50 %"
        if balanced is not None
        else "could not be measured"
    )
    return check("beats_length", balanced is not None and balanced > 0.5, f"length-balanced accuracy {told}")
