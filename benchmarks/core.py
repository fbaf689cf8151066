"""The pipeline's core functions in a row, without Dagster and MLflow: what an iteration computes, and nothing else."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import synchronise

if TYPE_CHECKING:
    import pandas as pd

    from srlm_pipeline.checks.checkable import Checks
    from srlm_pipeline.config import Settings
    from srlm_pipeline.generation.engine import TextEngine
    from srlm_pipeline.models.checkpoint import Checkpoint


@dataclass
class Iteration:
    """What an iteration made and how long its parts took.

    Attributes:
        seconds: By part.
        attempts: At inventing prompts.
        n_tokens: Of all candidates.
        pairs: Table `PREFERENCE_PAIRS`.
        steps: Of DPO.
    """

    pairs: pd.DataFrame
    seconds: dict[str, float] = field(default_factory=dict)
    attempts: int = 0
    n_tokens: int = 0
    steps: int = 0


def score(
    engine: TextEngine,
    candidates: pd.DataFrame,
    settings: Settings,
    stage: str,
    checks: Mapping[str, Checks] | None = None,
) -> pd.DataFrame:
    """Return the candidates with their scores, by the model and, where something can be checked, by verifiers."""
    from srlm_pipeline.judging.choosing import make_judge
    from srlm_pipeline.judging.panel import Member, PanelJudge
    from srlm_pipeline.judging.scoring import score_candidates
    from srlm_pipeline.judging.verifiers import VerifierJudge
    from srlm_pipeline.progress import NullProgress

    own = make_judge(engine, settings.judge, settings.seed, stage)
    judge = PanelJudge([Member(own), Member(VerifierJudge(checks))]) if checks else own
    return score_candidates(judge, candidates, NullProgress())


def run_iteration(
    settings: Settings, generator: Checkpoint, policy: Checkpoint, work: Path, save: bool = False
) -> Iteration:
    """Do an iteration: invent prompts, answer them, judge, pair, train; models are loaded within it.

    Args:
        settings: As for the pipeline.
        generator: Model that invents.
        policy: M_t.
        work: Folder for the training and the saved model.
        save: Whether to write the trained model, as the pipeline does.
    """
    from srlm_pipeline.checks.checkable import checks_of
    from srlm_pipeline.config import DataSettings
    from srlm_pipeline.data.loaders import load_evaluation_prompts, load_instructions
    from srlm_pipeline.generation.candidates import write_candidates
    from srlm_pipeline.generation.opening import open_engine
    from srlm_pipeline.models.checkpoint import save_checkpoint
    from srlm_pipeline.preference.pairs import select_best_worst
    from srlm_pipeline.progress import NullProgress
    from srlm_pipeline.prompting.creation import create_prompts
    from srlm_pipeline.prompting.evolution import Earlier
    from srlm_pipeline.prompting.few_shot import SeedPrompt
    from srlm_pipeline.training.common import TrainingJob
    from srlm_pipeline.training.dpo import preference_examples, train_dpo

    seconds: dict[str, float] = {}

    @contextmanager
    def part(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        synchronise(settings.model.device)
        seconds[name] = time.perf_counter() - started

    data = DataSettings()
    seeds = [SeedPrompt(str(row.id), str(row.prompt)) for row in load_instructions(data).table.itertuples()]
    forbidden = list(load_evaluation_prompts(data).table["prompt"])
    with part("prompts"):
        made = create_prompts(
            open_engine(generator, settings, settings.prompt_generation.batch_size),
            seeds,
            Earlier(),
            forbidden,
            settings.prompt_generation,
            settings.seed,
            "prompts/iter_001",
            NullProgress(),
        )
    with part("candidates"):
        prompts = [(str(row.prompt_id), str(row.prompt)) for row in made.prompts.itertuples()]
        candidates = write_candidates(
            open_engine(policy, settings, settings.candidates.batch_size),
            prompts,
            settings.candidates,
            settings.seed,
            "candidates/iter_001",
            NullProgress(),
        )
    with part("judging"):
        scored = score(
            open_engine(policy, settings, settings.judge.batch_size),
            candidates,
            settings,
            "judging/iter_001",
            checks_of(made.prompts),
        )
    with part("pairs"):
        pairs = select_best_worst(scored, settings.pairs.min_margin).pairs
    with part("DPO"):
        examples = preference_examples(pairs)
        job = TrainingJob(policy.path, settings.model, settings.seed + 1, work / "dpo", "DPO", NullProgress())
        trained = train_dpo(job, examples, settings.dpo)
        shutil.rmtree(job.work, ignore_errors=True)
        if save:
            save_checkpoint(trained.loaded, work / "model", "M2", policy.digest, {}, settings.model.save_dtype)
    steps = sum("loss" in entry for entry in trained.history)
    return Iteration(pairs, seconds, made.attempts, int(candidates["n_tokens"].sum()), steps)
