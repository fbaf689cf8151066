"""Instruction-following training: M_t becomes M_{t+1} by DPO on its own preference pairs (paper section 2.4).

With the strategy `positive_only` there are no pairs: the replies that M_t gave top marks join the seed data.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import dagster as dg
import pandas as pd

from srlm_pipeline.assets.entering import policy, publish
from srlm_pipeline.assets.measured import arbiter_contents, arbiters_read
from srlm_pipeline.assets.results import check, model_result, table_digest
from srlm_pipeline.assets.seed import M1, MODEL, base_contents, eft_dataset, ift_dataset, ranked_replies, seed_model
from srlm_pipeline.assets.stage import Stage, srlm_asset
from srlm_pipeline.assets.trained import dpo_facts, save_trained, training_facts, training_job
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
    from srlm_pipeline.training.cost import DevelopmentFigures, Measure
    from srlm_pipeline.training.early_stopping import Compare, EarlyStopping
    from srlm_pipeline.training.interpolation import Tried


def _read(settings: Settings) -> tuple[str, ...]:
    common = ("pairs.strategy", *MODEL, "seed")
    if settings.pairs.strategy == "positive_only":
        return (*common, "base_model", "sft", "eft", "judge.taught_rubric")
    trained = [*common, "dpo", *(f"dpo.{setting}" for setting in sorted(settings.dpo.apart))]
    if settings.dpo.early_stopping.every or settings.dpo.interpolation:
        trained.append("evaluation.max_new_tokens")
    if _asks_arbiters(settings):
        trained += arbiters_read(settings)
    if settings.dpo.reference == "base":
        trained.append("base_model")
    return tuple(trained)


def _contents(settings: Settings) -> list[str]:
    if settings.pairs.strategy == "positive_only":
        return base_contents(settings)
    arbiters = arbiter_contents(settings) if _asks_arbiters(settings) else []
    return [*arbiters, *(base_contents(settings) if settings.dpo.reference == "base" else [])]


def _asks_arbiters(settings: Settings) -> bool:
    looks = settings.dpo.early_stopping
    return looks.every is not None and looks.by == "arbiter"


def _inputs(settings: Settings) -> list[dg.AssetsDefinition]:
    """Return what training reads beside pairs and policy: it follows how it trains."""
    if settings.pairs.strategy == "positive_only":
        return [ift_dataset, eft_dataset]
    dpo = settings.dpo
    ranked = [ranked_replies] if dpo.early_stopping.every or dpo.rehearsal or dpo.interpolation else []
    return [*ranked, *([seed_model] if dpo.reference == "seed" else [])]


@srlm_asset(
    Reads(_read, contents=_contents),
    group="iteration",
    kinds={"torch", "mlflow"},
    retries=True,
    per_iteration=True,
    deps=[policy, *_inputs(definition_settings())],
    check_specs=[
        dg.AssetCheckSpec(
            "margins_moved",
            asset="iteration_model",
            description="Training made chosen replies likelier than rejected ones.",
        )
    ],
)
def iteration_model(stage: Stage, preference_pairs: pd.DataFrame) -> dg.MaterializeResult:
    """M_{t+1}: M_t trained with DPO on its own pairs, M_t being the reference unless the settings name another."""
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
        else margins_moved(margin, trained.first("rewards/margins"))
    ]
    return model_result(saved, {"pairs": len(preference_pairs), **made.facts, **training_facts(trained)}, checks)


def margins_moved(margin: float | None, before: float | None = None) -> dg.AssetCheckResult:
    """Return whether DPO has learned anything, by the reward margin at its end.

    Args:
        margin: At the end.
        before: At the beginning; it is zero where a model is its own reference.
    """
    moved = margin is not None and margin - (before or 0.0) > 0.01
    return check(
        "margins_moved",
        moved,
        "chosen replies have become likelier than rejected ones"
        if moved
        else "the reward margin stayed where it was: nothing was learned; raise dpo.learning_rate or dpo.epochs",
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
    from srlm_pipeline.training.early_stopping import LOST
    from srlm_pipeline.training.human_pairs import rehearsed_pairs
    from srlm_pipeline.training.interpolation import train_and_interpolate

    settings = stage.own_settings
    # No two iterations draw alike.
    seed = settings.seed + stage.iteration
    stopping = _early_stopping(stage, name, entering)
    ranked = _ranked(stage.store, "train") if settings.dpo.rehearsal else None
    rehearsed = [] if ranked is None else rehearsed_pairs(ranked, len(pairs), settings.dpo.rehearsal, seed)
    reference = _reference(stage, entering)
    inputs = [table_digest(table) for table in (pairs, ranked) if table is not None]
    inputs += [reference.digest] if reference else []
    job = training_job(stage, name, entering, f"training {name} with DPO", *inputs, settings=settings)
    job = replace(job, seed=seed)

    def train() -> "TrainingRun":
        examples = [*preference_examples(pairs), *rehearsed]
        return train_dpo(job, examples, settings.dpo, stopping, reference.path if reference else None)

    lineage: dict[str, Any] = {"dpo": settings.dpo.model_dump()}
    facts: dict[str, Any] = {}
    if reference:
        facts["reference"] = reference.name
        lineage["reference"] = {"name": reference.name, "digest": reference.digest}
    if settings.dpo.interpolation:
        trained, tried = train_and_interpolate(job, entering, settings.dpo, train, _development(stage, name))
        told = lineage["interpolation"] = _tell_interpolation(stage, tried)
        facts |= {"interpolation_ratio": tried[-1].ratio, "interpolation": dg.MetadataValue.json(told)}
    else:
        trained = train()
    moved = dpo_facts(trained, settings.dpo)
    lineage |= moved
    facts |= moved
    if stopping is not None:
        looks = [entry for entry in trained.history if LOST in entry]
        lost = [int(look["step"]) for look in looks if look[LOST]]
        facts |= {"looks": len(looks), "stopped_early": lost[0] if lost else "no"}
    if rehearsed:
        facts["rehearsed"] = lineage["rehearsed"] = len(rehearsed)
        stage.run.metrics({"rehearsed": len(rehearsed)})
    return _Made(trained, "dpo", entering.digest, lineage, facts)


def _reference(stage: Stage, entering: "Checkpoint") -> "Checkpoint | None":
    """Return the model from which training is not to stray far; None: M_t itself."""
    chosen, store = stage.settings.dpo.reference, stage.store
    if chosen == "policy":
        return None
    found = store.checkpoint(M1) if chosen == "seed" else store.base_checkpoint(stage.settings)
    return None if found.digest == entering.digest else found


def _development(stage: Stage, name: str) -> "Measure":
    """Measure models on the prompts that are neither trained on nor used in the evaluation."""
    from srlm_pipeline.evaluation.development import development_figures

    held_out = _ranked(stage.store, "held_out")

    def measure(model: "Checkpoint") -> "DevelopmentFigures":
        return development_figures(
            model, held_out, stage.settings, stage.store, stage.engine, stage.progress, f"development/{name}"
        )

    return measure


def _tell_interpolation(stage: Stage, tried: "Sequence[Tried]") -> list[dict[str, Any]]:
    """Track what was tried, and return it as plain values; the last was chosen."""
    for one in tried:
        told = one.cost.figures()
        stage.run.metrics({f"interpolation/{one.ratio:g}/{name}": value for name, value in told.items()})
    stage.curve({"dpo/interpolation_ratio": tried[-1].ratio})
    if not tried[-1].cost.tolerable:
        stage.log.warning(f"no ratio of dpo.interpolation passed; the smallest, {tried[-1].ratio:g}, was taken")
    return [{"ratio": one.ratio, **asdict(one.cost)} for one in tried]


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


def _ranked(store: ProjectStore, split: str) -> pd.DataFrame:
    """Return the human-ranked replies of one split."""
    ranked = read_table(RANKED_REPLIES, store.table_path("ranked_replies"))
    return ranked[ranked["split"] == split]


def _early_stopping(stage: Stage, name: str, entering: "Checkpoint") -> "EarlyStopping | None":
    """Look at the replies to prompts that are neither trained on nor used in the evaluation."""
    from srlm_pipeline.training.early_stopping import EarlyStopping

    chosen = stage.settings.dpo.early_stopping
    if chosen.every is None:
        return None
    compare = _by_arbiter(stage, name) if chosen.by == "arbiter" else _by_signs(stage, name, entering)
    return EarlyStopping(chosen.every, entering, compare)


def _by_arbiter(stage: Stage, name: str) -> "Compare":
    from srlm_pipeline.evaluation.measuring import win_rate
    from srlm_pipeline.generation.opening import release_engines
    from srlm_pipeline.training.early_stopping import WIN_RATE, Outcome

    settings, store = stage.settings, stage.store
    chosen = settings.dpo.early_stopping
    held_out = _ranked(store, "held_out").drop_duplicates("group_id").head(chosen.prompts)
    prompts = held_out.rename(columns={"group_id": "id"}).assign(reference=None)
    prompts = prompts[list(EVALUATION_PROMPTS.columns)].reset_index(drop=True)

    def compare(now: "Checkpoint", before: "Checkpoint") -> "Outcome":
        purpose = f"early_stopping/{name}"
        result = win_rate(now, before, prompts, settings, store, stage.engine, stage.progress, purpose)
        stage.log.info("%s against %s: win rate %.1f %%", now.name, before.name, 100 * result)
        # An engine that outlives its use would stand in the training's way.
        release_engines()
        return Outcome(result < chosen.min_win_rate, {WIN_RATE: result})

    return compare


def _by_signs(stage: Stage, name: str, entering: "Checkpoint") -> "Compare":
    from srlm_pipeline.training.cost import cost_of
    from srlm_pipeline.training.early_stopping import Outcome

    measure, dpo = _development(stage, name), stage.settings.dpo
    known: list[DevelopmentFigures] = []

    def compare(now: "Checkpoint", _: "Checkpoint") -> "Outcome":
        # At the first look: where a training is taken up behind its last one, nothing has to be measured.
        known.extend([] if known else [measure(entering)])
        cost = cost_of(measure(now), known[0], dpo.nats_tolerance)
        told = cost.figures()
        stage.log.info("%s: unfit replies %.1f %%, %.3f nats per token", now.name, 100 * cost.unfit, cost.nats)
        return Outcome(not cost.tolerable, {f"early_stopping/{figure}": value for figure, value in told.items()})

    return compare
