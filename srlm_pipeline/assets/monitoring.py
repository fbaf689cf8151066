"""Collapse monitors: whether an iteration shows signs that the loop feeds on itself, as asset checks."""

from typing import Any

import dagster as dg
import pandas as pd

from srlm_pipeline.assets.assessment import assessment, assessments, seed_assessment
from srlm_pipeline.assets.results import check, table_result
from srlm_pipeline.assets.seed import M1
from srlm_pipeline.assets.stage import Stage, srlm_asset
from srlm_pipeline.evaluation.matches import length_ratio
from srlm_pipeline.evaluation.measures import VARIETY, change, measure_named
from srlm_pipeline.evaluation.monitors import Count, MonitorFigures, describe_scores, monitor_names, watch
from srlm_pipeline.notices import Notice
from srlm_pipeline.preference.pairs import select
from srlm_pipeline.reads import Reads
from srlm_pipeline.resources.project import definition_settings
from srlm_pipeline.store import model_name
from srlm_pipeline.tables import MONITORS, REFUSED_PROMPTS, read_table

NOT_NOVEL = "not_novel"
_NAMES = monitor_names(definition_settings().monitors)


@srlm_asset(
    Reads(("evaluation.bootstrap_samples", "pairs"), verdicts=("monitors",)),
    group="iteration",
    kinds={"torch", "pandas", "mlflow"},
    per_iteration=True,
    deps=[assessment, seed_assessment],
    check_specs=[
        dg.AssetCheckSpec(
            name,
            asset="collapse_monitors",
            description=f"A sign of collapse is watched: {name.replace('_', ' ')} (docs/evaluation.md).",
        )
        for name in _NAMES
    ],
)
def collapse_monitors(
    stage: Stage, generated_prompts: pd.DataFrame, judged_scores: pd.DataFrame
) -> dg.MaterializeResult[pd.DataFrame]:
    """Signs of collapse: scores, ties, lengths, variety, prompts, judge accuracy, and the way from M1."""
    settings, store, iteration = stage.settings, stage.store, stage.iteration
    name, entering = model_name(iteration + 1), store.entering_model(iteration).name
    refused = read_table(REFUSED_PROMPTS, store.table_path("refused_prompts", iteration))
    selection = select(judged_scores, settings.pairs)
    found = assessments(stage, [M1, entering, name])
    new, first, resamples = found[name], found[M1], settings.evaluation.bootstrap_samples
    replies = new.evaluation_replies()
    figures = MonitorFigures(
        readable=Count(
            int(judged_scores["n_valid"].sum()), int((judged_scores["n_valid"] + judged_scores["n_invalid"]).sum())
        ),
        without_pair=Count(selection.n_prompts - selection.pairs["prompt_id"].nunique(), selection.n_prompts),
        scores=describe_scores(judged_scores["score"]),
        length_growth=length_ratio(replies, found[entering].evaluation_replies()),
        duplicate_prompts=Count(int((refused["reason"] == NOT_NOVEL).sum()), len(refused) + len(generated_prompts)),
        variety=change(new, first, VARIETY, resamples=resamples),
        recitals=change(new, first, measure_named("recites"), resamples=resamples),
        judge=change(new, first, measure_named("judge"), resamples=resamples),
        kl=_divergence(stage, replies, name) if settings.monitors.max_kl is not None else None,
    )
    monitors = watch(figures, settings.monitors)
    stage.curve({f"monitors/{m.name}": m.value for m in monitors})
    failed = [m for m in monitors if m.passed is False]
    stage.curve({"monitors/failed": float(len(failed))})
    table = pd.DataFrame(
        [(m.name, m.passed, m.value, m.threshold, m.explanation) for m in monitors], columns=list(MONITORS.columns)
    ).astype({"passed": "boolean", "value": float})
    metadata: dict[str, Any] = {m.name: m.value for m in monitors if m.value is not None}
    metadata["failed"] = ", ".join(m.name for m in failed) or "none"
    if failed:
        key = f"alarm/{name}/{new.digest}/{','.join(m.name for m in failed)}"
        alarms = "\n".join(f"- {m.name}: {m.explanation}" for m in failed)
        stage.notify(Notice(key, "alarm", f"{settings.project}: monitors of {name} failed", alarms))
    # What could not be measured is no proof of health.
    checks = []
    for m in monitors:
        measured: dict[str, Any] = {} if m.value is None else {"value": m.value}
        checks.append(check(m.name, m.passed is True, m.explanation, **measured))
    return table_result(table, metadata, checks)


def _divergence(stage: Stage, replies: pd.DataFrame, name: str) -> float | None:
    """Read the model's replies with the model itself and with M1, one in memory at a time."""
    from srlm_pipeline.evaluation.divergence import divergence, reply_log_probabilities
    from srlm_pipeline.generation.opening import release_engines
    from srlm_pipeline.models.loading import load_model

    settings = stage.settings
    release_engines()
    read = [
        reply_log_probabilities(
            load_model(stage.store.model_folder(model), settings.model),
            replies,
            settings.evaluation.batch_size,
            stage.progress,
        )
        for model in (name, M1)
    ]
    found = divergence(*read)
    return found.nats_per_token if found else None
