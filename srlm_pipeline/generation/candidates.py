"""N replies of a policy to every prompt, and what is wrong with each at first sight (paper section 2.3, step 2)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pandas as pd

from srlm_pipeline.checks.vital_signs import Exchange, name_signs
from srlm_pipeline.config import CandidateSettings
from srlm_pipeline.generation.engine import Sampling, TextWriter, derive_seed
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.generation.stage import Ask, generate_all
from srlm_pipeline.progress import ProgressReporter
from srlm_pipeline.tables import CANDIDATES


def write_candidates(
    engine: TextWriter,
    prompts: Iterable[tuple[str, str]],
    settings: CandidateSettings,
    run_seed: int,
    stage: str,
    progress: ProgressReporter,
    journal: Journal | None = None,
    system_prompt: str = "",
) -> pd.DataFrame:
    """Return the table `CANDIDATES`.

    Args:
        engine: The policy.
        prompts: Id and text of each.
        settings: How many replies, and how they are sampled.
        run_seed: The run's seed.
        stage: Name that keeps iterations' randomness apart, e.g. ``"candidates/iter_001"``.
        progress: Where progress is shown.
        journal: Finished replies.
        system_prompt: What the policy's chat template puts before a conversation by itself, which no reply may recite.
    """
    rows: list[dict[str, Any]] = [
        {
            "prompt_id": prompt_id,
            "sample": sample,
            "prompt": prompt,
            "seed": derive_seed(run_seed, stage, prompt_id, sample),
        }
        for prompt_id, prompt in prompts
        for sample in range(settings.per_prompt)
    ]
    completions = generate_all(
        engine,
        [Ask(f"{row['prompt_id']}#{row['sample']}", row["prompt"], row["seed"]) for row in rows],
        Sampling(settings.temperature, settings.top_p, settings.max_new_tokens),
        "answering prompts",
        progress,
        journal,
        keep_tokens=True,
    )
    exchanges = [Exchange(row["prompt"], done.text) for row, done in zip(rows, completions, strict=True)]
    table = pd.DataFrame(rows).assign(
        completion=[done.text for done in completions],
        n_tokens=[done.n_tokens for done in completions],
        finish_reason=[done.finish_reason for done in completions],
        signs=name_signs(exchanges, [done.finish_reason == "length" for done in completions], system_prompt),
        token_ids=[None if done.token_ids is None else json.dumps(done.token_ids) for done in completions],
    )
    return table[list(CANDIDATES.columns)]
