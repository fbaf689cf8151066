"""Asking models for what is measured: replies to the evaluation prompts, judgements of human-ranked replies.

Replies are greedy and journaled per model, so a model's replies are written once however many opponents it meets.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from srlm_pipeline.config import Settings
from srlm_pipeline.evaluation.arbiters import Arbiter, Comparison
from srlm_pipeline.evaluation.head_to_head import HeadToHead, play_match
from srlm_pipeline.evaluation.jury import Jury, decide
from srlm_pipeline.evaluation.opening import judgement_journal, open_arbiter
from srlm_pipeline.generation.deferred import DeferredEngine, ModelSlot
from srlm_pipeline.generation.engine import Sampling
from srlm_pipeline.generation.journal import Journal, fingerprint
from srlm_pipeline.generation.opening import OpenEngine
from srlm_pipeline.generation.stage import Ask, generate_all
from srlm_pipeline.judging.choosing import make_judge
from srlm_pipeline.judging.judges import JudgeItem, Judgement
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.progress import ProgressReporter
from srlm_pipeline.store import ProjectStore
from srlm_pipeline.tables import JUDGE_ACCURACY, REPLIES


def evaluation_replies(
    checkpoint: Checkpoint,
    prompts: pd.DataFrame,
    max_new_tokens: int,
    settings: Settings,
    store: ProjectStore,
    open_engine: OpenEngine,
    progress: ProgressReporter,
    purpose: str,
) -> pd.DataFrame:
    """Return a model's greedy replies as table `REPLIES`; the model is loaded only if some are missing.

    Args:
        checkpoint: The model.
        prompts: `id` and `prompt` of each.
        max_new_tokens: Longest reply.
        settings: `evaluation` and `seed` are read.
        store: For the journal.
        open_engine: Loads a checkpoint with a batch size.
        progress: Where progress is shown.
        purpose: Keeps the replies to other prompts apart.
    """
    manner = settings.model.thinking.manner
    engine = DeferredEngine(ModelSlot(open_engine), checkpoint, settings.evaluation.batch_size, manner)
    # Greedy: the seed has no say.
    done = generate_all(
        engine,
        [Ask(row.id, row.prompt, settings.seed) for row in prompts.itertuples()],
        Sampling(max_new_tokens=max_new_tokens),
        f"{checkpoint.name} answers the {purpose.split('/')[0].replace('_', ' ')} prompts",
        progress,
        Journal(store.journal_folder(f"{purpose}/{checkpoint.name}")),
    )
    return pd.DataFrame(
        {
            "model": checkpoint.name,
            "prompt_id": prompts["id"].tolist(),
            "prompt": prompts["prompt"].tolist(),
            "reply": [reply.text for reply in done],
            "n_tokens": [reply.n_tokens for reply in done],
            "finish_reason": [reply.finish_reason for reply in done],
        }
    )[list(REPLIES.columns)]


def judge_ranked_replies(
    checkpoint: Checkpoint,
    ranked: pd.DataFrame,
    settings: Settings,
    store: ProjectStore,
    open_engine: OpenEngine,
    progress: ProgressReporter,
) -> pd.DataFrame:
    """Let a model judge held-out human-ranked replies; returns table `JUDGE_ACCURACY`.

    Args:
        checkpoint: The judging model.
        ranked: Held-out rows of table `RANKED_REPLIES`.
        settings: `judge` and `seed` are read.
        store: For the journal.
        open_engine: Loads a checkpoint with a batch size.
        progress: Where progress is shown.
    """
    stage = f"judge_accuracy/{checkpoint.name}"
    judge = make_judge(open_engine(checkpoint, settings.judge.batch_size), settings.judge, settings.seed, stage)
    items = [JudgeItem(fingerprint(r.prompt, r.text), r.prompt, r.text, r.kind) for r in ranked.itertuples()]
    journal = judgement_journal(store, checkpoint)
    return accuracy_table(checkpoint.name, ranked, judge.judge(items, progress, journal))


def accuracy_table(model: str, ranked: pd.DataFrame, judgements: Sequence[Judgement]) -> pd.DataFrame:
    """Put judgements beside human ranks, as table `JUDGE_ACCURACY`.

    Args:
        model: The judge's name.
        ranked: Rows of table `RANKED_REPLIES`.
        judgements: One per row, same order.
    """
    return pd.DataFrame(
        {
            "model": model,
            "group_id": ranked["group_id"].tolist(),
            "rank": ranked["rank"].tolist(),
            "n_characters": ranked["text"].str.len().tolist(),
            "score": [j.score for j in judgements],
        }
    )[list(JUDGE_ACCURACY.columns)].astype({"score": float})


def match(
    mine: pd.DataFrame,
    theirs: pd.DataFrame,
    opponent: str,
    arbiter: Arbiter | Jury,
    settings: Settings,
    progress: ProgressReporter,
) -> tuple[pd.DataFrame, HeadToHead]:
    """Let two models' replies meet; returns table `WIN_RATES` and the result.

    Args:
        mine: Table `REPLIES` of the model whose wins are counted.
        theirs: That of the other, same prompts in the same order.
        opponent: The other's name.
        arbiter: Who decides, alone or together.
        settings: `evaluation` is read.
        progress: Where progress is shown.
    """
    return play_match(
        list(zip(mine["prompt_id"], mine["prompt"], strict=True)),
        mine["reply"].tolist(),
        theirs["reply"].tolist(),
        opponent,
        arbiter,
        progress,
        settings.evaluation.tie_margin,
    )


def win_rate(
    model: Checkpoint,
    opponent: Checkpoint,
    prompts: pd.DataFrame,
    settings: Settings,
    store: ProjectStore,
    open_engine: OpenEngine,
    progress: ProgressReporter,
    purpose: str,
) -> float:
    """Return a model's win rate over another on any prompts, ties counting half.

    Args:
        model: Whose wins are counted.
        opponent: The other.
        prompts: Table `EVALUATION_PROMPTS`.
        settings: `evaluation`, `judge` and `seed` are read.
        store: For the journals.
        open_engine: Loads a checkpoint with a batch size.
        progress: Where progress is shown.
        purpose: Keeps the replies to these prompts apart from those to others.
    """
    mine, theirs = (
        evaluation_replies(
            checkpoint, prompts, settings.evaluation.max_new_tokens, settings, store, open_engine, progress, purpose
        )
        for checkpoint in (model, opponent)
    )
    arbiter = open_arbiter(settings, store, open_engine)
    _, outcome = match(mine, theirs, opponent.name, arbiter, settings, progress)
    return outcome.win_rate


def arbiter_agreement(
    arbiter: Arbiter | Jury, ranked: pd.DataFrame, progress: ProgressReporter, tie_margin: float = 0.0
) -> dict[str, float]:
    """Check an arbiter against human rankings before anything it says is believed.

    Args:
        arbiter: In the same calibration and both-orders rule as in a match.
        ranked: Held-out rows of table `RANKED_REPLIES`.
        progress: Where progress is shown.
        tie_margin: As in a match.

    Returns:
        ``agreement`` among decided pairs, ``decided`` share of pairs, ``position_bias``; of a jury also
        ``agreement of NAME`` and ``decided by NAME`` for each juror alone.
    """
    pairs = [
        Comparison(better.prompt, better.text, worse.text)
        for _, group in ranked.groupby("group_id", sort=True)
        for better, worse in itertools.permutations(group.itertuples(), 2)
        if better.rank < worse.rank
    ]
    decision = decide(arbiter, pairs, progress, tie_margin)
    agreement, decided = _agreement(decision.verdicts())
    figures = {"agreement": agreement, "decided": decided, "position_bias": decision.position_bias}
    if len(decision.opinions) > 1:
        for opinion in decision.opinions:
            agreement, decided = _agreement(opinion.verdicts())
            figures |= {f"agreement of {opinion.juror}": agreement, f"decided by {opinion.juror}": decided}
    return figures


def _agreement(verdicts: NDArray[np.float64]) -> tuple[float, float]:
    """Return the share of decisions for the better reply, which is each pair's first, and the share of decisions."""
    right, wrong = int((verdicts > 0).sum()), int((verdicts < 0).sum())
    decided = right + wrong
    return right / decided if decided else 0.5, decided / len(verdicts) if len(verdicts) else 0.0
