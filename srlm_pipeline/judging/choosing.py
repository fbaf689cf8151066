"""Which judge the settings ask for."""

from __future__ import annotations

from srlm_pipeline.config import JudgeSettings
from srlm_pipeline.generation.engine import TextEngine
from srlm_pipeline.judging.checklist_judge import ChecklistJudge
from srlm_pipeline.judging.judges import DistributionJudge, HybridJudge, Judge, SampledJudge
from srlm_pipeline.judging.kind_judge import KindRubricJudge, kind_rubric_messages


def make_judge(engine: TextEngine, settings: JudgeSettings, run_seed: int, stage: str) -> Judge:
    """Return the judge that the settings ask for.

    Args:
        engine: The judging model.
        settings: Rubric, mode, sampling.
        run_seed: Each judgement's randomness derives from it and the item's key, where anything is drawn.
        stage: Name that keeps stages' randomness apart.
    """
    if settings.rubric == "checklist":
        return ChecklistJudge(engine)
    messages = kind_rubric_messages(engine) if settings.rubric == "by_kind" else None
    if settings.mode == "sampled":
        return SampledJudge(engine, settings, run_seed, stage, messages)
    if settings.mode == "hybrid":
        return HybridJudge(engine, settings, run_seed, stage, messages)
    if settings.rubric == "by_kind":
        return KindRubricJudge(engine)
    return DistributionJudge(engine, settings.rubric)
