"""Instruction-following training: M_t becomes M_{t+1} by DPO on its own preference pairs (paper section 2.4).

With the strategy `positive_only` there are no pairs: the replies that M_t gave top marks join the seed data.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import dagster as dg
import pandas as pd

from srlm_pipeline.assets.entering import policy, publish
from srlm_pipeline.assets.measured import arbiter_contents, arbiters_read
from srlm_pipeline.assets.results import check, model_result, table_digest
from srlm_pipeline.assets.seed import MODEL, base_contents, eft_dataset, ift_dataset, ranked_replies
from srlm_pipeline.assets.stage import Stage, srlm_asset
from srlm_pipeline.assets.trained import save_trained, training_facts, training_job
from srlm_pipeline.config import Settings
from srlm_pipeline.errors import TableError
from srlm_pipeline.preference.pairs import select
from srlm_pipeline.reads import Reads
from srlm_pipeline.resources.project import definition_settings
from srlm_pipeline.store import ProjectStore, model_name
from srlm_pipeline.tables import (
    EFT,
    EVALUATION_PROMPTS,
    INSTRUCTIONS,
    JUDGED_SCORES,
    PREFERENCE_PAIRS,
    RANKED_REPLIES,
    read_table,
)

if TYPE_CHECKING:
    from srlm_pipeline.models.checkpoint import Checkpoint
    from srlm_pipeline.training.common import TrainingRun
    from srlm_pipeline.training.early_stopping import EarlyStopping


def _read(settings: Settings) -> tuple[str, ...]:
    common = ("pairs.strategy", *MODEL, "seed")
    if settings.pairs.strategy == "positive_only":
        return (*common, "base_model", "sft", "eft", "judge.rubric")
    if settings.dpo.early_stopping.every:
        return (*common, "dpo", "evaluation.max_new_tokens", *arbiters_read(settings))
    return (*common, "dpo")


def _contents(settings: Settings) -> list[str]:
    if settings.pairs.strategy == "positive_only":
        return base_contents(settings)
    return arbiter_contents(settings) if settings.dpo.early_stopping.every else []


def _inputs(settings: Settings) -> list[dg.AssetsDefinition]:
    """Return what training reads beside pairs and policy: it follows how it trains."""
    if settings.pairs.strategy == "positive_only":
        return [ift_dataset, eft_dataset]
    return [ranked_replies] if settings.dpo.early_stopping.every else []


@srlm_asset(
    Reads(_read, contents=_contents),
    group="iteration",
    kinds={"torch", "mlflow"},
    retries=True,
    per_iteration=True,
    deps=[policy, *_inputs(definition_settings())],
    check_specs=[dg.AssetCheckSpec("margins_moved", asset="iteration_model")],
)
def iteration_model(stage: Stage, preference_pairs: pd.DataFrame) -> dg.MaterializeResult:
    """M_{t+1}: M_t trained with DPO on its own pairs, M_t being the reference."""
    wanted = stage.settings.pairs.strategy
    positive_only = wanted == "positive_only"
    if (preference_pairs["strategy"] != wanted).any():
        made_by = preference_pairs["strategy"].iloc[0]
        raise TableError(
            "preference_pairs", [f"was made with pairs.strategy {made_by}, not {wanted}; materialize it again first"]
        )
    name, entering = model_name(stage.iteration + 1), stage.store.entering_model(stage.iteration)
    made = (_fine_tuned if positive_only else _preference_tuned)(stage, preference_pairs, name, entering)
    trained = made.run
    lineage = {"iteration": stage.iteration, "pairs": len(preference_pairs), **made.lineage}
    saved = save_trained(stage, trained, name, made.parent, lineage)
    margin = trained.final("rewards/margins")
    stage.curve({f"{made.objective}/final_loss": trained.final("loss"), "dpo/final_margin": margin})
    publish(stage, "policy", saved.digest)
    checks = [
        check("margins_moved", True, "there are no margins: the model is trained on good replies alone", margin=0.0)
        if positive_only
        else margins_moved(margin)
    ]
    return model_result(saved, {"pairs": len(preference_pairs), **made.facts, **training_facts(trained)}, checks)


def margins_moved(margin: float | None) -> dg.AssetCheckResult:
    """Return whether DPO has learned anything, by the reward margin at its end."""
    moved = margin is not None and margin > 0.01
    return check(
        "margins_moved",
        moved,
        "chosen replies have become likelier than rejected ones"
        if moved
        else "the reward margin stayed at zero: nothing was learned; raise dpo.learning_rate or dpo.epochs",
        margin=margin if margin is not None else 0.0,
    )


@dataclass(frozen=True)
class _Made:
    """What a way of training gives: the run, whose digest the model descends from, and what is said of it."""

    run: "TrainingRun"
    objective: str
    parent: str | None
    lineage: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)


def _preference_tuned(stage: Stage, pairs: pd.DataFrame, name: str, entering: "Checkpoint") -> _Made:
    """Train M_t on its pairs with DPO (paper section 2.4)."""
    from srlm_pipeline.training.dpo import preference_examples, train_dpo

    settings = stage.own_settings
    stopping = _early_stopping(stage, name, entering) if settings.dpo.early_stopping.every else None
    description = f"training {name} with DPO"
    job = training_job(stage, name, entering, description, table_digest(pairs), settings=settings)
    # No two iterations draw alike.
    job = replace(job, seed=job.seed + stage.iteration)
    trained = train_dpo(job, preference_examples(pairs), settings.dpo, stopping)
    facts = {}
    if stopping is not None:
        facts = {"looks": len(stopping.history), "stopped_early": stopping.stopped_at or "no"}
    return _Made(trained, "dpo", entering.digest, {"dpo": settings.dpo.model_dump()}, facts)


def _fine_tuned(stage: Stage, positives: pd.DataFrame, name: str, entering: "Checkpoint") -> _Made:
    """Train the base model again on the seed data and on all replies that M_1 to M_t gave top marks (A.4)."""
    from srlm_pipeline.training.seed import train_seed_model

    settings, store = stage.own_settings, stage.store
    earlier = [_positives(store, t, settings) for t in range(1, stage.iteration)]
    added = pd.concat([*earlier, positives], ignore_index=True)
    seed_data, eft = (
        read_table(schema, store.table_path(asset))
        for schema, asset in ((INSTRUCTIONS, "ift_dataset"), (EFT, "eft_dataset"))
    )
    ift = pd.concat(
        [
            seed_data,
            pd.DataFrame(
                {
                    "id": added["prompt_id"] + "#" + added["chosen_sample"].astype(str),
                    "kind": "aift",
                    "prompt": added["prompt"],
                    "response": added["chosen"],
                }
            ),
        ],
        ignore_index=True,
    )
    base = store.base_checkpoint(settings)
    inputs = (table_digest(ift), table_digest(eft))
    job = training_job(stage, name, base, f"training {name}", *inputs, settings=settings)
    trained = train_seed_model(job, ift, eft, settings)
    lineage = {"sft": settings.sft.model_dump(), "positives": len(added), "judged_by": entering.digest}
    return _Made(trained.final, "sft", base.digest, lineage, {"positives": len(added)})


def _positives(store: ProjectStore, iteration: int, settings: Settings) -> pd.DataFrame:
    """Return the good replies of an earlier iteration, whatever it made of them itself."""
    made = read_table(PREFERENCE_PAIRS, store.table_path("preference_pairs", iteration))
    if (made["strategy"] == settings.pairs.strategy).all():
        return made
    return select(read_table(JUDGED_SCORES, store.table_path("judged_scores", iteration)), settings.pairs).pairs


def _early_stopping(stage: Stage, name: str, entering: "Checkpoint") -> "EarlyStopping":
    """Look at the replies to prompts that are neither trained on nor used in the evaluation."""
    from srlm_pipeline.evaluation.measuring import win_rate
    from srlm_pipeline.generation.opening import release_engines
    from srlm_pipeline.training.early_stopping import EarlyStopping

    settings, store = stage.settings, stage.store
    chosen = settings.dpo.early_stopping
    ranked = read_table(RANKED_REPLIES, store.table_path("ranked_replies"))
    held_out = ranked[ranked["split"] == "held_out"].drop_duplicates("group_id").head(chosen.prompts)
    prompts = held_out.rename(columns={"group_id": "id"}).assign(reference=None)
    prompts = prompts[list(EVALUATION_PROMPTS.columns)].reset_index(drop=True)

    def compare(now: "Checkpoint", before: "Checkpoint") -> float:
        purpose = f"early_stopping/{name}"
        result = win_rate(now, before, prompts, settings, store, stage.engine, stage.progress, purpose)
        stage.log.info("%s against %s: win rate %.1f %%", now.name, before.name, 100 * result)
        # An engine that outlives its use would stand in the training's way.
        release_engines()
        return result

    return EarlyStopping(chosen, entering, compare)
