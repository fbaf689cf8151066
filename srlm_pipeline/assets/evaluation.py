"""Matches: each new model against whoever came before it and against other models' answers."""

from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from srlm_pipeline.assets.assessment import assessment as model_assessment
from srlm_pipeline.assets.assessment import assessments, seed_assessment
from srlm_pipeline.assets.entering import champion, policy
from srlm_pipeline.assets.measured import ExternalCalls, arbiter_contents, arbiters_read
from srlm_pipeline.assets.registry import register, seed_entry
from srlm_pipeline.assets.results import check, table_result
from srlm_pipeline.assets.seed import M1, seed_model, sft_baseline
from srlm_pipeline.assets.stage import Stage, srlm_asset
from srlm_pipeline.errors import TableError
from srlm_pipeline.evaluation.assessment import Assessment
from srlm_pipeline.evaluation.matches import length_ratio
from srlm_pipeline.evaluation.measuring import arbiter_agreement, match
from srlm_pipeline.evaluation.opening import open_arbiter
from srlm_pipeline.evaluation.opponents import opponents_of
from srlm_pipeline.evaluation.other_answers import OtherAnswers, read_other_answers, require_names
from srlm_pipeline.files import digest_existing
from srlm_pipeline.prompting.filters import NoveltyIndex
from srlm_pipeline.reads import Reads
from srlm_pipeline.store import BASE, model_name

OVERLAP_ROUGE_L = 0.7


@srlm_asset(
    Reads(lambda settings: (*arbiters_read(settings), "base_model"), contents=arbiter_contents),
    group="seed",
    kinds={"torch", "mlflow"},
    deps=[sft_baseline, seed_model, seed_assessment],
    check_specs=[
        dg.AssetCheckSpec("evaluation_prompt_overlap", asset="seed_evaluation"),
        dg.AssetCheckSpec("arbiter_agrees_with_humans", asset="seed_evaluation"),
    ],
)
def seed_evaluation(
    stage: Stage, ift_dataset: pd.DataFrame, ranked_replies: pd.DataFrame, evaluation_prompts: pd.DataFrame
) -> dg.MaterializeResult[pd.DataFrame]:
    """Where everything starts: how far the arbiters can be trusted, and M1 against base model and SFT baseline."""
    settings, store = stage.settings, stage.store
    held_out = ranked_replies[ranked_replies["split"] == "held_out"]
    opponents = opponents_of(store, 0)
    found = assessments(stage, [*(o.name for o in opponents), M1])
    replies = {model: assessed.evaluation_replies() for model, assessed in found.items()}
    calls, arbiter = ExternalCalls(stage), open_arbiter(settings, store, stage.engine)
    agreement = arbiter_agreement(arbiter, held_out, stage.progress, settings.evaluation.tie_margin)
    stage.run.metrics({f"arbiter/{k}": v for k, v in agreement.items()})
    metadata: dict[str, Any] = {f"arbiter_{k}": v for k, v in agreement.items()}
    tables: list[pd.DataFrame] = []
    for opponent in opponents:
        table, outcome = match(replies[M1], replies[opponent.name], opponent.name, arbiter, settings, stage.progress)
        tables.append(table)
        for role in opponent.roles:
            stage.curve(win_metrics(role, outcome.metrics()))
            metadata |= {f"M1_vs_{role}_{k}": v for k, v in outcome.metrics().items()}
    metadata |= calls.told()
    register(stage, seed_entry(stage.store))
    trained_on = NoveltyIndex([*ift_dataset["prompt"], *ranked_replies["prompt"].unique()])
    overlapping = [p for p in evaluation_prompts["prompt"] if trained_on.nearest(p) >= OVERLAP_ROUGE_L]
    checks = [
        check(
            "evaluation_prompt_overlap",
            not overlapping,
            f"{len(overlapping)} evaluation prompts are too like training prompts"
            + (f", e.g. {overlapping[0]!r}" if overlapping else ""),
        ),
        check(
            "arbiter_agrees_with_humans",
            agreement["agreement"] > 0.5,
            f"the arbiter agrees with {agreement['agreement']:.1%} of the human preferences that it decides",
            agreement=agreement["agreement"],
        ),
    ]
    return table_result(pd.concat(tables, ignore_index=True), metadata, checks)


@srlm_asset(
    Reads(
        lambda settings: (*arbiters_read(settings), "base_model", "evaluation.other_answers"),
        contents=lambda settings: [*arbiter_contents(settings), digest_existing(settings.evaluation.other_answers)],
    ),
    group="iteration",
    kinds={"torch", "pandas", "mlflow"},
    per_iteration=True,
    deps=[model_assessment, policy, champion, seed_assessment, seed_model],
)
def win_rates(stage: Stage, evaluation_prompts: pd.DataFrame) -> dg.MaterializeResult[pd.DataFrame]:
    """M_{t+1} head to head against base model, SFT baseline, M_t, the champion and other models' answers."""
    settings, store = stage.settings, stage.store
    name, opponents = model_name(stage.iteration + 1), opponents_of(store, stage.iteration)
    found = assessments(stage, [*(o.name for o in opponents), name])
    replies = {model: assessed.evaluation_replies() for model, assessed in found.items()}
    mine = replies[name]
    calls, arbiter = ExternalCalls(stage), open_arbiter(settings, store, stage.engine)
    metadata: dict[str, Any] = {}
    tables: list[pd.DataFrame] = []
    position_bias: dict[str, float] = {}
    for opponent in opponents:
        table, outcome = match(mine, replies[opponent.name], opponent.name, arbiter, settings, stage.progress)
        tables.append(table)
        position_bias[opponent.name] = outcome.position_bias
        growth = length_ratio(mine, replies[opponent.name])
        for role in opponent.roles:
            stage.curve(win_metrics(role, outcome.metrics()))
            metadata |= {f"win_rate_vs_{role}": outcome.win_rate, f"length_vs_{role}": growth}
            metadata |= {f"vs_{role}_{k}": v for k, v in outcome.metrics().items() if k != "win_rate"}
    for other in _other_answers(stage, evaluation_prompts):
        table, outcome = match(other.met_by(mine), other.replies, other.model, arbiter, settings, stage.progress)
        tables.append(table)
        position_bias[other.model] = outcome.position_bias
        stage.curve(win_metrics(other.model, outcome.metrics()))
        metadata |= {f"vs_{other.model}_{k}": v for k, v in outcome.metrics().items()}
    metadata |= {
        "digest": found[name].digest,
        "opponents": {o.name: o.description for o in opponents},
        "position_bias": position_bias,
        **calls.told(),
    }
    return table_result(pd.concat(tables, ignore_index=True), metadata)


def win_metrics(label: str, figures: dict[str, float]) -> dict[str, float]:
    """Return a match's figures under their names in MLflow, where ``1_win_rate/vs_baseline`` comes before all others.

    The rest of a match, ``matches/vs_baseline_low`` and so on, is not drawn among them.
    """
    return {
        f"1_win_rate/vs_{label}" if name == "win_rate" else f"matches/vs_{label}_{name}": value
        for name, value in figures.items()
    }


def all_met(
    stage: Stage, iterations: list[int], prompts: pd.DataFrame
) -> tuple[dict[str, Assessment], dict[str, pd.DataFrame]]:
    """Return what was measured of the seed's models, the iterations' models and all that these met; others' answers.

    Raises:
        TableError: If one of them was not assessed, or they were not asked the same.
    """
    answers = _other_answers(stage, prompts)
    return assessments(stage, _taking_part(stage, iterations)), {a.model: a.replies for a in answers}


def comparable_iterations(stage: Stage, iteration: int, others: list[int]) -> list[int]:
    """Return an iteration and those others whose models were asked the same, in order.

    After the prompts were changed, what was measured before says nothing beside what is measured now.
    """

    def comparable(other: int) -> bool:
        try:
            assessments(stage, _taking_part(stage, [other, iteration]))
        except TableError:
            return False
        return True

    return [other for other in others if other == iteration or comparable(other)]


def _taking_part(stage: Stage, iterations: list[int]) -> list[str]:
    met = [o.name for iteration in iterations for o in opponents_of(stage.store, iteration)]
    return [BASE, stage.store.baseline, M1, *met, *(model_name(iteration + 1) for iteration in iterations)]


def _other_answers(stage: Stage, prompts: pd.DataFrame) -> list[OtherAnswers]:
    """Read other models' answers from their files; lengths in tokens are counted as M1 does."""
    settings, store = stage.settings, stage.store
    paths = [Path(path) for path in settings.evaluation.other_answers]
    if not require_names(paths):
        return []
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(store.checkpoint(M1).path)
    return [
        answers
        for path in paths
        for answers in read_other_answers(path, prompts, lambda text: len(tokenizer.encode(text)))
    ]
