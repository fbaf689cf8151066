"""Whether a new model may become the champion. This is the only place where a promotion is decided."""

from __future__ import annotations

from dataclasses import dataclass

from srlm_pipeline.config import PromotionSettings

# 0.65 - 0.6 is a little more than 0.05.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Rule:
    """One rule with its figures and verdict."""

    name: str
    passed: bool
    explanation: str


@dataclass(frozen=True)
class ModelFigures:
    """What promotion looks at.

    Attributes:
        win_rate: Of the new model against the model before it, ties counting half.
        judge_accuracy: Pairwise, of the new model as a judge; None if it could not be measured.
        previous_judge_accuracy: Of the model before it.
        length_mean: Characters per evaluation reply.
        previous_length_mean: Of the model before it.
    """

    win_rate: float
    judge_accuracy: float | None
    previous_judge_accuracy: float | None
    length_mean: float
    previous_length_mean: float


def decide_promotion(figures: ModelFigures, settings: PromotionSettings) -> list[Rule]:
    """Apply every rule; the model is promoted only if all pass."""
    rules = [
        Rule(
            "wins against the previous model",
            figures.win_rate > settings.min_win_rate,
            f"win rate {figures.win_rate:.1%}, more than {settings.min_win_rate:.1%} needed",
        )
    ]
    before, now = figures.previous_judge_accuracy, figures.judge_accuracy
    if now is None:
        rules.append(Rule("judges as well as before", False, "its judgements could not be compared with human ones"))
    else:
        drop = (before - now) if before is not None else 0.0
        rules.append(
            Rule(
                "judges as well as before",
                drop <= settings.max_judge_accuracy_drop + _ROUNDING,
                f"pairwise accuracy {now:.1%} after {before if before is not None else now:.1%}, "
                f"a drop of {settings.max_judge_accuracy_drop:.1%} is allowed",
            )
        )
    growth = figures.length_mean / figures.previous_length_mean if figures.previous_length_mean else float("inf")
    rules.append(
        Rule(
            "replies did not just get longer",
            growth <= settings.max_length_growth,
            f"mean length {growth:.2f} times the previous model's, {settings.max_length_growth:.2f} allowed",
        )
    )
    return rules
