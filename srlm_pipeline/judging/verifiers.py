"""A judge that is a program: it scores by what can be checked of a reply, and has no opinion on other prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from srlm_pipeline.checks.checkable import Checks, check
from srlm_pipeline.config import VERIFIERS
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.judging.judges import JudgeItem, Judgement
from srlm_pipeline.judging.rubric import MAX_SCORE
from srlm_pipeline.progress import ProgressReporter


class VerifierJudge:
    """Scores the share of a prompt's checks that a reply passes, from 0 to 5.

    Args:
        checks: By prompt.
    """

    def __init__(self, checks: Mapping[str, Checks]) -> None:
        self._checks = checks

    @property
    def name(self) -> str:
        """What it is."""
        return VERIFIERS

    def judge(
        self, items: Sequence[JudgeItem], progress: ProgressReporter, journal: Journal | None = None
    ) -> list[Judgement]:
        """Check every item; see `Judge.judge`. A journal is not needed: asking again costs nothing."""
        judgements = []
        with progress.task("checking replies", len(items), "replies") as task:
            for item in items:
                judgements.append(self._judge(item))
                task.advance()
        return judgements

    def _judge(self, item: JudgeItem) -> Judgement:
        checks = self._checks.get(item.prompt)
        if checks is None:
            return Judgement(item.key, None, 0, 0, None, "[]")
        found = check(checks, item.prompt, item.response)
        passed = sum(one.passed for one in found) / len(found)
        # Nothing was written that would have to be parsed: such judgements are not counted.
        told = json.dumps([asdict(one) for one in found])
        return Judgement(item.key, MAX_SCORE * passed, 0, 0, 0.0, told, passed=passed)
