"""Who says which of two replies is better: a model by its probabilities, by its scores, or in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from srlm_pipeline.generation.engine import Sampling, TextEngine, TextWriter
from srlm_pipeline.generation.journal import Journal, fingerprint
from srlm_pipeline.generation.stage import Ask, generate_all
from srlm_pipeline.judging.judges import Judge, JudgeItem
from srlm_pipeline.judging.parser import Winner, parse_verdict
from srlm_pipeline.judging.rubric import COMPARISON_OPTIONS, COMPARISON_START, comparison_prompt, verdict_prompt
from srlm_pipeline.progress import ProgressReporter


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
        """Return for each comparison how much better the first reply is; 0 means equal, NaN no opinion.

        Returns:
            Shape (len(comparisons),).
        """
        ...


class ComparisonArbiter:
    """Shows both replies and reads log P(A) - log P(B) from the next-token distribution.

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
    """Compares two scores. It sees one reply at a time, so the order cannot matter to it.

    Args:
        judge: Who scores.
        journal: What the same judge has scored before, in whichever match, is not judged again.
    """

    def __init__(self, judge: Judge, journal: Journal | None = None) -> None:
        self._judge = judge
        self._journal = journal

    @property
    def name(self) -> str:
        """Method, the judge's mode and its model's digest."""
        return f"scores-{self._judge.name}"

    def prefer_first(self, comparisons: Sequence[Comparison], progress: ProgressReporter) -> NDArray[np.float64]:
        """See `Arbiter.prefer_first`; each different reply is judged once. Without both scores there is no opinion."""
        different = list(dict.fromkeys((c.prompt, text) for c in comparisons for text in (c.first, c.second)))
        items = [JudgeItem(fingerprint(prompt, text), prompt, text) for prompt, text in different]
        judged = self._judge.judge(items, progress, self._journal)
        score = {pair: np.nan if j.score is None else j.score for pair, j in zip(different, judged, strict=True)}
        return np.array([score[c.prompt, c.first] - score[c.prompt, c.second] for c in comparisons], dtype=float)


class VerdictArbiter:
    """Shows both replies and asks for reasons and a verdict in words, which any model can be asked for.

    The verdict is the answer's own last line; an answer without one is no opinion. What the journal holds is not asked
    again, in whichever match the same two replies meet.

    Args:
        writer: The arbiter's model.
        max_new_tokens: For reasons and verdict.
        journal: Of its answers, by content.
    """

    def __init__(self, writer: TextWriter, max_new_tokens: int, journal: Journal | None = None) -> None:
        self._writer, self._max_new_tokens, self._journal = writer, max_new_tokens, journal

    @property
    def name(self) -> str:
        """Method and model digest."""
        return f"verdict@{self._writer.digest}"

    def prefer_first(self, comparisons: Sequence[Comparison], progress: ProgressReporter) -> NDArray[np.float64]:
        """Return 1, 0 or -1, NaN for no opinion; see `Arbiter.prefer_first`. Of equal replies nothing is asked."""
        asks = {
            c: Ask(fingerprint(c.prompt, c.first, c.second), verdict_prompt(c.prompt, c.first, c.second), seed=0)
            for c in comparisons
            if c.first.strip() != c.second.strip()
        }
        answers = generate_all(
            self._writer,
            list(asks.values()),
            Sampling(max_new_tokens=self._max_new_tokens),
            "comparing replies",
            progress,
            self._journal,
        )
        values: dict[Winner | None, float] = {"A": 1.0, "tie": 0.0, "B": -1.0, None: np.nan}
        said = {c: values[parse_verdict(a.text, a.finish_reason)] for c, a in zip(asks, answers, strict=True)}
        return np.array([said.get(c, 0.0) for c in comparisons], dtype=float)
