"""What assets that train a model share: the job, the saved model, what is said of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from srlm_pipeline.assets.stage import Stage
from srlm_pipeline.config import DpoSettings, Settings
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.reads import STAGES

if TYPE_CHECKING:
    from srlm_pipeline.training.common import TrainingJob, TrainingRun


def training_job(
    stage: Stage, name: str, source: Checkpoint, description: str, *inputs: str, settings: Settings | None = None
) -> TrainingJob:
    """Return an asset's training, which goes on where one with the same settings and inputs was interrupted.

    Args:
        stage: That trains.
        name: Of the model that it makes.
        source: Model to start from.
        description: Shown with the progress.
        inputs: Digests of whatever it is trained on.
        settings: Of an iteration; those of the project where it is none.

    Raises:
        DivisionError: If it cannot be divided among devices as the settings ask.
    """
    from srlm_pipeline.training.common import TrainingJob
    from srlm_pipeline.training.launching import launch_for

    settings = settings or stage.settings
    launch = launch_for(settings)
    stage.store.begin_work(name)
    work = stage.store.work_folder(name, STAGES[stage.name].fingerprint(settings), source.digest, *inputs)
    return TrainingJob(source.path, settings.model, settings.seed, work, description, stage.progress, launch)


def save_trained(
    stage: Stage, trained: TrainingRun, name: str, parent: str | None, lineage: Mapping[str, Any]
) -> Checkpoint:
    """Track how a training went, and save its model under a name; the work on it has ended then."""
    from srlm_pipeline.models.checkpoint import save_checkpoint

    stage.run.history(list(trained.history))
    runs = {"dagster_run": stage.context.run_id, "mlflow_run": stage.run.run_id}
    folder, dtype = stage.store.model_folder(name), stage.settings.model.save_dtype
    saved = save_checkpoint(trained.loaded, folder, name, parent, {**runs, **lineage}, dtype)
    stage.store.end_work(name)
    return saved


def training_facts(trained: TrainingRun) -> dict[str, float | int]:
    """Return what a training run says of itself, for metadata."""
    facts: dict[str, float | int] = {"examples": trained.n_examples}
    if trained.n_left_out:
        facts["too_long"] = trained.n_left_out
    if trained.n_cut:
        facts["cut"] = trained.n_cut
    loss = trained.final("loss")
    if loss is not None:
        facts["final_loss"] = loss
    return facts


def warn_of_length(stage: Stage, trained: TrainingRun, setting: str, max_length: int) -> None:
    """Say how many examples were too long to be learned, or to be learned to their end."""
    of, limit = f"of {trained.n_left_out + trained.n_examples} examples", f"{setting} ({max_length} tokens)"
    if trained.n_left_out:
        stage.log.warning(f"{trained.n_left_out} {of} were left out: they do not fit into {limit}")
    if trained.n_cut:
        stage.log.warning(f"the replies of {trained.n_cut} {of} were cut to {limit}; no end is learned there")


def dpo_facts(trained: TrainingRun, settings: DpoSettings) -> dict[str, float | int | str]:
    """Return how far DPO has moved a model, in nats per reply, and whether that ended it; for lineage and metadata."""
    from srlm_pipeline.training.kl_budget import KL, step_beyond

    facts: dict[str, float | int | str] = {}
    moved = trained.final(KL)
    if moved is not None:
        facts["kl_estimate"] = moved
    if settings.kl_budget is not None:
        facts["ended_by_kl_budget"] = step_beyond(trained.history, settings.kl_budget) or "no"
    return facts
