"""Instruction-following training: M_t becomes M_{t+1} by DPO on its own preference pairs (paper section 2.4)."""

import dagster as dg
import pandas as pd

from srlm_pipeline.assets.common import Stopwatch, check, mlflow_link, model_result, srlm_asset, table_digest
from srlm_pipeline.assets.seed import training_facts
from srlm_pipeline.assets.self_instruction import policy
from srlm_pipeline.resources.project import ProjectResource
from srlm_pipeline.store import iteration_number, model_name, partition_key

DATA_VERSION_TAG = "dagster/data_version"


@srlm_asset(
    "dpo",
    "model",
    "seed",
    group="iteration",
    kinds={"torch", "mlflow"},
    retries=True,
    per_iteration=True,
    deps=[policy],
    check_specs=[dg.AssetCheckSpec("margins_moved", asset="iteration_model")],
)
def iteration_model(
    context: dg.AssetExecutionContext, project: ProjectResource, preference_pairs: pd.DataFrame
) -> dg.MaterializeResult:
    """M_{t+1}: M_t trained with DPO on its own pairs, M_t being the reference."""
    from srlm_pipeline.models.checkpoint import save_checkpoint
    from srlm_pipeline.training.dpo import PreferenceExample, train_dpo

    settings, store = project.settings, project.store
    iteration = iteration_number(context.partition_key)
    name = model_name(iteration + 1)
    watch = Stopwatch()
    entering = store.entering_model(iteration)
    with project.tracked(context, ["dpo"]) as run:
        trained = train_dpo(
            entering.path,
            [
                PreferenceExample(
                    row.prompt,
                    row.chosen,
                    row.rejected,
                    row.chosen_finish_reason == "stop",
                    row.rejected_finish_reason == "stop",
                )
                for row in preference_pairs.itertuples()
            ],
            settings.dpo,
            settings.model,
            settings.seed + iteration,
            store.work_folder(
                name, entering.digest, settings.fingerprint("dpo", "seed"), table_digest(preference_pairs)
            ),
            f"training {name} with DPO",
            project.progress(context),
        )
        run.history(list(trained.history))
        saved = save_checkpoint(
            trained.loaded,
            store.model_folder(name),
            name,
            entering.digest,
            {
                "iteration": iteration,
                "dagster_run": context.run_id,
                "mlflow_run": run.run_id,
                "pairs": len(preference_pairs),
                "dpo": settings.dpo.model_dump(),
            },
            settings.model.save_dtype,
        )
        margin = trained.final("rewards/margins")
        run.curve({"dpo/final_loss": trained.final("loss"), "dpo/final_margin": margin}, iteration)
        run.metrics({"seconds": watch.seconds})
    announce_next_policy(context, iteration, saved.digest)
    moved = margin is not None and margin > 0.01
    checks = [
        check(
            "margins_moved",
            moved,
            "chosen replies have become likelier than rejected ones"
            if moved
            else "the reward margin stayed at zero: nothing was learned; raise dpo.learning_rate or dpo.epochs",
            margin=margin if margin is not None else 0.0,
        )
    ]
    facts = training_facts(trained, watch)
    return model_result(saved, {"pairs": len(preference_pairs), **facts, **mlflow_link(run.url)}, checks)


def announce_next_policy(context: dg.AssetExecutionContext, iteration: int, digest: str) -> None:
    """Record that the next iteration's policy has this version, so that lineage and staleness follow the loop.

    The edge from this iteration's model to the next one's policy would be a cycle between assets, which Dagster
    refuses; an event for the next partition says the same.
    """
    key = partition_key(iteration + 1)
    if key not in context.assets_def.partitions_def.get_partition_keys():
        return
    context.log_event(
        dg.AssetMaterialization(
            asset_key="policy",
            partition=key,
            description=f"published by iteration_model[{context.partition_key}]",
            tags={DATA_VERSION_TAG: digest},
            metadata={"digest": digest, "publishing_run": context.run_id},
        )
    )
