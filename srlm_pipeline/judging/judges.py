"""LLM-as-a-Judge in three modes.

Sampled rationales as in the paper, one forward pass over the scores, and a rationale followed by such a pass.
What is asked is one rubric for all prompts, unless a judge is told to ask otherwise (`Messages`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np

from srlm_pipeline.config import JudgeSettings
from srlm_pipeline.generation.engine import Sampling, TextEngine, TextWriter, derive_seed
from srlm_pipeline.generation.journal import Journal, fingerprint
from srlm_pipeline.generation.stage import Ask, generate_all, refuse_duplicates
from srlm_pipeline.judging.parser import FINAL_LINE, parse_score, rationale_before_score
from srlm_pipeline.judging.reading import Expectation, expectation, weighted_expectation
from srlm_pipeline.judging.rubric import SCORE_START, SCORES, Rubric, judge_prompt
from srlm_pipeline.progress import ProgressReporter


@dataclass(frozen=True)
class JudgeItem:
    """One reply to be judged.

    Attributes:
        key: Unique within the stage; seeds derive from it.
        prompt: The user's instruction.
        response: The reply.
        kind: Of the prompt, where the data says so. Replies to one prompt have the same.
    """

    key: str
    prompt: str
    response: str
    kind: str | None = None


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one reply.

    Attributes:
        key: Of the item.
        score: In 0..5; None if no judgement was valid.
        n_valid: Judgements with a score.
        n_invalid: Judgements without.
        spread: Standard deviation, over the samples or of the distribution; None without a score.
        raw: What the judge wrote (JSON list), its probabilities of 0..5 (JSON list), or both (JSON object of
            ``rationale`` and ``probabilities``, the latter null after a rationale that was cut off). By a kind's
            rubric a JSON object of ``kind`` (null for the general rubric) and ``dimensions`` (probabilities of 0..5 by
            name); by a checklist one of ``questions`` (JSON list of objects). Of a panel, what every member said (JSON
            list of objects).
        disagreement: Standard deviation between the members of a panel; None without two that gave a score.
        passed: Share of the prompt's checks that the reply passes, in 0..1; None where no program checked it.
        opinion: Where one did, what the other members of the panel think, in 0..5; None if they gave no score.
    """

    key: str
    score: float | None
    n_valid: int
    n_invalid: int
    spread: float | None
    raw: str
    disagreement: float | None = None
    passed: float | None = None
    opinion: float | None = None


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


# Returns what the judge is asked of each item, a rationale first and then one score.
Messages = Callable[[Sequence[JudgeItem], ProgressReporter, Journal | None], list[str]]


class SampledJudge:
    """The paper's judge: K sampled rationales, the valid scores averaged (paper section 2.2).

    Args:
        engine: The judging model.
        settings: Sampling, K, rubric.
        run_seed: Each judgement's randomness derives from it and the item's key.
        stage: Name that keeps stages' randomness apart.
        messages: What is asked; None: by the rubric that M1 is taught.
    """

    def __init__(
        self,
        engine: TextWriter,
        settings: JudgeSettings,
        run_seed: int,
        stage: str,
        messages: Messages | None = None,
    ) -> None:
        self._engine, self._settings, self._run_seed, self._stage = engine, settings, run_seed, stage
        self._messages = messages or _by_rubric(settings.taught_rubric)

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
        asks = [
            Ask(f"{item.key}#{k}", message, derive_seed(self._run_seed, self._stage, item.key, k))
            for item, message in zip(distinct, self._messages(distinct, progress, journal), strict=True)
            for k in range(settings.samples)
        ]
        completions = generate_all(self._engine, asks, _sampling(settings), "judging", progress, journal)
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
        distinct = _distinct(items)
        judgements = _expected_scores(
            self._engine,
            distinct,
            lambda i: (judge_prompt(self._rubric, i.prompt, i.response, "direct"), SCORE_START),
            progress,
            journal,
        )
        return _for_all(items, distinct, judgements)


class HybridJudge:
    """One sampled rationale per reply, then the expected score at the place where the judge would write its score.

    The rationale is the judge's own up to that place; a score that it has written there gives way to the distribution.

    Args:
        engine: The judging model.
        settings: Sampling and rubric; `samples` is not read.
        run_seed: Each rationale's randomness derives from it and the item's key.
        stage: Name that keeps stages' randomness apart.
        messages: What is asked; None: by the rubric that M1 is taught.
    """

    def __init__(
        self,
        engine: TextEngine,
        settings: JudgeSettings,
        run_seed: int,
        stage: str,
        messages: Messages | None = None,
    ) -> None:
        self._engine, self._settings, self._run_seed, self._stage = engine, settings, run_seed, stage
        self._messages = messages or _by_rubric(settings.taught_rubric)

    @property
    def name(self) -> str:
        """Mode and model digest."""
        return f"hybrid@{self._engine.digest}"

    def judge(
        self, items: Sequence[JudgeItem], progress: ProgressReporter, journal: Journal | None = None
    ) -> list[Judgement]:
        """Judge every item once; see `Judge.judge`."""
        distinct = _distinct(items)
        messages = {
            item.key: message
            for item, message in zip(distinct, self._messages(distinct, progress, journal), strict=True)
        }
        asks = [
            Ask(item.key, messages[item.key], derive_seed(self._run_seed, self._stage, item.key, 0))
            for item in distinct
        ]
        completions = generate_all(
            self._engine, asks, _sampling(self._settings), "writing rationales", progress, journal
        )
        # A rationale that was cut off has no place of the score.
        places = {
            item.key: _score_place(completion.text)
            for item, completion in zip(distinct, completions, strict=True)
            if completion.finish_reason == "stop"
        }
        weighed = _expected_scores(
            self._engine,
            [item for item in distinct if item.key in places],
            lambda item: (messages[item.key], places[item.key]),
            progress,
            journal,
        )
        scores = dict(zip(places, weighed, strict=True))
        judgements = [
            _with_rationale(item.key, completion.text, scores.get(item.key))
            for item, completion in zip(distinct, completions, strict=True)
        ]
        return _for_all(items, distinct, judgements)


def _by_rubric(rubric: Rubric) -> Messages:
    return lambda items, progress, journal: [judge_prompt(rubric, i.prompt, i.response, "rationale") for i in items]


def _expected_scores(
    engine: TextEngine,
    items: Sequence[JudgeItem],
    asked: Callable[[JudgeItem], tuple[str, str]],
    progress: ProgressReporter,
    journal: Journal | None,
) -> list[Judgement]:
    """Return every item's expected score, by the distribution that follows the beginning of a reply.

    Args:
        engine: The judging model.
        items: All different.
        asked: Gives the message, and what the reply begins with: all up to the place of the score.
        progress: Where progress is shown.
        journal: Finished scores are read from it and added to it.
    """
    refuse_duplicates([item.key for item in items])
    entries = {item.key: fingerprint(engine.digest, *asked(item), SCORES) for item in items}
    known = journal.find(entries.values()) if journal is not None else {}
    finished = {key: known[entry] for key, entry in entries.items() if entry in known}
    # Alike lengths together, so that batches are little padded.
    rest = sorted((i for i in items if i.key not in finished), key=lambda i: -len(i.prompt + i.response))
    with progress.task("judging", len(items), "judgements", len(items) - len(rest)) as task:
        for start in range(0, len(rest), _JOURNAL_CHUNK):
            # Rendered a chunk at a time, so that few are held.
            chunk = rest[start : start + _JOURNAL_CHUNK]
            masses = engine.next_token_distribution(
                [engine.render(*asked(item)) for item in chunk], SCORES, task.advance
            )
            new = {
                item.key: _without_key(expected_score(item.key, row.tolist()))
                for item, row in zip(chunk, masses, strict=True)
            }
            if journal is not None:
                journal.append({entries[key]: judged for key, judged in new.items()})
            finished.update(new)
    return [Judgement(key=item.key, **finished[item.key]) for item in items]


def _sampling(settings: JudgeSettings) -> Sampling:
    return Sampling(settings.temperature, settings.top_p, settings.max_new_tokens, stop_after=FINAL_LINE)


def _with_rationale(key: str, rationale: str, weighed: Judgement | None) -> Judgement:
    probabilities = json.loads(weighed.raw) if weighed else None
    raw = json.dumps({"rationale": rationale, "probabilities": probabilities}, ensure_ascii=False)
    return replace(weighed, key=key, raw=raw) if weighed else Judgement(key, None, 0, 1, None, raw)


def _score_place(judgement: str) -> str:
    """Return the beginning of a reply up to the place of its score, in the form that judging data teaches."""
    rationale = rationale_before_score(judgement)
    return f"{rationale}\n{SCORE_START}" if rationale else SCORE_START


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
    found = expectation(masses, range(len(masses)))
    if found is None:
        return Judgement(key, None, 0, 1, None, json.dumps(masses))
    return Judgement(key, found.mean, 1, 0, found.spread, json.dumps(masses))


def weighted_judgement(
    key: str, answers: Sequence[Expectation | None], weights: Sequence[float], raw: str
) -> Judgement:
    """Turn the answers to several questions about one reply into a judgement: their weighted mean.

    Args:
        key: Of the item.
        answers: On the scale 0..5; None where the model was not about to answer, which is counted as invalid.
        weights: Of the questions, shape (answers,).
        raw: What is kept of the answers.
    """
    found = weighted_expectation(answers, weights)
    n_valid = sum(answer is not None for answer in answers)
    mean, spread = (found.mean, found.spread) if found else (None, None)
    return Judgement(key, mean, n_valid, len(answers) - n_valid, spread, raw)


def _without_key(judgement: Judgement) -> dict[str, Any]:
    return {k: v for k, v in asdict(judgement).items() if k != "key"}
