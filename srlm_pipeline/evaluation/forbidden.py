"""Prompts that models are measured by, and so must never be invented, or the loop would train on its own test."""

from __future__ import annotations

from collections.abc import Iterable

from srlm_pipeline.checks.closed_tasks import closed_tasks_digest, load_closed_tasks
from srlm_pipeline.checks.verifiable import load_verifiable, verifiable_digest
from srlm_pipeline.config import EvaluationSettings


def forbidden_prompts(evaluation_prompts: Iterable[str], settings: EvaluationSettings) -> list[str]:
    """Return everything that a model may be asked when it is measured, also what a limit leaves out for now.

    Args:
        evaluation_prompts: Texts.
        settings: `verifiable` and `closed_tasks` are read.
    """
    verifiable = load_verifiable(settings.verifiable.model_copy(update={"limit": None}))
    return [
        *evaluation_prompts,
        *(prompt.prompt for prompt in verifiable),
        *(task.prompt for task in load_closed_tasks(settings.closed_tasks.source)),
    ]


def forbidden_digests(settings: EvaluationSettings) -> tuple[str, str]:
    """Return digests of the sets behind `forbidden_prompts`, so that an edited file makes stale what was kept from it.

    Args:
        settings: `verifiable` and `closed_tasks` are read.
    """
    return verifiable_digest(settings.verifiable), closed_tasks_digest(settings.closed_tasks.source)
