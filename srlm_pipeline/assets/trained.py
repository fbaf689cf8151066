"""What assets that train a model share: the job, the saved model, what is said of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from srlm_pipeline.assets.common import Stopwatch
from srlm_pipeline.config import Settings
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.reads import STAGES
from srlm_pipeline.resources.project import ProjectResource

if TYPE_CHECKING:
    from srlm_pipeline.tracking import TrackedRun
    from srlm_pipeline.training.common import TrainingJob, TrainingRun


def training_job(
    context: dg.AssetExecutionContext,
    project: ProjectResource,
    name: str,
    source: Checkpoint,
    description: str,
    *inputs: str,
    settings: Settings | None = None,
) -> TrainingJob:
    """Return an asset's training, which goes on where one with the same settings and inputs was interrupted.

    Args:
        context: Of the asset.
        project: Settings, folders, progress.
        name: Of the model that it makes.
        source: Model to start from.
        description: Shown with the progress.
        inputs: Digests of whatever it is trained on.
        settings: Of an iteration; those of the project where it is none.
    """
    from srlm_pipeline.training.common import TrainingJob

    settings = settings or project.settings
    fingerprint = STAGES[context.asset_key.path[-1]].fingerprint(settings)
    work = project.store.work_folder(name, fingerprint, source.digest, *inputs)
    return TrainingJob(source.path, settings.model, settings.seed, work, description, project.progress(context))


def save_trained(
    context: dg.AssetExecutionContext,
    project: ProjectResource,
    run: TrackedRun,
    trained: TrainingRun,
    name: str,
    parent: str | None,
    lineage: Mapping[str, Any],
) -> Checkpoint:
    """Track how a training went, and save its model under a name."""
    from srlm_pipeline.models.checkpoint import save_checkpoint

    run.history(list(trained.history))
    return save_checkpoint(
        trained.loaded,
        project.store.model_folder(name),
        name,
        parent,
        {"dagster_run": context.run_id, "mlflow_run": run.run_id, **lineage},
        project.settings.model.save_dtype,
    )


def training_facts(trained: TrainingRun, watch: Stopwatch) -> dict[str, float | int]:
    """Return what a training run says of itself, for metadata."""
    facts: dict[str, float | int] = {"examples": trained.n_examples, "seconds": round(watch.seconds, 2)}
    if trained.n_left_out:
        facts["too_long"] = trained.n_left_out
    loss = trained.final("loss")
    if loss is not None:
        facts["final_loss"] = loss
    return facts
