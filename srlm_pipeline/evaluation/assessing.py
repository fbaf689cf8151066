"""Measuring one model, once: everything that later comparisons need is asked for here, and only here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from srlm_pipeline.checks.closed_tasks import ClosedTask, is_right, load_closed_tasks
from srlm_pipeline.checks.text_measures import describe_replies
from srlm_pipeline.checks.verifiable import VerifiablePrompt, load_verifiable
from srlm_pipeline.checks.vital_signs import SIGNS, WRECKS, Exchange, Sign, read_signs
from srlm_pipeline.config import EvaluationSettings, Settings
from srlm_pipeline.data.chat import template_system_prompt
from srlm_pipeline.evaluation.assessment import Assessment, Part, write_assessment
from srlm_pipeline.evaluation.divergence import reply_log_probabilities
from srlm_pipeline.evaluation.judge_accuracy import measure_judge
from srlm_pipeline.evaluation.measures import SHOWN, figure
from srlm_pipeline.evaluation.measuring import evaluation_replies, judge_ranked_replies
from srlm_pipeline.evaluation.opening import open_encoder
from srlm_pipeline.evaluation.references import Encoder, best_replies
from srlm_pipeline.evaluation.verifiable_accuracy import measure_verifiable, verifiable_table
from srlm_pipeline.generation.deferred import DeferredEngine, ModelSlot
from srlm_pipeline.generation.opening import OpenEngine, release_engines
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.models.loading import load_model, load_tokenizer
from srlm_pipeline.progress import ProgressReporter
from srlm_pipeline.store import ProjectStore
from srlm_pipeline.tables import ASSESSED_REPLIES, LIKELIHOOD, VITAL_SIGNS


def assess_and_keep(
    checkpoint: Checkpoint,
    prompts: pd.DataFrame,
    ranked: pd.DataFrame,
    settings: Settings,
    store: ProjectStore,
    open_engine: OpenEngine,
    progress: ProgressReporter,
) -> Assessment:
    """Assess a model as the settings say, and write down what was found under the model's digest.

    Args:
        checkpoint: The model.
        prompts: Table `EVALUATION_PROMPTS`.
        ranked: Table `RANKED_REPLIES`; the held-out rows are used.
        settings: `evaluation`, `judge`, `model` and `seed` are read.
        store: For journals and the assessment.
        open_engine: Loads a checkpoint with a batch size.
        progress: Where progress is shown.

    Raises:
        DataError: If the verifiable prompts or closed tasks cannot be read.
    """
    held_out = ranked[ranked["split"] == "held_out"]
    encoder = open_encoder(settings, store)
    found = assess(checkpoint, prompts, held_out, settings, store, open_engine, progress, encoder)
    write_assessment(found, store, checkpoint)
    return found


def assess(
    checkpoint: Checkpoint,
    prompts: pd.DataFrame,
    ranked: pd.DataFrame,
    settings: Settings,
    store: ProjectStore,
    open_engine: OpenEngine,
    progress: ProgressReporter,
    encoder: Encoder | None = None,
) -> Assessment:
    """Ask a model everything that it is measured by; finished replies are in journals, and are not asked for again.

    Args:
        checkpoint: The model.
        prompts: Table `EVALUATION_PROMPTS`.
        ranked: Held-out rows of table `RANKED_REPLIES`.
        settings: `evaluation`, `judge`, `model` and `seed` are read.
        store: For the journals.
        open_engine: Loads a checkpoint with a batch size.
        progress: Where progress is shown.
        encoder: Says how near replies are to the prompts' references; None: that is not measured.

    Raises:
        DataError: If the verifiable prompts or closed tasks cannot be read.
    """
    verifiable = load_verifiable(settings.evaluation.verifiable)
    tasks = load_closed_tasks(settings.evaluation.closed_tasks.source, settings.evaluation.closed_tasks.limit)
    limits = reply_limits(settings.evaluation)
    asked: dict[Part, tuple[pd.DataFrame, int]] = {
        "evaluation": (prompts, limits["evaluation"]),
        "verifiable": (_verifiable_prompts(verifiable), limits["verifiable"]),
        "closed": (_closed_prompts(tasks), limits["closed"]),
    }
    replies, judgements = _ask(checkpoint, asked, ranked, settings, store, open_engine, progress)
    release_engines()
    table = _with_signs(checkpoint, replies, asked, verifiable, settings)
    _add_results(table, prompts, tasks, encoder)
    own = table[table["part"] == "verifiable"]
    followed = verifiable_table(
        checkpoint.name, verifiable, own["reply"].tolist(), own[list(WRECKS)].any(axis=1).tolist()
    )
    likelihood = likelihood_of_best_replies(checkpoint, ranked, settings, progress)
    return Assessment(checkpoint.name, checkpoint.digest, table, followed, judgements, likelihood, dict(limits.items()))


def reply_limits(settings: EvaluationSettings) -> dict[Part, int]:
    """Return the sets of prompts that every model is asked, with the tokens that a reply may have."""
    return {
        "evaluation": settings.max_new_tokens,
        "verifiable": settings.verifiable.max_new_tokens,
        "closed": settings.closed_tasks.max_new_tokens,
    }


def _ask(
    checkpoint: Checkpoint,
    asked: dict[Part, tuple[pd.DataFrame, int]],
    ranked: pd.DataFrame,
    settings: Settings,
    store: ProjectStore,
    open_engine: OpenEngine,
    progress: ProgressReporter,
) -> tuple[dict[Part, pd.DataFrame], pd.DataFrame]:
    """Return replies and judgements; the model is loaded once for both, if at all, and let go at the end."""
    slot = ModelSlot(open_engine)

    def opened(model: Checkpoint, batch_size: int) -> DeferredEngine:
        return DeferredEngine(slot, model, batch_size, settings.model.thinking.manner)

    replies = {
        part: evaluation_replies(checkpoint, table, longest, settings, store, opened, progress, part)
        for part, (table, longest) in asked.items()
        if len(table)
    }
    return replies, judge_ranked_replies(checkpoint, ranked, settings, store, opened, progress)


def likelihood_of_best_replies(
    checkpoint: Checkpoint, ranked: pd.DataFrame, settings: Settings, progress: ProgressReporter
) -> pd.DataFrame:
    """Read the best human reply to every prompt with the model; returns table `LIKELIHOOD`.

    Args:
        checkpoint: The model; it is loaded for this.
        ranked: Held-out rows of table `RANKED_REPLIES`.
        settings: `judge.batch_size` and `model` are read.
        progress: Where progress is shown.
    """
    best = best_replies(ranked)
    written = pd.DataFrame({"prompt": best["prompt"].tolist(), "reply": best["text"].tolist(), "finish_reason": "stop"})
    read = reply_log_probabilities(
        load_model(checkpoint.path, settings.model),
        written,
        settings.judge.batch_size,
        progress,
        f"{checkpoint.name} reads the best human replies",
    )
    table = pd.DataFrame(
        {
            "model": checkpoint.name,
            "group_id": best["group_id"].tolist(),
            "nats": -read.sums,
            "n_tokens": read.n_tokens,
        }
    )
    return table[list(LIKELIHOOD.columns)]


def vital_signs(assessments: Sequence[Assessment], resamples: int) -> pd.DataFrame:
    """Return every measure of some models as table `VITAL_SIGNS`."""
    rows = []
    for assessment in assessments:
        for measure in SHOWN:
            found = figure(assessment, measure, resamples)
            rows.append((assessment.model, measure.name, found.value, found.low, found.high, found.n, found.note))
    columns = list(VITAL_SIGNS.columns)
    return pd.DataFrame(rows, columns=columns).astype({"value": float, "low": float, "high": float})


def assessment_metrics(assessment: Assessment, resamples: int) -> dict[str, float]:
    """Return one model's figures under their names in MLflow: ``vital/loops``, ``judge/pairwise_accuracy``, ..."""
    figures: dict[str, float] = {}
    for measure in SHOWN:
        found = figure(assessment, measure, resamples)
        ends = {"": found.value, "_low": found.low, "_high": found.high}
        figures |= {f"vital/{measure.name}{end}": value for end, value in ends.items() if value is not None}
    figures |= {f"judge/{k}": v for k, v in measure_judge(assessment.judgements).metrics().items()}
    if len(assessment.verifiable):
        followed = measure_verifiable(assessment.verifiable, resamples)
        figures |= {f"verifiable/{k}": v for k, v in followed.metrics().items()}
    replies = assessment.evaluation_replies()
    described = describe_replies(replies["reply"].tolist(), replies["n_tokens"].tolist())
    return figures | {f"length/{k.removeprefix('length_')}": v for k, v in described.items()}


def _verifiable_prompts(prompts: Sequence[VerifiablePrompt]) -> pd.DataFrame:
    kinds = [prompt.instructions[0].kind.name for prompt in prompts]
    return pd.DataFrame({"id": [p.key for p in prompts], "kind": kinds, "prompt": [p.prompt for p in prompts]})


def _closed_prompts(tasks: Sequence[ClosedTask]) -> pd.DataFrame:
    return pd.DataFrame(
        {"id": [t.key for t in tasks], "kind": [t.kind for t in tasks], "prompt": [t.prompt for t in tasks]}
    )


def _with_signs(
    checkpoint: Checkpoint,
    replies: dict[Part, pd.DataFrame],
    asked: dict[Part, tuple[pd.DataFrame, int]],
    verifiable: Sequence[VerifiablePrompt],
    settings: Settings,
) -> pd.DataFrame:
    """Put all replies into one table, with what is wrong with each; a part's stock sentences are its own."""
    system_prompt = template_system_prompt(load_tokenizer(str(checkpoint.path), settings.model))
    repeatable = {prompt.prompt: prompt.repeatable for prompt in verifiable}
    signs: dict[Part, list[frozenset[Sign]]] = {}
    longer: list[Part] = [part for part in replies if part != "closed"]
    # Long replies are read together: what is said to many prompts of any kind is a stock reply.
    groups: list[list[Part]] = [longer, ["closed"]] if "closed" in replies else [longer]
    for group in groups:
        exchanges = [exchange for part in group for exchange in _exchanges(replies[part], asked[part][0], repeatable)]
        read = iter(read_signs(exchanges, system_prompt))
        for part in group:
            signs[part] = [next(read) for _ in range(len(replies[part]))]
    tables = []
    for part, table in replies.items():
        found = {sign: [sign in shown for shown in signs[part]] for sign in SIGNS}
        kinds = asked[part][0]["kind"].tolist()
        tables.append(table.assign(part=part, kind=kinds, **found, nearness=np.nan, right=np.nan))
    return pd.concat(tables, ignore_index=True)[list(ASSESSED_REPLIES.columns)]


def _exchanges(replies: pd.DataFrame, asked: pd.DataFrame, repeatable: dict[str, str]) -> list[Exchange]:
    references = asked["reference"] if "reference" in asked else [None] * len(asked)
    return [
        Exchange(prompt, reply, None if pd.isna(reference) else reference, repeatable.get(prompt, ""))
        for prompt, reply, reference in zip(replies["prompt"], replies["reply"], references, strict=True)
    ]


def _add_results(
    table: pd.DataFrame, prompts: pd.DataFrame, tasks: Sequence[ClosedTask], encoder: Encoder | None
) -> None:
    # Answers to many short questions may well be alike.
    wreck = table[["loops", "empty"]].any(axis=1)
    closed = table.index[table["part"] == "closed"]
    for place, task in zip(closed, tasks, strict=True):
        table.loc[place, "right"] = float(not wreck[place] and is_right(task, table.loc[place, "reply"]))
    known = prompts["reference"].notna().to_numpy()
    if encoder is not None and known.any():
        places = table.index[table["part"] == "evaluation"][known]
        references = prompts["reference"][known].tolist()
        table.loc[places, "nearness"] = encoder.nearness(table.loc[places, "reply"].tolist(), references)
