"""Initialisation: data, the SFT baseline (M0 on IFT), judging data (EFT), and the seed model M1 (IFT + EFT)."""

from dataclasses import replace

import dagster as dg
import pandas as pd

from srlm_pipeline.assets.results import histogram, model_result, table_digest, table_result
from srlm_pipeline.assets.stage import Stage, srlm_asset
from srlm_pipeline.assets.trained import save_trained, training_facts, training_job, warn_of_length
from srlm_pipeline.config import Settings
from srlm_pipeline.data.loaders import LoadedTable, Source, source_digest
from srlm_pipeline.models.checkpoint import COPY_OF, Checkpoint
from srlm_pipeline.reads import Reads
from srlm_pipeline.resources.project import definition_settings
from srlm_pipeline.store import SFT_BASELINE, STARTING_POINTS, model_contents, model_name
from srlm_pipeline.tables import EFT

M1 = model_name(1)
# By name: the baselines' assets stand below these.
START = STARTING_POINTS.get(definition_settings().baselines.start_from)


# Either of these two asks whether the other one has a prompt as well.
TRAINING_DATA = ("data.ift", "data.ranked_replies", "data.bad_rows", "data.include_unreviewed", "data.ranked_share")
# With other types a training is another one.
MODEL = ("model", "model.dtype", "model.thinking.trained")


def _training_files(settings: Settings) -> list[str]:
    return [source_digest(settings.data, "ift", "ranked_replies")]


def base_contents(settings: Settings) -> list[str]:
    """Return what tells whether the base model's weights were replaced."""
    return [model_contents(settings.base_model)]


@srlm_asset(
    Reads((*TRAINING_DATA, "data.ift_limit"), contents=_training_files),
    group="seed",
    kinds={"pandas"},
    compute=False,
    tracked=False,
)
def ift_dataset(stage: Stage) -> dg.MaterializeResult[pd.DataFrame]:
    """Instruction fine-tuning data: prompts with good responses."""
    from srlm_pipeline.data.loaders import load_instructions

    loaded = load_instructions(stage.settings.data)
    words = loaded.table["response"].str.split().str.len()
    metadata = {
        "kinds": loaded.table["kind"].nunique(),
        "median_response_words": float(words.median()),
        **_not_used(stage, "ift", loaded),
    }
    return table_result(loaded.table, metadata)


@srlm_asset(
    Reads((*TRAINING_DATA, "data.held_out_fraction", "data.ranked_limit"), contents=_training_files),
    group="seed",
    kinds={"pandas"},
    compute=False,
    tracked=False,
)
def ranked_replies(stage: Stage) -> dg.MaterializeResult[pd.DataFrame]:
    """Prompts with human-ranked replies, split by prompt: one part teaches judging, the other measures it."""
    from srlm_pipeline.data.loaders import load_ranked_replies

    loaded = load_ranked_replies(stage.settings.data)
    groups = loaded.table.drop_duplicates("group_id")["split"].value_counts()
    metadata = {
        "train_prompts": int(groups["train"]),
        "held_out_prompts": int(groups["held_out"]),
        **_not_used(stage, "ranked_replies", loaded),
    }
    return table_result(loaded.table, metadata, preview=["group_id", "split", "rank", "score", "prompt", "text"])


@srlm_asset(
    Reads(
        ("data.evaluation_prompts", "data.evaluation_limit", "data.bad_rows", "data.include_unreviewed"),
        contents=lambda settings: [source_digest(settings.data, "evaluation_prompts")],
    ),
    group="seed",
    kinds={"pandas"},
    compute=False,
    tracked=False,
)
def evaluation_prompts(stage: Stage) -> dg.MaterializeResult[pd.DataFrame]:
    """Prompts for head-to-head comparison; never trained on, never used as examples."""
    from srlm_pipeline.data.loaders import load_evaluation_prompts

    loaded = load_evaluation_prompts(stage.settings.data)
    not_used = _not_used(stage, "evaluation_prompts", loaded)
    return table_result(loaded.table, {"kinds": loaded.table["kind"].nunique(), **not_used})


def _not_used(stage: Stage, name: Source, loaded: LoadedTable) -> dict[str, object]:
    """Return what of a source is not used, for the metadata, and warn of text that nothing reads."""
    if loaded.unread:
        stage.log.warning(loaded.warning(name))
    return {"left_out": loaded.left_out, **({"unread_columns": list(loaded.unread)} if loaded.unread else {})}


def _sft_baseline(settings: Settings) -> tuple[str, ...]:
    learned = (*MODEL, "seed", "sft") if settings.sft.enabled else ("model.save_dtype", "sft.enabled")
    return ("base_model", *learned)


@srlm_asset(
    Reads(_sft_baseline, contents=base_contents),
    group="seed",
    kinds={"torch", "mlflow"},
    retries=True,
)
def sft_baseline(stage: Stage, ift_dataset: pd.DataFrame) -> dg.MaterializeResult:
    """The SFT baseline: the base model fine-tuned on instruction data alone; the base model itself without SFT."""
    from srlm_pipeline.training.sft import SftExample, train_sft

    settings = stage.settings
    base = stage.store.base_checkpoint(settings)
    if not settings.sft.enabled:
        return model_result(_as_it_is(stage, base), {"note": "sft.enabled is off: this is the base model"})
    examples = [SftExample(row.prompt, row.response) for row in ift_dataset.itertuples()]
    job = training_job(stage, SFT_BASELINE, base, "training the SFT baseline", table_digest(ift_dataset))
    trained = train_sft(job, examples, settings.sft)
    warn_of_length(stage, trained, "sft.max_length", settings.sft.max_length)
    saved = save_trained(stage, trained, SFT_BASELINE, base.digest, {"sft": settings.sft.model_dump()})
    stage.run.metrics({"final_loss": trained.final("loss")})
    return model_result(saved, training_facts(trained))


def _as_it_is(stage: Stage, base: Checkpoint) -> Checkpoint:
    """Save the base model as the SFT baseline."""
    from srlm_pipeline.models.checkpoint import copy_checkpoint, save_checkpoint
    from srlm_pipeline.models.loading import load_model

    folder, settings = stage.store.model_folder(SFT_BASELINE), stage.settings.model
    if base.path.is_dir():
        return copy_checkpoint(base, folder, SFT_BASELINE)
    # From the hub only what is needed is loaded.
    loaded = load_model(base.path, settings.model_copy(update={"device": "cpu"}), dtype=settings.save_dtype)
    return save_checkpoint(loaded, folder, SFT_BASELINE, base.digest, {COPY_OF: base.digest}, settings.save_dtype)


def _judging_data(settings: Settings) -> tuple[str, ...]:
    # Judgements from the data file owe nothing to the judge's settings.
    own = ("judge", "model.thinking") if settings.eft.targets == "self" else ()
    negatives = ("eft.mismatched_negatives", "eft.corrupted_negatives")
    return ("eft.enabled", "eft.targets", "eft.max_score_share", *negatives, "seed", *own)


@srlm_asset(
    Reads(_judging_data, verdicts=("eft.min_prompts",)),
    group="seed",
    kinds={"pandas"},
    tracked=False,
    deps=[sft_baseline],
)
def eft_dataset(stage: Stage, ranked_replies: pd.DataFrame) -> dg.MaterializeResult[pd.DataFrame]:
    """Evaluation fine-tuning data: judgements of the training replies whose order agrees with the human ranking."""
    from srlm_pipeline.generation.journal import fingerprint
    from srlm_pipeline.judging.eft import (
        eft_from_dataset,
        eft_from_judgements,
        eft_from_ranks,
        require_enough,
        thin,
    )
    from srlm_pipeline.judging.judges import JudgeItem, SampledJudge
    from srlm_pipeline.judging.negatives import with_negatives

    settings = stage.settings
    train = ranked_replies[ranked_replies["split"] == "train"]
    if not settings.eft.enabled:
        return table_result(pd.DataFrame(columns=list(EFT.columns)), {"note": "switched off by eft.enabled"})
    if settings.eft.targets == "dataset":
        built = eft_from_dataset(train)
    elif settings.eft.targets == "ranks":
        built = eft_from_ranks(train)
    else:
        baseline = stage.store.checkpoint(SFT_BASELINE)
        judge = SampledJudge(stage.engine(baseline, settings.judge.batch_size), settings.judge, settings.seed, "eft")
        # Replies of equal rank are told apart by what they say.
        items = [JudgeItem(fingerprint(r.prompt, r.text), r.prompt, r.text) for r in train.itertuples()]
        built = eft_from_judgements(train, judge.judge(items, stage.progress, stage.journal("eft")))
        require_enough(built, settings.eft.min_prompts)
    if settings.eft.max_score_share is not None:
        built = thin(built, settings.eft.max_score_share, settings.seed)
    built = with_negatives(built, settings.eft.mismatched_negatives, settings.eft.corrupted_negatives, settings.seed)
    metadata = {
        "prompts": built.n_groups,
        "prompts_kept": built.n_kept,
        "dropped": built.dropped,
        "thinned": built.n_thinned,
        "mismatched_negatives": built.n_mismatched,
        "corrupted_negatives": built.n_corrupted,
        "score_histogram": histogram(built.table["score"], "scores of judging data"),
    }
    return table_result(built.table, metadata, preview=["group_id", "rank", "score", "judgement", "text"])


def _seed_model(settings: Settings) -> tuple[str, ...]:
    sft = "sft" if settings.sft.enabled else "sft.enabled"
    return ("base_model", *MODEL, "seed", sft, "eft", "judge.taught_rubric", "baselines.start_from")


@srlm_asset(
    Reads(_seed_model, contents=base_contents),
    group="seed",
    kinds={"torch", "mlflow"},
    retries=True,
    deps=[sft_baseline, *([dg.AssetKey(START)] if START else [])],
)
def seed_model(stage: Stage, ift_dataset: pd.DataFrame, eft_dataset: pd.DataFrame) -> dg.MaterializeResult:
    """M1: the base model fine-tuned on instruction and judging data. It can answer, and it can judge."""
    from srlm_pipeline.training.seed import train_seed_model

    settings, store = stage.settings, stage.store
    start = store.starting_point(settings)
    base, baseline = start or store.base_checkpoint(settings), start or store.checkpoint(SFT_BASELINE)
    # A baseline to start from can answer already.
    ift = ift_dataset.iloc[:0] if start else ift_dataset
    inputs = (baseline.digest, table_digest(ift_dataset), table_digest(eft_dataset))
    job = training_job(stage, M1, base, f"training {M1}", *inputs)
    trained = train_seed_model(job, ift, eft_dataset, settings, baseline.path, retained=ift_dataset)
    parent = (base if trained.sft else baseline).digest
    whole = replace(trained.final, history=trained.history)
    saved = save_trained(stage, whole, M1, parent, {"eft": settings.eft.model_dump()})
    stage.run.metrics({"final_loss": trained.final.final("loss")})
    if trained.sft:
        warn_of_length(stage, trained.sft, "sft.max_length", settings.sft.max_length)
    facts = {
        "judging_examples": len(eft_dataset),
        "ranking_stage": "yes" if trained.ranking else "no",
        **({"judgements_too_long": trained.sft.n_left_out} if trained.sft and trained.sft.n_left_out else {}),
        **training_facts(trained.final),
    }
    return model_result(saved, facts)
