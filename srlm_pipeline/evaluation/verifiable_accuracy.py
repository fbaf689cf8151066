"""Which instructions replies follow, and how many of a model's replies: the figures that IFEval reports.

*Strict* takes a reply as it is. *Loose* also accepts it without its first line, its last line, both, and each of
these without asterisks, because a greeting or bold type is often all that stands in the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from srlm_pipeline.checks.verifiable import VerifiablePrompt, check_reply
from srlm_pipeline.errors import EmptyDataError
from srlm_pipeline.evaluation.statistics import DEFAULT_RESAMPLES, bootstrap_interval
from srlm_pipeline.tables import VERIFIABLE

_SEPARATOR = ","


@dataclass(frozen=True)
class KindShare:
    """How often one kind of instruction was followed, strictly.

    Attributes:
        kind: Its name.
        n: Instructions of this kind.
        share: Of those, 0..1.
    """

    kind: str
    n: int
    share: float


@dataclass(frozen=True)
class VerifiableAccuracy:
    """IFEval's four figures for one model, in 0..1, with 95 % intervals.

    A prompt counts if all its instructions are followed. Intervals of prompts are Wilson's; instructions of one
    prompt are not independent, so theirs are bootstrap intervals over prompts.

    Attributes:
        prompt_strict: Share of prompts with all instructions followed.
        prompt_strict_low: Lower end of its interval.
        prompt_strict_high: Upper end.
        prompt_loose: The same, loose.
        prompt_loose_low: Lower end of its interval.
        prompt_loose_high: Upper end.
        instruction_strict: Share of instructions followed.
        instruction_strict_low: Lower end of its interval; None with one prompt, and so below.
        instruction_strict_high: Upper end.
        instruction_loose: The same, loose.
        instruction_loose_low: Lower end of its interval.
        instruction_loose_high: Upper end.
        n_prompts: Prompts.
        n_instructions: Instructions in them.
        kinds: Strict share of each kind of instruction, by name.
    """

    prompt_strict: float
    prompt_strict_low: float
    prompt_strict_high: float
    prompt_loose: float
    prompt_loose_low: float
    prompt_loose_high: float
    instruction_strict: float
    instruction_strict_low: float | None
    instruction_strict_high: float | None
    instruction_loose: float
    instruction_loose_low: float | None
    instruction_loose_high: float | None
    n_prompts: int
    n_instructions: int
    kinds: tuple[KindShare, ...]

    def metrics(self) -> dict[str, float]:
        """Return the figures by name, without those of single kinds: a handful of instructions each says little."""
        figures = {name: value for name, value in asdict(self).items() if name != "kinds"}
        return {name: float(value) for name, value in figures.items() if value is not None}


def verifiable_table(
    model: str, prompts: Sequence[VerifiablePrompt], replies: Sequence[str], wrecked: Sequence[bool]
) -> pd.DataFrame:
    """Check a model's replies; returns table `VERIFIABLE`.

    Args:
        model: Its name.
        prompts: What it was asked.
        replies: Same order.
        wrecked: Whether a reply is a loop, an echo, a recital or empty: such a one follows nothing, for without commas
            it is by accident.
    """
    rows = []
    for prompt, reply, wreck in zip(prompts, replies, wrecked, strict=True):
        # A blank reply follows nothing.
        check = check_reply(prompt, "" if wreck else reply)
        names = [instruction.kind.name for instruction in prompt.instructions]
        failed = [name for name, followed in zip(names, check.strict, strict=True) if not followed]
        rows.append(
            {
                "model": model,
                "key": prompt.key,
                "prompt": prompt.prompt,
                "reply": reply,
                "instructions": _SEPARATOR.join(names),
                "n_instructions": len(names),
                "n_strict": sum(check.strict),
                "n_loose": sum(check.loose),
                "failed": _SEPARATOR.join(failed),
            }
        )
    return pd.DataFrame(rows, columns=list(VERIFIABLE.columns))


def kinds_in(names: str) -> list[str]:
    """Return the kinds of instruction that a field of table `VERIFIABLE` names."""
    return names.split(_SEPARATOR) if names else []


def measure_verifiable(table: pd.DataFrame, resamples: int = DEFAULT_RESAMPLES) -> VerifiableAccuracy:
    """Count what a model's replies follow.

    Args:
        table: Table `VERIFIABLE` of one model.
        resamples: Of the bootstrap.

    Raises:
        EmptyDataError: If the table has no rows.
    """
    if table.empty:
        raise EmptyDataError("no replies to prompts with verifiable instructions")
    asked = table["n_instructions"].to_numpy()
    figures: dict[str, Any] = {}
    for manner in ("strict", "loose"):
        followed = table[f"n_{manner}"].to_numpy()
        complete = int((followed == asked).sum())
        interval = stats.binomtest(complete, len(table)).proportion_ci(0.95, method="wilson")
        figures |= _figures(f"prompt_{manner}", complete / len(table), (interval.low, interval.high))
        groups = [np.repeat([1.0, 0.0], [yes, n - yes]) for yes, n in zip(followed, asked, strict=True)]
        share = followed.sum() / asked.sum()
        ends = bootstrap_interval(groups, resamples) if len(groups) > 1 else (None, None)
        figures |= _figures(f"instruction_{manner}", share, ends)
    return VerifiableAccuracy(
        **figures, n_prompts=len(table), n_instructions=int(asked.sum()), kinds=tuple(shares_by_kind(table))
    )


def shares_followed(table: pd.DataFrame) -> NDArray[np.float64]:
    """Return the share of instructions that each reply follows strictly, for paired comparisons of two models.

    Args:
        table: Table `VERIFIABLE` of one model; tables made from the same prompts have the same order.

    Returns:
        Shape (prompts,).
    """
    return np.asarray(table["n_strict"] / table["n_instructions"], dtype=float)


def _figures(name: str, share: float, interval: tuple[float, float] | tuple[None, None]) -> dict[str, float | None]:
    return {name: float(share), f"{name}_low": interval[0], f"{name}_high": interval[1]}


def shares_by_kind(table: pd.DataFrame) -> list[KindShare]:
    """Return how often each kind of instruction was followed, by name; `table` is table `VERIFIABLE` of one model."""
    asked, failed = (
        Counter(name for names in table[column] for name in kinds_in(names)) for column in ("instructions", "failed")
    )
    return [KindShare(name, n, (n - failed[name]) / n) for name, n in sorted(asked.items())]
