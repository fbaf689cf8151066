"""All new prompts of an iteration (paper section 2.3, step 1): some invented, others made out of these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from srlm_pipeline.config import PromptGenerationSettings
from srlm_pipeline.generation.engine import TextEngine
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.progress import ProgressReporter
from srlm_pipeline.prompting.evolution import Earlier, evolve, prompts_by_operator
from srlm_pipeline.prompting.few_shot import PromptGeneration, SeedPrompt, generate_prompts


def create_prompts(
    engine: TextEngine,
    seeds: Sequence[SeedPrompt],
    earlier: Earlier,
    forbidden: Iterable[str],
    settings: PromptGenerationSettings,
    run_seed: int,
    stage: str,
    progress: ProgressReporter,
    journal: Journal | None = None,
) -> PromptGeneration:
    """Return `settings.count` prompts, those that are invented first.

    Args:
        engine: The model that invents and rewrites.
        seeds: Human-written prompts: examples, and too similar ones are refused.
        earlier: Prompts of earlier iterations, and how replies to them did.
        forbidden: Evaluation prompts; too similar ones are refused and counted apart.
        settings: Few-shot composition, evolution, sampling, filters.
        run_seed: The run's seed.
        stage: Name that keeps iterations' randomness apart, e.g. ``"prompts/iter_001"``.
        progress: Where progress is shown.
        journal: Finished attempts.

    Raises:
        EmptyDataError: If too few prompts survive the allowed attempts.
    """
    forbidden = list(forbidden)
    # One that a program checks is no example: its instructions would be copied, and nobody would check them.
    uncheckable = earlier.prompts[earlier.prompts["checks"] == ""]
    made = generate_prompts(
        engine,
        seeds,
        forbidden,
        settings.model_copy(update={"count": prompts_by_operator(settings)["few_shot"]}),
        run_seed,
        stage,
        progress,
        journal,
        [SeedPrompt(row.prompt_id, row.prompt) for row in uncheckable.itertuples()],
    )
    evolved = evolve(engine, made.prompts, seeds, earlier, forbidden, settings, run_seed, stage, progress, journal)
    later = evolved.refused.assign(attempt=evolved.refused["attempt"] + made.attempts)
    return PromptGeneration(
        pd.concat([made.prompts, evolved.prompts], ignore_index=True),
        pd.concat([made.refused, later], ignore_index=True),
        made.attempts + len(evolved.prompts) + len(evolved.refused),
    )
