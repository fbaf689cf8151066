"""Who enters an iteration and whom its model has to beat: models of iterations before, by their weights.

The edge from one iteration's model to the next one's policy would be a cycle between assets, which Dagster refuses.
Events for the next partition say the same: `publish`.
"""

from pathlib import Path

import dagster as dg

from srlm_pipeline.assets.results import model_result
from srlm_pipeline.assets.seed import seed_model
from srlm_pipeline.assets.stage import ATTEMPT_TAG, Stage, iterations, srlm_asset
from srlm_pipeline.attempts import Attempt, write_attempt
from srlm_pipeline.config import Settings
from srlm_pipeline.errors import MissingPredecessorError
from srlm_pipeline.evaluation.champion import champion_before
from srlm_pipeline.evaluation.other_answers import require_names
from srlm_pipeline.models.checkpoint import is_checkpoint
from srlm_pipeline.reads import STAGES, Reads
from srlm_pipeline.store import ProjectStore, partition_key

DATA_VERSION_TAG = "dagster/data_version"
# What makes an iteration's model what it is.
MAKING = ("generated_prompts", "candidates", "judged_scores", "preference_pairs", "iteration_model")


@srlm_asset(
    Reads(), group="iteration", kinds={"torch"}, compute=False, tracked=False, per_iteration=True, deps=[seed_model]
)
def policy(stage: Stage) -> dg.MaterializeResult:
    """M_t, the model that enters iteration t: M1 first, then what the iteration before made.

    Nothing is ever computed on a wrong model: without its predecessor an iteration fails here, naming what to
    materialize first. A run with the tag of a further attempt begins that attempt, from the champion; once the
    champion or the settings are others, the iteration is no further attempt at anything any more.
    """
    iteration, store = stage.iteration, stage.store
    # Wanted only after the training; then it would be late.
    require_names([Path(path) for path in stage.settings.evaluation.other_answers])
    asked = int(stage.context.run.tags.get(ATTEMPT_TAG, 0))
    bound = making_version(stage.settings)
    if asked:
        leader = store.checkpoint(champion_before(store, iteration))
        write_attempt(Attempt(asked, leader.name, leader.digest, bound), store.attempt_path(iteration))
    elif not _holds(store, iteration, bound):
        stage.log.info("what the further attempt was made for is no longer so; the iteration is done as planned")
        store.attempt_path(iteration).unlink(missing_ok=True)
    attempt = store.attempt(iteration)
    checkpoint = store.entering_model(iteration)
    result = model_result(
        checkpoint, {"iteration": iteration, "attempt": attempt.number, "lineage": dict(checkpoint.lineage)}
    )
    if attempt.number == 1:
        return result
    # The same model may enter again; what the attempt before made of it is stale all the same.
    return result._replace(data_version=dg.DataVersion(f"{checkpoint.digest}-attempt-{attempt.number}"))


@srlm_asset(
    Reads(), group="iteration", kinds={"torch"}, compute=False, tracked=False, per_iteration=True, deps=[seed_model]
)
def champion(stage: Stage) -> dg.MaterializeResult:
    """The model that M_{t+1} has to beat: the last one that was promoted before, M1 as long as there is none."""
    iteration, store = stage.iteration, stage.store
    leader = champion_before(store, iteration)
    if not is_checkpoint(store.model_folder(leader)):
        raise MissingPredecessorError(iteration, "seed_model")
    return model_result(store.checkpoint(leader), {"iteration": iteration})


def making_version(settings: Settings) -> str:
    """Return the version of all that makes an iteration's model under these settings."""
    return "-".join(STAGES[name].fingerprint(settings) for name in MAKING)


def publish(stage: Stage, asset: str, digest: str) -> None:
    """Record that an asset of the next iteration has this version now, so that staleness follows the loop.

    Nothing is recorded where the next iteration has none yet: it would look half done before its run.

    Args:
        stage: Of the iteration before.
        asset: `policy` or `champion`.
        digest: Of the model's weights.
    """
    key = partition_key(stage.iteration + 1)
    if key not in iterations.get_partition_keys():
        return
    if key not in stage.context.instance.get_materialized_partitions(dg.AssetKey(asset)):
        return
    stage.context.log_event(
        dg.AssetMaterialization(
            asset_key=asset,
            partition=key,
            description=f"published by {stage.name}[{stage.partition}]",
            tags={DATA_VERSION_TAG: digest},
            metadata={"digest": digest, "publishing_run": stage.context.run_id},
        )
    )


def _holds(store: ProjectStore, iteration: int, bound: str) -> bool:
    """Return whether an attempt is still what it was begun as."""
    attempt = store.attempt(iteration)
    if attempt.entering is None:
        return True
    leader = champion_before(store, iteration)
    return attempt.settings_version == bound and store.checkpoint(leader).digest == attempt.entering_digest
