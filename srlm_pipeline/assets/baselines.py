"""What self-rewarding is compared with: classic RLHF and DPO on human-ranked pairs, both from the SFT baseline.

Neither job of the loop needs them, unless `baselines.start_from` names one as the model that M1 is trained from.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import dagster as dg
import pandas as pd

from srlm_pipeline.assets.automation import LOOP_TAG
from srlm_pipeline.assets.measured import arbiter_contents, arbiters_read
from srlm_pipeline.assets.results import check, model_result, table_digest
from srlm_pipeline.assets.seed import M1, MODEL, seed_model, sft_baseline
from srlm_pipeline.assets.stage import Stage, srlm_asset
from srlm_pipeline.assets.trained import dpo_facts, save_trained, training_facts, training_job
from srlm_pipeline.assets.training import iteration_model, margins_moved
from srlm_pipeline.checks.text_measures import describe_replies
from srlm_pipeline.errors import EmptyDataError
from srlm_pipeline.evaluation.judge_accuracy import measure_judge
from srlm_pipeline.evaluation.matches import length_ratio
from srlm_pipeline.evaluation.measuring import evaluation_replies, judge_ranked_replies, match
from srlm_pipeline.evaluation.opening import open_arbiter
from srlm_pipeline.models.checkpoint import is_checkpoint
from srlm_pipeline.reads import Reads
from srlm_pipeline.store import (
    HUMAN_DPO_MODEL,
    REWARD_MODEL,
    RLHF_MODEL,
    SFT_BASELINE,
    ProjectStore,
    model_name,
)
from srlm_pipeline.tables import JUDGE_ACCURACY

GROUP = "baselines"
# What a judge does beside ordering replies has no meaning for rewards.
RANKING_FIGURES = (
    "pairwise_accuracy", "pairwise_low", "pairwise_high", "length_baseline", "length_balanced_accuracy",
    "accuracy_better_is_longer", "accuracy_better_is_shorter", "exact_match", "spearman", "kendall", "n_pairs",
)  # fmt: skip
# Single steps answer different prompts: their mean rewards go up and down.
SHARE_OF_STEPS = 0.2


@srlm_asset(
    Reads(("baselines.reward_model", *MODEL, "seed")),
    group=GROUP,
    kinds={"torch", "mlflow"},
    retries=True,
    deps=[sft_baseline],
    check_specs=[dg.AssetCheckSpec("reward_beats_length", asset="reward_model")],
)
def reward_model(stage: Stage, ranked_replies: pd.DataFrame) -> dg.MaterializeResult:
    """A reward for each reply: the SFT baseline with a scalar head, trained on the human rankings, then frozen."""
    from srlm_pipeline.training.human_pairs import all_ordered_pairs
    from srlm_pipeline.training.reward_model import train_reward_model

    baseline = stage.store.checkpoint(SFT_BASELINE)
    train, held_out = (ranked_replies[ranked_replies["split"] == split] for split in ("train", "held_out"))
    job = training_job(stage, REWARD_MODEL, baseline, "training the reward model", table_digest(train))
    trained = train_reward_model(job, all_ordered_pairs(train), stage.settings.baselines.reward_model)
    saved = save_trained(stage, trained, REWARD_MODEL, baseline.digest, {"pairs": trained.n_examples})
    accuracy = _ranking_figures(_reward_accuracy(stage, held_out))
    stage.run.metrics({f"judge/{name}": value for name, value in accuracy.items()})
    balanced = accuracy.get("length_balanced_accuracy")
    checks = [
        check(
            "reward_beats_length",
            balanced is not None and balanced > 0.5,
            "length-balanced accuracy on held-out rankings "
            + ("could not be measured" if balanced is None else f"{balanced:.1%}; rewarding length alone reaches 50 %"),
        )
    ]
    return model_result(saved, {**accuracy, **training_facts(trained)}, checks)


@srlm_asset(
    Reads(("baselines.rlhf", *MODEL, "seed")),
    group=GROUP,
    kinds={"torch", "mlflow"},
    retries=True,
    deps=[sft_baseline, reward_model],
    check_specs=[dg.AssetCheckSpec("reward_rose", asset="rlhf_model")],
)
def rlhf_model(stage: Stage, ift_dataset: pd.DataFrame) -> dg.MaterializeResult:
    """Classic RLHF: the SFT baseline trained with RLOO against the frozen reward model, on the IFT prompts."""
    from srlm_pipeline.training.reward_model import open_reward_model
    from srlm_pipeline.training.rlhf import train_rlhf

    settings, store = stage.settings, stage.store
    baseline, frozen = store.checkpoint(SFT_BASELINE), store.checkpoint(REWARD_MODEL)
    inputs = (frozen.digest, table_digest(ift_dataset))
    job = training_job(stage, RLHF_MODEL, baseline, "training with RLOO", *inputs)
    open_reward = partial(open_reward_model, frozen.path, settings.baselines.reward_model)
    prompts = ift_dataset["prompt"].drop_duplicates().tolist()
    trained = train_rlhf(job, prompts, open_reward, settings.baselines.rlhf)
    lineage = {"reward_model": frozen.digest, "rlhf": settings.baselines.rlhf.model_dump()}
    saved = save_trained(stage, trained, RLHF_MODEL, baseline.digest, lineage)
    rewards = [entry["reward"] for entry in trained.history if "reward" in entry]
    share = max(1, round(len(rewards) * SHARE_OF_STEPS))
    first, last = (sum(part) / share for part in (rewards[:share], rewards[-share:]))
    facts = {
        "steps": len(rewards),
        "reward_first": first,
        "reward_last": last,
        "kl_last": trained.final("kl"),
        "reply_tokens_last": trained.final("completions/mean_length"),
        "cut_off_share_last": trained.final("completions/clipped_ratio"),
        "seconds_per_step": trained.final("step_time"),
    }
    stage.run.metrics(facts)
    checks = [
        check(
            "reward_rose",
            last > first,
            f"the mean reward went from {first:.3f} in the first steps to {last:.3f} in the last"
            + ("" if last > first else ": nothing was learned; raise baselines.rlhf.learning_rate or max_steps"),
            rise=last - first,
        )
    ]
    shown = {name: value for name, value in facts.items() if value is not None}
    return model_result(saved, {**shown, **training_facts(trained)}, checks)


@srlm_asset(
    Reads(("dpo", *MODEL, "seed")),
    group=GROUP,
    kinds={"torch", "mlflow"},
    retries=True,
    deps=[sft_baseline],
    check_specs=[dg.AssetCheckSpec("margins_moved", asset="human_dpo_model")],
)
def human_dpo_model(stage: Stage, ranked_replies: pd.DataFrame) -> dg.MaterializeResult:
    """DPO on human preferences: the SFT baseline trained on each prompt's best reply against its worst."""
    from srlm_pipeline.training.dpo import train_dpo
    from srlm_pipeline.training.human_pairs import best_worst_pairs

    settings = stage.settings
    baseline = stage.store.checkpoint(SFT_BASELINE)
    train = ranked_replies[ranked_replies["split"] == "train"]
    description = "training with DPO on human pairs"
    job = training_job(stage, HUMAN_DPO_MODEL, baseline, description, table_digest(train))
    trained = train_dpo(job, best_worst_pairs(train), settings.dpo)
    moved = dpo_facts(trained, settings.dpo)
    lineage = {"pairs": trained.n_examples, "dpo": settings.dpo.model_dump(), **moved}
    saved = save_trained(stage, trained, HUMAN_DPO_MODEL, baseline.digest, lineage)
    margin = trained.final("rewards/margins")
    stage.run.metrics({"final_margin": margin})
    return model_result(saved, {**moved, **training_facts(trained)}, [margins_moved(margin)])


@srlm_asset(
    Reads(
        lambda settings: ("judge", "model.thinking", "evaluation.max_new_tokens", *arbiters_read(settings)),
        contents=arbiter_contents,
    ),
    group=GROUP,
    kinds={"torch", "mlflow"},
    deps=[reward_model, rlhf_model, human_dpo_model, sft_baseline, seed_model, iteration_model],
)
def baseline_comparison(
    stage: Stage, ranked_replies: pd.DataFrame, evaluation_prompts: pd.DataFrame
) -> dg.MaterializeResult:
    """Baselines head to head with the SFT baseline, M1, the loop's newest model and each other; how well each judges.

    Whatever has been trained takes part.
    """
    settings, store, progress = stage.settings, stage.store, stage.progress
    baselines = [name for name in (HUMAN_DPO_MODEL, RLHF_MODEL) if is_checkpoint(store.model_folder(name))]
    if not baselines:
        raise EmptyDataError(
            f"there is no baseline to compare: materialize {HUMAN_DPO_MODEL}, or {REWARD_MODEL} and {RLHF_MODEL}, first"
        )
    others = list(dict.fromkeys([SFT_BASELINE, M1, newest_model(store)]))
    held_out = ranked_replies[ranked_replies["split"] == "held_out"]
    judged: dict[str, pd.DataFrame] = {}
    replies: dict[str, pd.DataFrame] = {}
    for name in (*others, *baselines):
        model, limit = store.checkpoint(name), settings.evaluation.max_new_tokens
        judged[name] = judge_ranked_replies(model, held_out, settings, store, stage.engine, progress)
        replies[name] = evaluation_replies(
            model, evaluation_prompts, limit, settings, store, stage.engine, progress, "evaluation"
        )
    if is_checkpoint(store.model_folder(REWARD_MODEL)):
        judged[REWARD_MODEL] = _reward_accuracy(stage, held_out)
    arbiter = open_arbiter(settings, store, stage.engine)
    matches = [
        {
            "model": name,
            "opponent": opponent,
            **match(replies[name], replies[opponent], opponent, arbiter, settings, progress)[1].metrics(),
            "length_ratio": length_ratio(replies[name], replies[opponent]),
        }
        for place, name in enumerate(baselines)
        for opponent in (*others, *baselines[:place])
    ]
    models = [
        {
            "model": name,
            **{f"judge_{k}": v for k, v in _ranking_figures(table).items()},
            **(_described(replies[name]) if name in replies else {}),
        }
        for name, table in judged.items()
    ]
    for row in matches:
        stage.run.metrics(_named(row, f"{row['model']}/vs_{row['opponent']}_"))
    for row in models:
        stage.run.metrics(_named(row, f"{row['model']}/"))
    tables = {"matches": pd.DataFrame(matches), "models": pd.DataFrame(models)}
    for name, table in tables.items():
        stage.run.text(table.to_csv(index=False), f"{name}.csv")
    win_rates = {f"{row['model']}_win_rate_vs_{row['opponent']}": row["win_rate"] for row in matches}
    return dg.MaterializeResult(
        metadata={**{name: whole_table(table) for name, table in tables.items()}, **win_rates},
        data_version=dg.DataVersion("-".join(table_digest(table) for table in tables.values())),
    )


baselines_job = dg.define_asset_job(
    "baselines",
    selection=dg.AssetSelection.groups(GROUP),
    description="Reward model, RLHF and DPO on human pairs from the SFT baseline, compared with the loop's models.",
    tags={LOOP_TAG: "baselines"},
)


def newest_model(store: ProjectStore) -> str:
    """Return the name of the last model that the loop has made; M1 before the first iteration."""
    iteration = 1
    while is_checkpoint(store.model_folder(model_name(iteration + 1))):
        iteration += 1
    return model_name(iteration)


def whole_table(table: pd.DataFrame) -> dg.TableMetadataValue:
    """Return a small table with all its rows, as the UI shows it."""

    def cell(value: Any) -> str:
        if isinstance(value, str):
            return value
        return "" if pd.isna(value) else f"{value:.0f}" if float(value).is_integer() else f"{value:.3f}"

    return dg.MetadataValue.table(
        records=[dg.TableRecord({str(k): cell(v) for k, v in row.items()}) for row in table.to_dict("records")],
        schema=dg.TableSchema(columns=[dg.TableColumn(str(name)) for name in table.columns]),
    )


def _reward_accuracy(stage: Stage, ranked: pd.DataFrame) -> pd.DataFrame:
    """Return the frozen reward model's opinion of human-ranked replies as table `JUDGE_ACCURACY`."""
    from srlm_pipeline.training.reward_model import open_reward_model, reward_scores

    settings, model = stage.settings, stage.store.checkpoint(REWARD_MODEL)
    opened = open_reward_model(model.path, settings.baselines.reward_model, settings.model)
    rewards = opened.rewards(ranked["prompt"].tolist(), ranked["text"].tolist(), stage.progress)
    table = ranked.assign(model=REWARD_MODEL, n_characters=ranked["text"].str.len(), score=reward_scores(rewards))
    return table[list(JUDGE_ACCURACY.columns)]


def _ranking_figures(table: pd.DataFrame) -> dict[str, float]:
    figures = measure_judge(table).metrics()
    return {name: figures[name] for name in RANKING_FIGURES if name in figures}


def _described(replies: pd.DataFrame) -> dict[str, float]:
    return describe_replies(replies["reply"].tolist(), replies["n_tokens"].tolist())


def _named(row: dict[str, Any], prefix: str, labels: Sequence[str] = ("model", "opponent")) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in row.items() if name not in labels}
