"""Looking at a model on development prompts: held-out human-ranked ones, never those of the evaluation."""

from __future__ import annotations

import numpy as np
import pandas as pd

from srlm_pipeline.checks.vital_signs import Exchange, read_signs
from srlm_pipeline.config import Settings
from srlm_pipeline.data.chat import template_system_prompt
from srlm_pipeline.evaluation.assessing import likelihood_of_best_replies
from srlm_pipeline.evaluation.measuring import evaluation_replies
from srlm_pipeline.evaluation.references import best_replies
from srlm_pipeline.generation.opening import OpenEngine, release_engines
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.models.loading import load_tokenizer
from srlm_pipeline.progress import ProgressReporter
from srlm_pipeline.store import ProjectStore
from srlm_pipeline.training.cost import DevelopmentFigures


def development_figures(
    checkpoint: Checkpoint,
    held_out: pd.DataFrame,
    settings: Settings,
    store: ProjectStore,
    open_engine: OpenEngine,
    progress: ProgressReporter,
    purpose: str,
) -> DevelopmentFigures:
    """Let a model answer the development prompts, and read the best human replies to them.

    Engines are released at the end: they would stand in a training's way.

    Args:
        checkpoint: The model.
        held_out: Held-out rows of table `RANKED_REPLIES`.
        settings: `evaluation`, `judge`, `model` and `seed` are read.
        store: For the journal.
        open_engine: Loads a checkpoint with a batch size.
        progress: Where progress is shown.
        purpose: Keeps the replies apart from those to other prompts, e.g. ``"development/M2"``.
    """
    best = best_replies(held_out)
    prompts = best.rename(columns={"group_id": "id"})
    limit = settings.evaluation.max_new_tokens
    replies = evaluation_replies(checkpoint, prompts, limit, settings, store, open_engine, progress, purpose)
    release_engines()
    likelihood = likelihood_of_best_replies(checkpoint, held_out, settings, progress)
    exchanges = [
        Exchange(prompt, reply, reference)
        for prompt, reply, reference in zip(best["prompt"], replies["reply"], best["text"], strict=True)
    ]
    signs = read_signs(exchanges, template_system_prompt(load_tokenizer(str(checkpoint.path), settings.model)))
    nats = likelihood["nats"].to_numpy() / likelihood["n_tokens"].clip(lower=1).to_numpy()
    return DevelopmentFigures(np.array([bool(shown) for shown in signs]), float(nats.mean()))
