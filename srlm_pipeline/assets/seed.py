"""Initialisation: data, the SFT baseline (M0 on IFT), judging data (EFT), and the seed model M1 (IFT + EFT)."""

import shutil
from typing import TYPE_CHECKING

import dagster as dg
import pandas as pd

from srlm_pipeline.assets.common import (
    Stopwatch,
    histogram,
    mlflow_link,
    model_result,
    srlm_asset,
    table_digest,
    table_result,
)
from srlm_pipeline.config import Settings
from srlm_pipeline.data.loaders import source_digest
from srlm_pipeline.reads import Reads
from srlm_pipeline.resources.project import ProjectResource, definition_settings
from srlm_pipeline.store import SFT_BASELINE, STARTING_POINTS, model_contents, model_name
from srlm_pipeline.tables import EFT

if TYPE_CHECKING:
    from srlm_pipeline.training.common import TrainingRun

M1 = model_name(1)
# By name: the baselines' assets stand below these.
START = STARTING_POINTS.get(definition_settings().baselines.start_from)


# Either of these two asks whether the other one has a prompt as well.
TRAINING_DATA = ("data.ift", "data.ranked_replies", "data.bad_rows", "data.include_unreviewed", "data.ranked_share")
# With other types a training is another one.
MODEL = ("model", "model.dtype")


def _training_files(settings: Settings) -> list[str]:
    return [source_digest(settings.data, "ift", "ranked_replies")]


def base_contents(settings: Settings) -> list[str]:
    """Return what tells whether the base model's weights were replaced."""
    return [model_contents(settings.base_model)]


@srlm_asset(
    Reads((*TRAINING_DATA, "data.ift_limit"), contents=_training_files), group="seed", kinds={"pandas"}, compute=False
)
def ift_dataset(context: dg.AssetExecutionContext, project: ProjectResource) -> dg.MaterializeResult[pd.DataFrame]:
    """Instruction fine-tuning data: prompts with good responses."""
    from srlm_pipeline.data.loaders import load_instructions

    loaded = load_instructions(project.settings.data)
    words = loaded.table["response"].str.split().str.len()
    metadata = {
        "kinds": loaded.table["kind"].nunique(),
        "median_response_words": float(words.median()),
        "left_out": loaded.left_out,
    }
    return table_result(loaded.table, metadata)


@srlm_asset(
    Reads((*TRAINING_DATA, "data.held_out_fraction", "data.ranked_limit"), contents=_training_files),
    group="seed",
    kinds={"pandas"},
    compute=False,
)
def ranked_replies(context: dg.AssetExecutionContext, project: ProjectResource) -> dg.MaterializeResult[pd.DataFrame]:
    """Prompts with human-ranked replies, split by prompt: one part teaches judging, the other measures it."""
    from srlm_pipeline.data.loaders import load_ranked_replies

    loaded = load_ranked_replies(project.settings.data)
    groups = loaded.table.drop_duplicates("group_id")["split"].value_counts()
    metadata = {
        "train_prompts": int(groups["train"]),
        "held_out_prompts": int(groups["held_out"]),
        "left_out": loaded.left_out,
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
)
def evaluation_prompts(
    context: dg.AssetExecutionContext, project: ProjectResource
) -> dg.MaterializeResult[pd.DataFrame]:
    """Prompts for head-to-head comparison; never trained on, never used as examples."""
    from srlm_pipeline.data.loaders import load_evaluation_prompts

    loaded = load_evaluation_prompts(project.settings.data)
    return table_result(loaded.table, {"kinds": loaded.table["kind"].nunique(), "left_out": loaded.left_out})


_SFT = Reads(("base_model", *MODEL, "seed", "sft"), contents=base_contents)


@srlm_asset(_SFT, group="seed", kinds={"torch", "mlflow"}, retries=True)
def sft_baseline(
    context: dg.AssetExecutionContext, project: ProjectResource, ift_dataset: pd.DataFrame
) -> dg.MaterializeResult:
    """The SFT baseline: the base model fine-tuned on instruction data alone."""
    from srlm_pipeline.models.checkpoint import save_checkpoint
    from srlm_pipeline.training.sft import SftExample, train_sft

    settings, store = project.settings, project.store
    watch = Stopwatch()
    base = store.base_checkpoint(settings)
    with project.tracked(context) as run:
        trained = train_sft(
            base.path,
            [SftExample(row.prompt, row.response) for row in ift_dataset.itertuples()],
            settings.sft,
            settings.model,
            settings.seed,
            store.work_folder(SFT_BASELINE, _SFT.fingerprint(settings), base.digest, table_digest(ift_dataset)),
            "training the SFT baseline",
            project.progress(context),
        )
        run.history(list(trained.history))
        saved = save_checkpoint(
            trained.loaded,
            store.model_folder(SFT_BASELINE),
            SFT_BASELINE,
            base.digest,
            {"dagster_run": context.run_id, "mlflow_run": run.run_id, "sft": settings.sft.model_dump()},
            settings.model.save_dtype,
        )
        run.metrics({"seconds": watch.seconds, "final_loss": trained.final("loss")})
    return model_result(saved, {**training_facts(trained, watch), **mlflow_link(run.url)})


def _judging_data(settings: Settings) -> tuple[str, ...]:
    # Judgements from the data file owe nothing to the judge's settings.
    own = ("judge",) if settings.eft.targets == "self" else ()
    return ("eft.enabled", "eft.targets", "eft.max_score_share", "eft.strangers", "eft.spoiled", "seed", *own)


@srlm_asset(
    Reads(_judging_data, verdicts=("eft.min_prompts",)),
    group="seed",
    kinds={"pandas"},
    deps=[sft_baseline],
)
def eft_dataset(
    context: dg.AssetExecutionContext, project: ProjectResource, ranked_replies: pd.DataFrame
) -> dg.MaterializeResult[pd.DataFrame]:
    """Evaluation fine-tuning data: judgements of the training replies whose order agrees with the human ranking."""
    from srlm_pipeline.generation.journal import Journal, fingerprint
    from srlm_pipeline.judging.contrasts import with_contrasts
    from srlm_pipeline.judging.eft import (
        eft_from_dataset,
        eft_from_judgements,
        eft_from_ranks,
        require_enough,
        thin,
    )
    from srlm_pipeline.judging.judges import JudgeItem, SampledJudge

    settings, store = project.settings, project.store
    watch = Stopwatch()
    train = ranked_replies[ranked_replies["split"] == "train"]
    if not settings.eft.enabled:
        return table_result(pd.DataFrame(columns=list(EFT.columns)), {"note": "switched off by eft.enabled"})
    if settings.eft.targets == "dataset":
        built = eft_from_dataset(train)
    elif settings.eft.targets == "ranks":
        built = eft_from_ranks(train)
    else:
        baseline = store.checkpoint(SFT_BASELINE)
        judge = SampledJudge(project.engine(baseline, settings.judge.batch_size), settings.judge, settings.seed, "eft")
        # Replies of equal rank are told apart by what they say.
        items = [JudgeItem(fingerprint(r.prompt, r.text), r.prompt, r.text) for r in train.itertuples()]
        journal = Journal(store.journal_folder("eft"))
        built = eft_from_judgements(train, judge.judge(items, project.progress(context), journal))
        journal.prune()
        require_enough(built, settings.eft.min_prompts)
    if settings.eft.max_score_share is not None:
        built = thin(built, settings.eft.max_score_share, settings.seed)
    built = with_contrasts(built, settings.eft.strangers, settings.eft.spoiled, settings.seed)
    metadata = {
        "prompts": built.n_groups,
        "prompts_kept": built.n_kept,
        "dropped": built.dropped,
        "thinned": built.n_thinned,
        "strangers": built.n_strangers,
        "spoiled": built.n_spoiled,
        "score_histogram": histogram(built.table["score"], "scores of judging data"),
        "seconds": watch.seconds,
    }
    return table_result(built.table, metadata, preview=["group_id", "rank", "score", "judgement", "text"])


_SEED_MODEL = Reads(
    ("base_model", *MODEL, "seed", "sft", "eft", "judge.rubric", "baselines.start_from"), contents=base_contents
)


@srlm_asset(
    _SEED_MODEL,
    group="seed",
    kinds={"torch", "mlflow"},
    retries=True,
    deps=[sft_baseline, *([dg.AssetKey(START)] if START else [])],
)
def seed_model(
    context: dg.AssetExecutionContext, project: ProjectResource, ift_dataset: pd.DataFrame, eft_dataset: pd.DataFrame
) -> dg.MaterializeResult:
    """M1: the base model fine-tuned on instruction and judging data. It can answer, and it can judge."""
    from srlm_pipeline.models.checkpoint import save_checkpoint
    from srlm_pipeline.training.seed import SeedTraining, train_seed_model

    settings, store = project.settings, project.store
    watch = Stopwatch()
    start = store.starting_point(settings)
    base, baseline = start or store.base_checkpoint(settings), start or store.checkpoint(SFT_BASELINE)
    # A baseline to start from can answer already.
    ift = ift_dataset.iloc[:0] if start else ift_dataset
    work = store.work_folder(
        M1,
        _SEED_MODEL.fingerprint(settings),
        base.digest,
        baseline.digest,
        table_digest(ift),
        table_digest(eft_dataset),
    )
    with project.tracked(context) as run:
        trained: SeedTraining = train_seed_model(
            base.path,
            ift,
            eft_dataset,
            settings,
            work,
            project.progress(context),
            sft_baseline=baseline.path,
        )
        if trained.sft is not None:
            run.history(list(trained.sft.history))
        if trained.ranking is not None:
            run.history(
                [{f"ranking_{k}" if k != "step" else k: v for k, v in e.items()} for e in trained.ranking.history]
            )
        saved = save_checkpoint(
            trained.final.loaded,
            store.model_folder(M1),
            M1,
            (base if trained.sft else baseline).digest,
            {"dagster_run": context.run_id, "mlflow_run": run.run_id, "eft": settings.eft.model_dump()},
            settings.model.save_dtype,
        )
        shutil.rmtree(work, ignore_errors=True)
        run.metrics({"seconds": watch.seconds, "final_loss": trained.final.final("loss")})
    if trained.sft and trained.sft.n_left_out:
        context.log.warning(
            f"{trained.sft.n_left_out} of {trained.sft.n_left_out + trained.sft.n_examples} examples were left out: "
            f"they do not fit into sft.max_length ({settings.sft.max_length} tokens)"
        )
    facts = {
        "judging_examples": len(eft_dataset),
        "ranking_stage": "yes" if trained.ranking else "no",
        **({"judgements_too_long": trained.sft.n_left_out} if trained.sft and trained.sft.n_left_out else {}),
        **training_facts(trained.final, watch),
    }
    return model_result(saved, {**facts, **mlflow_link(run.url)})


def training_facts(trained: "TrainingRun", watch: Stopwatch) -> dict[str, float | int]:
    """Return what a training run says of itself, for metadata."""
    facts: dict[str, float | int] = {"examples": trained.n_examples, "seconds": round(watch.seconds, 2)}
    if trained.n_left_out:
        facts["too_long"] = trained.n_left_out
    loss = trained.final("loss")
    if loss is not None:
        facts["final_loss"] = loss
    return facts
