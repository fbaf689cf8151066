"""Which judge the settings ask for."""

from __future__ import annotations

from collections.abc import Mapping

from srlm_pipeline.checks.checkable import Checks
from srlm_pipeline.config import JudgeSettings
from srlm_pipeline.generation.engine import TextEngine
from srlm_pipeline.judging.checklist_judge import ChecklistJudge
from srlm_pipeline.judging.checklists import demanded
from srlm_pipeline.judging.judges import DistributionJudge, HybridJudge, Judge, SampledJudge
from srlm_pipeline.judging.kind_judge import KindRubricJudge, kind_rubric_messages


def make_judge(
    engine: TextEngine,
    settings: JudgeSettings,
    run_seed: int,
    stage: str,
    checks: Mapping[str, Checks] | None = None,
) -> Judge:
    """Return the judge that the settings ask for.

    Args:
        engine: The judging model.
        settings: Rubric, mode, sampling.
        run_seed: Each judgement's randomness derives from it and the item's key, where anything is drawn.
        stage: Name that keeps stages' randomness apart.
        checks: What prompts were made to demand, by prompt; checklists begin with it.
    """
    if settings.rubric == "checklist":
        return ChecklistJudge(engine, demanded(checks or {}))
    messages = kind_rubric_messages(engine) if settings.rubric == "by_kind" else None
    if settings.mode == "sampled":
        return SampledJudge(engine, settings, run_seed, stage, messages)
    if settings.mode == "hybrid":
        return HybridJudge(engine, settings, run_seed, stage, messages)
    if settings.rubric == "by_kind":
        return KindRubricJudge(engine)
    return DistributionJudge(engine, settings.rubric)
