"""LLM-as-a-Judge in two modes: sampled rationales as in the paper, and one forward pass over the scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np

from srlm_pipeline.config import JudgeSettings
from srlm_pipeline.generation.engine import GenerationRequest, Sampling, TextEngine, derive_seed
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.generation.stage import generate_all
from srlm_pipeline.judging.parser import FINAL_LINE, parse_score
from srlm_pipeline.judging.rubric import SCORE_START, SCORES, Rubric, judge_prompt
from srlm_pipeline.progress import ProgressReporter

# Below this the model was about to write something else, and what it thinks of the digits means nothing.
MINIMUM_SCORE_MASS = 0.01


@dataclass(frozen=True)
class JudgeItem:
    """One reply to be judged.

    Attributes:
        key: Unique within the stage.
        prompt: The user's instruction.
        response: The reply.
    """

    key: str
    prompt: str
    response: str


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one reply.

    Attributes:
        key: Of the item.
        score: In 0..5; None if no judgement was valid.
        n_valid: Judgements with a score.
        n_invalid: Judgements without.
        spread: Standard deviation, over the samples or of the distribution; None without a score.
        raw: What the judge wrote (JSON list), or its probabilities of 0..5 (JSON list).
    """

    key: str
    score: float | None
    n_valid: int
    n_invalid: int
    spread: float | None
    raw: str


class Judge(Protocol):
    """Scores replies from 0 to 5."""

    @property
    def name(self) -> str:
        """Mode and model, as written into tables."""
        ...

    def judge(
        self, items: Sequence[JudgeItem], progress: ProgressReporter, journal: Journal | None = None
    ) -> list[Judgement]:
        """Judge every item; results come in the order of the items."""
        ...


class SampledJudge:
    """The paper's judge: K sampled rationales, the valid scores averaged (paper section 2.2).

    Args:
        engine: The judging model.
        settings: Sampling, K, rubric.
        run_seed: Each judgement's randomness derives from it and the item's key.
        stage: Name that keeps stages' randomness apart.
    """

    def __init__(self, engine: TextEngine, settings: JudgeSettings, run_seed: int, stage: str) -> None:
        self._engine, self._settings, self._run_seed, self._stage = engine, settings, run_seed, stage

    @property
    def name(self) -> str:
        """Mode, K and model digest."""
        return f"sampled-{self._settings.samples}@{self._engine.digest}"

    def judge(
        self, items: Sequence[JudgeItem], progress: ProgressReporter, journal: Journal | None = None
    ) -> list[Judgement]:
        """Judge every item K times; see `Judge.judge`."""
        settings = self._settings
        distinct = _distinct(items)
        requests = [
            GenerationRequest(
                f"{item.key}#{k}",
                self._engine.render(judge_prompt(settings.rubric, item.prompt, item.response, "rationale")),
                derive_seed(self._run_seed, self._stage, item.key, k),
            )
            for item in distinct
            for k in range(settings.samples)
        ]
        sampling = Sampling(settings.temperature, settings.top_p, settings.max_new_tokens, stop_after=FINAL_LINE)
        completions = generate_all(self._engine, requests, sampling, "judging", progress, journal)
        judgements = []
        for place, item in enumerate(distinct):
            own = completions[place * settings.samples : (place + 1) * settings.samples]
            parsed = [parse_score(c.text, c.finish_reason) for c in own]
            valid = [score for score in parsed if score is not None]
            judgements.append(
                Judgement(
                    item.key,
                    float(np.mean(valid)) if valid else None,
                    len(valid),
                    len(parsed) - len(valid),
                    float(np.std(valid)) if valid else None,
                    json.dumps([c.text for c in own], ensure_ascii=False),
                )
            )
        return _for_all(items, distinct, judgements)


class DistributionJudge:
    """One forward pass per reply: the expected score under the probabilities of 0..5 after ``Score: ``.

    Args:
        engine: The judging model.
        rubric: Which wording of the rubric.
    """

    def __init__(self, engine: TextEngine, rubric: Rubric) -> None:
        self._engine, self._rubric = engine, rubric

    @property
    def name(self) -> str:
        """Mode and model digest."""
        return f"distribution@{self._engine.digest}"

    def judge(
        self, items: Sequence[JudgeItem], progress: ProgressReporter, journal: Journal | None = None
    ) -> list[Judgement]:
        """Judge every item once; see `Judge.judge`."""
        finished: dict[str, dict[str, Any]] = dict(journal.items) if journal else {}
        distinct = _distinct(items)
        # Alike lengths together, so that batches are little padded.
        rest = sorted((i for i in distinct if i.key not in finished), key=lambda i: -len(i.prompt + i.response))
        with progress.task("judging", len(distinct), "judgements", len(distinct) - len(rest)) as task:
            for start in range(0, len(rest), _JOURNAL_CHUNK):
                chunk = rest[start : start + _JOURNAL_CHUNK]
                prefixes = [
                    self._engine.render(judge_prompt(self._rubric, i.prompt, i.response, "direct"), SCORE_START)
                    for i in chunk
                ]
                masses = self._engine.next_token_distribution(prefixes, SCORES, task.advance)
                new = {
                    item.key: _without_key(expected_score(item.key, row.tolist()))
                    for item, row in zip(chunk, masses, strict=True)
                }
                if journal is not None:
                    journal.append(new)
                finished.update(new)
        return _for_all(items, distinct, [Judgement(key=item.key, **finished[item.key]) for item in distinct])


_JOURNAL_CHUNK = 128


def _distinct(items: Sequence[JudgeItem]) -> list[JudgeItem]:
    """Return one item of each prompt and response: samples repeat themselves, and none is judged twice.

    Of several alike the one with the smallest key, so that its seed does not depend on the order of the items.
    """
    chosen: dict[tuple[str, str], JudgeItem] = {}
    for item in items:
        known = chosen.setdefault((item.prompt, item.response), item)
        if item.key < known.key:
            chosen[item.prompt, item.response] = item
    return list(chosen.values())


def _for_all(
    items: Sequence[JudgeItem], distinct: Sequence[JudgeItem], judgements: Sequence[Judgement]
) -> list[Judgement]:
    """Give every item the judgement of its like, under its own key."""
    by_content = {(i.prompt, i.response): j for i, j in zip(distinct, judgements, strict=True)}
    return [replace(by_content[item.prompt, item.response], key=item.key) for item in items]


def expected_score(key: str, masses: Sequence[float]) -> Judgement:
    """Turn the probabilities of the scores 0..5 into a judgement.

    Args:
        key: Of the item.
        masses: Shape (6,), the full-vocabulary probabilities of the six score tokens.
    """
    total = sum(masses)
    if not total >= MINIMUM_SCORE_MASS:
        return Judgement(key, None, 0, 1, None, json.dumps(masses))
    shares = np.asarray(masses, dtype=float) / total
    values = np.arange(len(shares))
    mean = float(shares @ values)
    spread = float(shares @ (values - mean) ** 2) ** 0.5
    return Judgement(key, min(max(mean, 0.0), float(values[-1])), 1, 0, spread, json.dumps(masses))


def make_judge(engine: TextEngine, settings: JudgeSettings, run_seed: int, stage: str) -> Judge:
    """Return the judge that the settings ask for."""
    if settings.mode == "sampled":
        return SampledJudge(engine, settings, run_seed, stage)
    return DistributionJudge(engine, settings.rubric)


def _without_key(judgement: Judgement) -> dict[str, Any]:
    return {k: v for k, v in asdict(judgement).items() if k != "key"}
