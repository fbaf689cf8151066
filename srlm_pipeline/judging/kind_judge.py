"""Judging by the rubric of the prompt's kind."""

from __future__ import annotations

import json
from collections.abc import Sequence

from srlm_pipeline.generation.engine import TextEngine
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.judging.judges import JudgeItem, Judgement, Messages, weighted_judgement
from srlm_pipeline.judging.kind_rubrics import kind_rubrics
from srlm_pipeline.judging.kinds import kinds_of
from srlm_pipeline.judging.reading import Place, expectation, read_places
from srlm_pipeline.judging.rubric import SCORE_START, SCORES, dimension_prompt, kind_rubric_prompt
from srlm_pipeline.progress import ProgressReporter


class KindRubricJudge:
    """The expected score in each dimension of the kind's rubric, and their weighted mean.

    All dimensions of a reply are asked for at the end of the same text, which is read once. A dimension that the model
    was not about to score is left out of the mean, and counted as invalid.

    Args:
        engine: The judging model; it also tells of which kind a prompt is, where the data does not.
    """

    def __init__(self, engine: TextEngine) -> None:
        self._engine = engine

    @property
    def name(self) -> str:
        """Rubric, mode and model digest."""
        return f"by-kind-distribution@{self._engine.digest}"

    def judge(
        self, items: Sequence[JudgeItem], progress: ProgressReporter, journal: Journal | None = None
    ) -> list[Judgement]:
        """Judge every item once; see `Judge.judge`."""
        kinds = kinds_of(self._engine, items, progress, journal)
        rubrics = [kind_rubrics().of(kind) for kind in kinds]
        groups = [
            [Place(dimension_prompt(d.question, item.prompt, item.response), SCORE_START) for d in rubric.dimensions]
            for item, rubric in zip(items, rubrics, strict=True)
        ]
        masses = read_places(self._engine, groups, SCORES, "judging", progress, journal)
        judgements = []
        for item, kind, rubric, read in zip(items, kinds, rubrics, masses, strict=True):
            scores = [expectation(row, range(len(SCORES))) for row in read.tolist()]
            named = {d.name: row for d, row in zip(rubric.dimensions, read.tolist(), strict=True)}
            raw = json.dumps({"kind": kind, "dimensions": named})
            judgements.append(weighted_judgement(item.key, scores, [d.weight for d in rubric.dimensions], raw))
        return judgements


def kind_rubric_messages(engine: TextEngine) -> Messages:
    """Return how judges that write are asked: for one score by all dimensions of the kind's rubric.

    Args:
        engine: Tells of which kind a prompt is, where the data does not.
    """

    def messages(items: Sequence[JudgeItem], progress: ProgressReporter, journal: Journal | None) -> list[str]:
        kinds = kinds_of(engine, items, progress, journal)
        return [
            kind_rubric_prompt(kind_rubrics().of(kind), item.prompt, item.response)
            for item, kind in zip(items, kinds, strict=True)
        ]

    return messages
