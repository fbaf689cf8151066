"""The seed model M1: IFT + EFT, and where the settings ask for it the ranking objective (paper section 3.1.2)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from srlm_pipeline.config import Settings
from srlm_pipeline.files import replacing_folder
from srlm_pipeline.judging.rubric import Rubric, judge_prompt
from srlm_pipeline.models.checkpoint import require_finite
from srlm_pipeline.training.common import TrainingJob, TrainingRun
from srlm_pipeline.training.ranking import train_ranking
from srlm_pipeline.training.ranking_items import RankedExample
from srlm_pipeline.training.sft import SftExample, train_sft

# What every model folder has.
_CONFIG = "config.json"


@dataclass(frozen=True)
class SeedTraining:
    """The stages of M1's training.

    Attributes:
        final: The last stage, whose model is M1.
        sft: SFT on IFT and judgement texts; None where the SFT baseline took its place.
        ranking: The ranking stage, if there was one; its history follows.
    """

    final: TrainingRun
    sft: TrainingRun | None = None
    ranking: TrainingRun | None = None

    @property
    def history(self) -> list[dict[str, float]]:
        """The logs of all stages, the ranking stage's figures with its name before theirs."""
        ranking = self.ranking.history if self.ranking else []
        named = [{k if k == "step" else f"ranking_{k}": value for k, value in entry.items()} for entry in ranking]
        return [*(self.sft.history if self.sft else []), *named]


def train_seed_model(
    job: TrainingJob,
    ift: pd.DataFrame,
    eft: pd.DataFrame,
    settings: Settings,
    sft_baseline: Path | None = None,
    retained: pd.DataFrame | None = None,
) -> SeedTraining:
    """Train M1 from the base model, or from the SFT baseline where SFT would only make that one again.

    The SFT stage's model is kept in the work folder until the ranking stage is done, so that an interruption between
    the two costs neither.

    Args:
        job: Its source is the base model.
        ift: Table `INSTRUCTIONS`.
        eft: Table `EFT`; may be empty.
        settings: All settings; `sft`, `eft` and `judge.taught_rubric` are read.
        sft_baseline: What the same settings made of `ift` alone; without judgement texts training goes on from it.
        retained: Table `INSTRUCTIONS`, at whose replies `eft.retention` keeps the model; None: `ift`.

    Raises:
        EmptyDataError: If there is nothing to train on.
    """
    between = job.work / "after_sft"
    texts = judgement_examples(eft, settings.judge.taught_rubric, settings.eft.rationales_per_prompt, job.seed)
    groups = ranked_examples(eft) if settings.eft.enabled and settings.eft.ranking else []

    def stage(source: str | Path, part: str, purpose: str) -> TrainingJob:
        return replace(job, source=source, work=job.work / part, description=f"{job.description} {purpose}")

    def run_sft() -> TrainingRun:
        return train_sft(stage(job.source, "sft", "on IFT + EFT"), [*_replies(ift), *texts], settings.sft)

    made = sft_baseline if not texts else None
    if not groups and made:
        return SeedTraining(_load(made))
    if not groups:
        only = run_sft()
        return SeedTraining(only, only)
    sft = None if made else _kept(between, run_sft, job.work / "sft")
    to_rank = stage(made or between, "ranking", "to rank")
    replies = _replies(ift if retained is None else retained)
    ranking = train_ranking(to_rank, groups, settings.eft, settings.judge.taught_rubric, replies)
    return SeedTraining(ranking, sft, ranking)


def judgement_examples(eft: pd.DataFrame, rubric: Rubric, per_prompt: int | None, seed: int) -> list[SftExample]:
    """Return SFT examples that teach writing a judgement: rubric, prompt and reply, then rationale and score.

    Args:
        eft: Table `EFT`.
        rubric: Which wording.
        per_prompt: So many replies of each prompt, drawn at random; None for all.
        seed: Of the draw.
    """
    written = eft[eft["judgement"].notna()]
    if per_prompt is not None and len(written):
        random = np.random.default_rng(seed)
        shuffled = written.iloc[random.permutation(len(written))]
        written = shuffled.groupby("group_id", sort=True).head(per_prompt).sort_index()
    return [
        SftExample(judge_prompt(rubric, row.prompt, row.text, "rationale"), str(row.judgement), whole=True)
        for row in written.itertuples()
    ]


def ranked_examples(eft: pd.DataFrame) -> list[RankedExample]:
    """Return each prompt's replies with ranks and scores."""
    return [
        RankedExample(
            str(group["prompt"].iloc[0]),
            tuple(group["text"]),
            tuple(int(rank) for rank in group["rank"]),
            tuple(None if pd.isna(score) else float(score) for score in group["score"]),
        )
        for _, group in eft.groupby("group_id", sort=True)
    ]


def _replies(ift: pd.DataFrame) -> list[SftExample]:
    return [SftExample(row.prompt, row.response) for row in ift.itertuples()]


def _kept(folder: Path, train: Callable[[], TrainingRun], work: Path) -> TrainingRun:
    """Train in a work folder and keep the model in another, or take up what an interrupted run kept there."""
    if folder.is_dir():
        return _load(folder)
    run = train()
    with replacing_folder(folder, _CONFIG) as temporary:
        require_finite(run.loaded.model, folder)
        run.loaded.model.save_pretrained(temporary)
        run.loaded.tokenizer.save_pretrained(temporary)
    shutil.rmtree(work, ignore_errors=True)
    return run


def _load(folder: Path) -> TrainingRun:
    from srlm_pipeline.config import ModelSettings
    from srlm_pipeline.models.loading import load_model

    return TrainingRun(load_model(folder, ModelSettings(device="cpu", dtype="float32")))
