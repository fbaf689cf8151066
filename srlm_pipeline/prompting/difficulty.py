"""How hard invented prompts should be, told by how the model did on those before.

A prompt teaches most where some replies succeed and others fail. What a program checks is drawn by the variance of its
outcome, p (1 - p), which is greatest where one half of the replies pass; p is learned from the replies of earlier
iterations. While nothing is known, no kind is preferred and easy levels are: what every reply fails teaches nothing,
and what every reply passes shows at once how far one can go. Of prompts that no program can check, the spread of their
replies' scores says the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from srlm_pipeline.checks.checkable import check, checks_of
from srlm_pipeline.prompting.constraints import CONSTRAINTS
from srlm_pipeline.prompting.tasks import TASKS

# What was seen one level away, or one iteration longer ago, counts half.
_FADING = 0.5
# What is expected of a level before anything is known, worth so many replies: one half at the first, a tenth less at
# each further one.
_EXPECTED, _STEEPNESS, _WORTH = 0.5, 0.1, 2.0
# The same of instructions altogether.
_TYPICAL = 0.25
# How decidedly the middle is preferred: the variance is taken to this power.
_SHARPNESS = 2.0


@dataclass(frozen=True)
class Trial:
    """How often one check was passed in one iteration.

    Attributes:
        kind: Of the instruction or closed task.
        level: At which it was drawn, from 1.
        age: Iterations ago; the one before is 1.
        n: Replies.
        n_passed: Of those.
    """

    kind: str
    level: int
    age: int
    n: int
    n_passed: int


class Difficulty:
    """What is known of how hard checks are for the model.

    Args:
        trials: From earlier iterations; none in the first.
    """

    def __init__(self, trials: Iterable[Trial] = ()) -> None:
        self._trials: defaultdict[str, list[Trial]] = defaultdict(list)
        for trial in trials:
            self._trials[trial.kind].append(trial)

    def pass_rate(self, kind: str, level: int) -> float:
        """Return the expected share of replies that pass, in 0..1: the mean of a Beta distribution."""
        n = passed = 0.0
        for trial in self._trials[kind]:
            weight = _FADING ** (abs(trial.level - level) + trial.age - 1)
            n, passed = n + weight * trial.n, passed + weight * trial.n_passed
        expected = max(_EXPECTED - _STEEPNESS * (level - 1), _STEEPNESS)
        return (passed + _WORTH * expected) / (n + _WORTH)

    def typical_pass_rate(self, kinds: Sequence[str]) -> float:
        """Return the share of all replies of earlier iterations that passed, in 0..1; a quarter before the first."""
        trials = [trial for kind in kinds for trial in self._trials[kind]]
        n, passed = sum(trial.n for trial in trials), sum(trial.n_passed for trial in trials)
        return (passed + _WORTH * _TYPICAL) / (n + _WORTH)

    def draw(self, random: np.random.Generator, kinds: Sequence[str], levels: int) -> tuple[str, int]:
        """Draw a kind and a level.

        Args:
            random: Where it is drawn from.
            kinds: To choose from, at least one.
            levels: Of each.
        """
        arms = [(kind, level) for kind in kinds for level in range(1, levels + 1)]
        rates = np.array([self.pass_rate(*arm) for arm in arms])
        weights = (4 * rates * (1 - rates)) ** _SHARPNESS
        return arms[int(random.choice(len(arms), p=weights / weights.sum()))]


def gather_trials(prompts: pd.DataFrame, replies: pd.DataFrame, age: int) -> list[Trial]:
    """Return how one iteration's replies did on what a program checks.

    Args:
        prompts: Table `GENERATED_PROMPTS`.
        replies: Table `CANDIDATES` or `JUDGED_SCORES` of the same iteration.
        age: Iterations ago.
    """
    counts: defaultdict[tuple[str, int], list[bool]] = defaultdict(list)
    known = checks_of(prompts)
    for row in replies[replies["prompt"].isin(known)].itertuples():
        for found in check(known[row.prompt], row.prompt, row.completion):
            counts[found.kind, found.level].append(found.passed)
    return [Trial(kind, level, age, len(passed), sum(passed)) for (kind, level), passed in sorted(counts.items())]


def score_spreads(scored: pd.DataFrame) -> Mapping[str, float]:
    """Return the standard deviation of the scores of each prompt's replies, by prompt id.

    Args:
        scored: Table `JUDGED_SCORES`; prompts with fewer than two scores are left out.
    """
    spreads = scored.groupby("prompt_id")["score"].std(ddof=0)
    counted = scored.groupby("prompt_id")["score"].count()
    return {str(prompt_id): float(spreads[prompt_id]) for prompt_id in spreads.index[counted >= 2]}


def difficulty_curve(prompts: pd.DataFrame, scored: pd.DataFrame) -> dict[str, float | None]:
    """Return how hard an iteration's prompts were for the model, by names for MLflow; None for what there is none of.

    ``difficulty/pass_rate/...`` is the share of checks passed of instructions and of closed tasks, in 0..1;
    ``difficulty/score_spread`` the mean standard deviation of the scores of a prompt that no program checks, in points;
    ``difficulty/level`` the mean level at which checks were drawn.

    Args:
        prompts: Table `GENERATED_PROMPTS`.
        scored: Table `JUDGED_SCORES` of the same iteration.
    """
    trials = gather_trials(prompts, scored, age=1)
    uncheckable = set(prompts["prompt_id"][prompts["checks"] == ""])
    spreads = [spread for key, spread in score_spreads(scored).items() if key in uncheckable]
    groups = {
        "instructions": [trial for trial in trials if trial.kind in CONSTRAINTS],
        "tasks": [trial for trial in trials if trial.kind in TASKS],
    }
    rates = {f"difficulty/pass_rate/{name}": _pass_rate(group) for name, group in groups.items()}
    n = sum(trial.n for trial in trials)
    level = sum(trial.level * trial.n for trial in trials) / n if n else None
    return {**rates, "difficulty/level": level, "difficulty/score_spread": float(np.mean(spreads)) if spreads else None}


def _pass_rate(trials: Sequence[Trial]) -> float | None:
    n = sum(trial.n for trial in trials)
    return sum(trial.n_passed for trial in trials) / n if n else None
