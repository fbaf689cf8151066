"""Two models' replies to the same prompts, compared by an arbiter in both orders.

An arbiter that changes its mind when the replies change places has no opinion: that prompt is a tie (paper
section 3.2, after Zheng et al. 2023). How often it happens is reported as disagreement, and which place it
favours as position bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from srlm_pipeline.config import EvaluationSettings
from srlm_pipeline.evaluation.statistics import bootstrap_interval, sign_test
from srlm_pipeline.generation.engine import TextEngine
from srlm_pipeline.generation.journal import Journal, fingerprint
from srlm_pipeline.judging.judges import DistributionJudge, JudgeItem
from srlm_pipeline.judging.rubric import COMPARISON_OPTIONS, COMPARISON_START, Rubric, comparison_prompt
from srlm_pipeline.progress import ProgressReporter
from srlm_pipeline.tables import WIN_RATES

Order = Literal["model_first", "opponent_first"]
Verdict = Literal["win", "tie", "loss"]
ORDERS: tuple[Order, Order] = ("model_first", "opponent_first")


@dataclass(frozen=True)
class Comparison:
    """Two replies to one prompt, in the order in which the arbiter sees them.

    Attributes:
        prompt: The user's instruction.
        first: The reply shown first.
        second: The reply shown second.
    """

    prompt: str
    first: str
    second: str

    def swap(self) -> Comparison:
        """Return the same replies in the other order."""
        return Comparison(self.prompt, self.second, self.first)


class Arbiter(Protocol):
    """Says which of two replies is better."""

    @property
    def name(self) -> str:
        """Method and model."""
        ...

    def prefer_first(self, comparisons: Sequence[Comparison], progress: ProgressReporter) -> NDArray[np.float64]:
        """Return for each comparison how much better the first reply is; 0 means equal.

        Returns:
            Shape (len(comparisons),).
        """
        ...


class ComparisonArbiter:
    """Shows both replies and reads log P(A) - log P(B) from the next-token distribution.

    A model that prefers whatever stands first would call everything a tie. Its mean preference for the first
    place over both orders of all prompts carries no information about the replies, so it is subtracted (batch
    calibration, Zhou et al. 2023); disagreement between the orders still makes a tie.

    Args:
        engine: The arbiter's model.
    """

    def __init__(self, engine: TextEngine) -> None:
        self._engine = engine

    @property
    def name(self) -> str:
        """Method and model digest."""
        return f"comparison@{self._engine.digest}"

    def prefer_first(self, comparisons: Sequence[Comparison], progress: ProgressReporter) -> NDArray[np.float64]:
        """See `Arbiter.prefer_first`."""
        prefixes = [
            self._engine.render(comparison_prompt(c.prompt, c.first, c.second), COMPARISON_START) for c in comparisons
        ]
        with progress.task("comparing replies", len(prefixes), "comparisons") as task:
            masses = self._engine.next_token_distribution(prefixes, COMPARISON_OPTIONS, task.advance)
        logs = np.log(np.maximum(masses, np.finfo(float).tiny))
        return np.asarray(logs[:, 0] - logs[:, 1])


class ScoreArbiter:
    """Compares two pointwise expected scores. It sees one reply at a time, so the order cannot matter to it.

    Args:
        engine: The arbiter's model.
        rubric: The judge's rubric.
        journal: What the same arbiter has judged before, in whichever match, is not judged again.
    """

    def __init__(self, engine: TextEngine, rubric: Rubric, journal: Journal | None = None) -> None:
        self._judge = DistributionJudge(engine, rubric)
        self._journal = journal

    @property
    def name(self) -> str:
        """Method and model digest."""
        return f"scores-{self._judge.name}"

    def prefer_first(self, comparisons: Sequence[Comparison], progress: ProgressReporter) -> NDArray[np.float64]:
        """See `Arbiter.prefer_first`; each different reply is judged once."""
        different = list(dict.fromkeys((c.prompt, text) for c in comparisons for text in (c.first, c.second)))
        items = [JudgeItem(fingerprint(prompt, text), prompt, text) for prompt, text in different]
        judged = self._judge.judge(items, progress, self._journal)
        score = {pair: j.score for pair, j in zip(different, judged, strict=True)}

        def difference(c: Comparison) -> float:
            first, second = score[c.prompt, c.first], score[c.prompt, c.second]
            return first - second if first is not None and second is not None else 0.0

        return np.array([difference(c) for c in comparisons])


def make_arbiter(engine: TextEngine, settings: EvaluationSettings, rubric: Rubric, journal: Journal) -> Arbiter:
    """Return the arbiter that the settings ask for.

    Args:
        engine: The arbiter's model.
        settings: `arbiter` is read.
        rubric: The judge's rubric.
        journal: Of the scores that the same model has given.
    """
    if settings.arbiter == "comparison":
        return ComparisonArbiter(engine)
    return ScoreArbiter(engine, rubric, journal)


@dataclass(frozen=True)
class HeadToHead:
    """Result of one match. Shares are of prompts, in 0..1.

    Attributes:
        wins: Prompts won in both orders.
        ties: Prompts without a decision, or decided differently by the two orders.
        losses: Prompts lost in both orders.
        win_rate: (wins + ties / 2) / prompts.
        low: Lower end of its 95 % bootstrap interval over prompts.
        high: Upper end.
        decided_win_rate: Wins among decided prompts; None if none was decided.
        p_value: Two-sided sign test of wins against losses.
        disagreement: Share of prompts on which the two orders contradict each other.
        position_bias: Share of verdicts for the first place minus those for the second, before calibration.
    """

    wins: int
    ties: int
    losses: int
    win_rate: float
    low: float
    high: float
    decided_win_rate: float | None
    p_value: float
    disagreement: float
    position_bias: float

    def metrics(self) -> dict[str, float]:
        """Return the figures that exist, by name."""
        return {name: float(value) for name, value in asdict(self).items() if value is not None}


def play_match(
    prompts: Sequence[tuple[str, str]],
    model_replies: Sequence[str],
    opponent_replies: Sequence[str],
    opponent: str,
    arbiter: Arbiter,
    progress: ProgressReporter,
    tie_margin: float = 0.0,
    resamples: int = 2000,
) -> tuple[pd.DataFrame, HeadToHead]:
    """Compare two models' replies on every prompt in both orders.

    Args:
        prompts: (id, text) of each evaluation prompt.
        model_replies: Same order.
        opponent_replies: Same order.
        opponent: Name for the table.
        arbiter: Who decides.
        progress: Where progress is shown.
        tie_margin: Preferences up to this much, after calibration, are a tie.
        resamples: Of the bootstrap.

    Returns:
        Table `WIN_RATES` (two rows per prompt) and the result.
    """
    forward = [
        Comparison(text, mine, theirs)
        for (_, text), mine, theirs in zip(prompts, model_replies, opponent_replies, strict=True)
    ]
    raw = arbiter.prefer_first([*forward, *(c.swap() for c in forward)], progress)
    preferences = dict(zip(ORDERS, calibrate(raw), strict=True))
    rows = [
        {
            "prompt_id": prompt_id,
            "opponent": opponent,
            "order": order,
            "verdict": _verdict(float(preferences[order][place]), tie_margin)
            if forward[place].first.strip() != forward[place].second.strip()
            else "tie",
            "preference": float(preferences[order][place]),
        }
        for place, (prompt_id, _) in enumerate(prompts)
        for order in ORDERS
    ]
    table = pd.DataFrame(rows, columns=list(WIN_RATES.columns))
    position_bias = float((raw > tie_margin).mean() - (raw < -tie_margin).mean()) if len(raw) else 0.0
    return table, summarise(table, position_bias, resamples)


def calibrate(raw: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Take the preference for a place out of an arbiter's preferences.

    Over both orders every reply stands first once: what remains on average belongs to the place.

    Args:
        raw: Preference for the first reply: n comparisons, then the same ones swapped; shape (2 n,).

    Returns:
        How much the side that stands first in the first half is preferred, in either order; shape (n,) each.
    """
    forward, backward = np.split(raw, 2)
    # Summed pair by pair: an arbiter without a bias then has one of exactly 0.
    bias = float((forward + backward).mean() / 2) if len(forward) else 0.0
    return forward - bias, bias - backward


def summarise(table: pd.DataFrame, position_bias: float = 0.0, resamples: int = 2000) -> HeadToHead:
    """Count a match: a prompt is won or lost only if both orders say so.

    Args:
        table: Table `WIN_RATES` for one opponent.
        position_bias: Passed through.
        resamples: Of the bootstrap.
    """
    verdicts = table.groupby("prompt_id", sort=True)["verdict"].agg(list)
    points = np.array([1.0 if v == ["win"] * 2 else 0.0 if v == ["loss"] * 2 else 0.5 for v in verdicts])
    wins, losses = int((points == 1).sum()), int((points == 0).sum())
    low, high = bootstrap_interval([np.array([p]) for p in points], resamples)
    return HeadToHead(
        wins=wins,
        ties=len(points) - wins - losses,
        losses=losses,
        win_rate=float(points.mean()),
        low=low,
        high=high,
        decided_win_rate=wins / (wins + losses) if wins + losses else None,
        p_value=sign_test(wins, losses),
        disagreement=float(np.mean([set(v) == {"win", "loss"} for v in verdicts])),
        position_bias=position_bias,
    )


def _verdict(preference: float, margin: float) -> Verdict:
    return "win" if preference > margin else "loss" if preference < -margin else "tie"
