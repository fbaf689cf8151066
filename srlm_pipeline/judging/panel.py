"""Several judges score the same replies: the model itself together with third parties, or these alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from srlm_pipeline.generation.journal import Journal, fingerprint
from srlm_pipeline.judging.judges import Judge, JudgeItem, Judgement
from srlm_pipeline.judging.rubric import MAX_SCORE
from srlm_pipeline.progress import ProgressReporter


@dataclass(frozen=True)
class Member:
    """One judge of a panel.

    Attributes:
        judge: Who scores.
        weight: Of its scores in the mean.
        journal: Of its judgements, by content: whoever wrote a reply, and whenever, it is judged once.
    """

    judge: Judge
    weight: float = 1.0
    journal: Journal | None = None


class PanelJudge:
    """The weighted mean of the members' scores. A member without a valid score is left out of it, and counted.

    Members are asked one after another, each about all items, so that one model at a time is needed.

    Args:
        members: At least one.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)

    @property
    def name(self) -> str:
        """Every member's mode, model and weight."""
        return "panel of " + ", ".join(f"{member.judge.name} x {member.weight:g}" for member in self._members)

    def judge(
        self, items: Sequence[JudgeItem], progress: ProgressReporter, journal: Journal | None = None
    ) -> list[Judgement]:
        """Judge every item; see `Judge.judge`. The members' journals are used, not this one."""
        keys = [fingerprint(item.prompt, item.response) for item in items]
        different = {key: JudgeItem(key, i.prompt, i.response) for key, i in zip(keys, items, strict=True)}
        said = [
            dict(zip(different, m.judge.judge(list(different.values()), progress, m.journal), strict=True))
            for m in self._members
        ]
        return [
            self._combine(item.key, [judgements[key] for judgements in said])
            for item, key in zip(items, keys, strict=True)
        ]

    def _combine(self, key: str, judgements: Sequence[Judgement]) -> Judgement:
        valid = [(m.weight, j) for m, j in zip(self._members, judgements, strict=True) if j.score is not None]
        passed = next((j.passed for j in judgements if j.passed is not None), None)
        thought = [(weight, j.score) for weight, j in valid if j.passed is None] if passed is not None else []
        raw = [
            {
                "judge": member.judge.name,
                "weight": member.weight,
                "score": j.score,
                "n_valid": j.n_valid,
                "n_invalid": j.n_invalid,
                "raw": j.raw,
            }
            for member, j in zip(self._members, judgements, strict=True)
        ]
        n_valid, n_invalid = sum(j.n_valid for j in judgements), sum(j.n_invalid for j in judgements)
        told = json.dumps(raw, ensure_ascii=False)
        if not valid:
            return Judgement(key, None, n_valid, n_invalid, None, told)
        weights = np.array([weight for weight, _ in valid])
        scores = np.array([j.score for _, j in valid], dtype=float)
        spreads = np.array([j.spread or 0.0 for _, j in valid])
        mean = float(np.average(scores, weights=weights))
        # The variance of all that was said is that within the members plus that between them.
        within = float(np.average(spreads**2, weights=weights)) ** 0.5
        between = float(np.average((scores - mean) ** 2, weights=weights)) ** 0.5
        return Judgement(
            key,
            min(max(mean, 0.0), float(MAX_SCORE)),
            n_valid,
            n_invalid,
            within,
            told,
            between if len(valid) > 1 else None,
            passed,
            float(np.average([s for _, s in thought], weights=[w for w, _ in thought])) if thought else None,
        )
