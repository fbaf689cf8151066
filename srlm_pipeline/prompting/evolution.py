"""Prompts made out of other prompts, and tasks made by program: harder ones where the model succeeds too easily.

*constrain* adds verifiable instructions to a prompt; *given* takes a human-written one as it is; *task* makes a closed
question whose answer is known; *deepen*, *concretise* and *broaden* are written by a model. Which constraints and tasks
are drawn, and which prompts are rewritten, follows from how replies did in earlier iterations (`difficulty`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, count, pairwise
from typing import Any

import numpy as np
import pandas as pd

from srlm_pipeline.checks.checkable import Checks, DrawnInstruction, write_checks
from srlm_pipeline.config import PromptGenerationSettings
from srlm_pipeline.errors import EmptyDataError
from srlm_pipeline.generation.engine import Sampling, TextWriter, derive_seed
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.generation.stage import Ask, generate_all
from srlm_pipeline.progress import PartOf, ProgressReporter
from srlm_pipeline.prompting.constraints import CONSTRAINTS, LEVELS, add_sentences, compatible, draw_constraint
from srlm_pipeline.prompting.difficulty import Difficulty, gather_trials, score_spreads
from srlm_pipeline.prompting.few_shot import SeedPrompt, numbered_id, prompt_row
from srlm_pipeline.prompting.filters import NoveltyIndex, clean_prompt, rejection_reason
from srlm_pipeline.prompting.rewriting import OPERATORS, Operator, rewriting_exchange, rewriting_failure
from srlm_pipeline.prompting.tasks import TASKS, draw_task
from srlm_pipeline.tables import GENERATED_PROMPTS, REFUSED_PROMPTS

ROUND = 16
"""Rewritings that are asked for together; a constant, so that results do not depend on the batch size."""
# 0.1 + 0.2 is a little more than 0.3, and other sums a little less.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Earlier:
    """What is known of the iterations before.

    Attributes:
        prompts: Tables `GENERATED_PROMPTS`, one after another.
        difficulty: How hard checks were.
        spreads: Standard deviation of the scores of each prompt's replies, by prompt id.
    """

    prompts: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(GENERATED_PROMPTS.columns)))
    difficulty: Difficulty = field(default_factory=Difficulty)
    spreads: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, tables: Sequence[tuple[pd.DataFrame, pd.DataFrame]]) -> Earlier:
        """Gather it from tables `GENERATED_PROMPTS` and `JUDGED_SCORES` of all iterations before, oldest first."""
        if not tables:
            return cls()
        trials = [
            trial
            for age, (prompts, scored) in enumerate(reversed(tables), start=1)
            for trial in gather_trials(prompts, scored, age)
        ]
        spreads = {key: value for _, scored in tables for key, value in score_spreads(scored).items()}
        return cls(pd.concat([prompts for prompts, _ in tables], ignore_index=True), Difficulty(trials), spreads)


@dataclass(frozen=True)
class Evolution:
    """What came of it.

    Attributes:
        prompts: Table `GENERATED_PROMPTS`, of the evolved ones alone.
        refused: Table `REFUSED_PROMPTS`, likewise; attempts are numbered from 0.
    """

    prompts: pd.DataFrame
    refused: pd.DataFrame


@dataclass(frozen=True)
class _Attempt:
    """A prompt, where it comes from, what can be checked of replies to it, and why it is a failure, if it is.

    Attributes:
        again: Whether it may have come in an earlier iteration.
        found: Whether it had been written before.
        more: Whether the next has been written already.
    """

    text: str
    parent_id: str = ""
    round: int = 1
    checks: Checks | None = None
    failure: str | None = None
    again: bool = False
    found: bool = False
    more: bool = False


@dataclass(frozen=True)
class _Draws:
    """What every operator draws from: its attempts have random numbers of their own, whatever others do."""

    run_seed: int
    stage: str
    settings: PromptGenerationSettings
    earlier: Earlier

    def seed(self, operator: str, attempt: int, purpose: str) -> int:
        return derive_seed(self.run_seed, self.stage, operator, attempt, purpose)

    def random(self, operator: str, attempt: int) -> np.random.Generator:
        return np.random.default_rng(self.seed(operator, attempt, "draw"))


def prompts_by_operator(settings: PromptGenerationSettings) -> dict[str, int]:
    """Return how many prompts each operator makes, together `count`; at least one is invented (``few_shot``)."""
    names, shares = zip(*settings.evolution, strict=True)
    # Shares are rounded together: each by itself could add up to more than there is.
    ends = [int(end * settings.count + _ROUNDING) for end in accumulate(shares)]
    evolved = dict(zip(names, (end - before for before, end in pairwise([0, *ends])), strict=True))
    return {"few_shot": settings.count - ends[-1], **evolved}


def evolve(
    engine: TextWriter,
    invented: pd.DataFrame,
    seeds: Sequence[SeedPrompt],
    earlier: Earlier,
    forbidden: Iterable[str],
    settings: PromptGenerationSettings,
    run_seed: int,
    stage: str,
    progress: ProgressReporter,
    journal: Journal | None = None,
) -> Evolution:
    """Make as many prompts by each operator as the settings say.

    Args:
        engine: The model that rewrites.
        invented: Table `GENERATED_PROMPTS` of this iteration so far.
        seeds: Human-written prompts, which instructions may be added to as well.
        earlier: What is known of the iterations before.
        forbidden: Evaluation prompts; too similar ones are refused.
        settings: Shares, sampling, filters.
        run_seed: The run's seed.
        stage: Name that keeps iterations' randomness apart, e.g. ``"prompts/iter_001"``.
        progress: Where progress is shown.
        journal: Finished attempts.

    Raises:
        EmptyDataError: If an operator makes too few prompts within the allowed attempts.
    """
    draws = _Draws(run_seed, stage, settings, earlier)
    sources: dict[str, Callable[[PartOf], Iterator[_Attempt]]] = {
        **{operator: partial(_rewritten, operator, engine, invented, draws, journal) for operator in OPERATORS},
        "constrain": lambda _: _constrained(invented, seeds, draws),
        "given": lambda _: _given(seeds, draws),
        "task": lambda _: _tasks(draws),
    }
    known = [*earlier.prompts["prompt"], *invented["prompt"]]
    taken, texts, evaluation = NoveltyIndex(known), set(known), NoveltyIndex(forbidden)
    rows: list[dict[str, object]] = []
    refused: list[dict[str, object]] = []
    for operator, wanted in prompts_by_operator(settings).items():
        if operator not in sources or not wanted:
            continue
        reasons: Counter[str] = Counter()
        accepted, told = 0, 0
        with progress.task(f"evolving prompts: {operator}", wanted, "prompts") as task:
            for number, new in enumerate(sources[operator](PartOf(task)), start=1):
                failure = new.failure or ("not_novel" if not new.again and new.text in texts else None)
                if failure is None and evaluation.nearest(new.text) >= settings.novelty_rouge_l:
                    failure = "like_an_evaluation_prompt"
                if failure is None:
                    prompt_id, nearest = numbered_id(stage, len(invented) + len(rows)), taken.nearest(new.text)
                    checks = write_checks(new.checks) if new.checks else ""
                    rows.append(prompt_row(prompt_id, new.text, operator, new.parent_id, nearest, new.round, checks))
                    texts.add(new.text)
                    accepted += 1
                else:
                    reasons[failure] += 1
                    refused.append({"attempt": len(refused), "reason": f"{operator}: {failure}", "prompt": new.text})
                ends = accepted == wanted or number >= wanted * settings.max_attempts_factor
                if ends or not new.more:
                    task.advance(accepted - told, f"{number} attempts", accepted - told if new.found else 0)
                    told = accepted
                if ends:
                    break
        if accepted < wanted:
            raise EmptyDataError(
                f"the operator {operator} made only {accepted} of {wanted} prompts (refused: "
                f"{dict(reasons.most_common())}); lower prompt_generation.evolution.{operator}, or {_more(operator)}"
            )
    return Evolution(
        pd.DataFrame(rows, columns=list(GENERATED_PROMPTS.columns)),
        pd.DataFrame(refused, columns=list(REFUSED_PROMPTS.columns)),
    )


def _more(operator: str) -> str:
    """Return how more prompts come about."""
    if operator == "given":
        return "add prompts to data.ift, or raise prompt_generation.max_words"
    return "raise prompt_generation.temperature or max_attempts_factor"


def _rewritten(
    operator: Operator,
    engine: TextWriter,
    invented: pd.DataFrame,
    draws: _Draws,
    journal: Journal | None,
    shown: PartOf,
) -> Iterator[_Attempt]:
    """Have a model rewrite prompts of this iteration and of earlier ones, the more the scores of replies differed."""
    settings, spreads = draws.settings, draws.earlier.spreads
    parents = _open(draws.earlier.prompts) + _open(invented)
    # Replies to those of this iteration are not written yet: they count as the average.
    average = float(np.mean(list(spreads.values()))) if spreads else 1.0
    weights = np.array([spreads.get(parent.prompt_id, average) for parent in parents]) + 1e-6
    shares = weights / weights.sum()
    sampling = Sampling(settings.temperature, settings.top_p, settings.max_new_tokens, stop=("\n",))
    for first in count(step=ROUND):
        numbers = range(first, first + ROUND)
        chosen = [parents[int(draws.random(operator, n).choice(len(parents), p=shares))] for n in numbers]
        asks = []
        for n, parent in zip(numbers, chosen, strict=True):
            message, begun = rewriting_exchange(operator, parent.prompt)
            asks.append(Ask(f"{operator}-{n:06d}", message, draws.seed(operator, n, "sample"), begun))
        completions = generate_all(engine, asks, sampling, draws.stage, shown, journal)
        for place, (parent, completion) in enumerate(zip(chosen, completions, strict=True), start=1):
            text = clean_prompt(completion.text)
            failure = "unfinished" if completion.finish_reason == "length" else None
            failure = failure or rejection_reason(text, settings.min_words, settings.max_words, settings.banned_words)
            failure = failure or rewriting_failure(operator, text, parent.prompt, settings.novelty_rouge_l)
            more = place < len(chosen)
            yield _Attempt(text, parent.prompt_id, parent.round + 1, None, failure, found=shown.found_all, more=more)


def _constrained(invented: pd.DataFrame, seeds: Sequence[SeedPrompt], draws: _Draws) -> Iterator[_Attempt]:
    """Add one to three verifiable instructions to prompts of this iteration and to human-written ones, in turn."""
    most = draws.settings.max_words
    known = [
        [(row.prompt_id, row.prompt, row.round) for row in _open(invented)],
        [(seed.id, seed.prompt, 0) for seed in seeds if len(seed.prompt.split()) <= most],
    ]
    known = [parents for parents in known if parents]
    # Everyone is taken once before anyone is taken again.
    orders = [draws.random("constrain", -1 - place).permutation(len(parents)) for place, parents in enumerate(known)]
    for n in count():
        turn, place = divmod(n, len(known))
        random, parents = draws.random("constrain", n), known[place]
        parent_id, prompt, generation = parents[int(orders[place][turn % len(parents)])]
        kinds: list[str] = []
        drawn: list[tuple[DrawnInstruction, str]] = []
        for _ in range(_how_many(random, draws.earlier.difficulty)):
            possible = [kind for kind in CONSTRAINTS if compatible(kind, kinds)]
            if not possible:
                break
            kind, level = draws.earlier.difficulty.draw(random, possible, LEVELS)
            kinds.append(kind)
            drawn.append(draw_constraint(random, kind, level, prompt))
        text = add_sentences(random, prompt, [sentence for _, sentence in drawn])
        checks = tuple(instruction for instruction, _ in drawn)
        yield _Attempt(text, parent_id, generation + 1, checks)


def _how_many(random: np.random.Generator, difficulty: Difficulty) -> int:
    """Return how many instructions a prompt gets: all are to be followed, so more only where one is easy."""
    return min(3, 1 + int(random.binomial(2, difficulty.typical_pass_rate(list(CONSTRAINTS)) ** 2)))


def _given(seeds: Sequence[SeedPrompt], draws: _Draws) -> Iterator[_Attempt]:
    """Take human-written prompts as they are: all of them once before any is taken again in a later iteration."""
    earlier = draws.earlier.prompts
    times = Counter(earlier.loc[earlier["operator"] == "given", "prompt"])
    fitting = {seed.prompt: seed for seed in seeds if len(seed.prompt.split()) <= draws.settings.max_words}
    drawn = draws.random("given", 0).permutation(len(fitting))
    for seed in sorted((list(fitting.values())[place] for place in drawn), key=lambda seed: times[seed.prompt]):
        yield _Attempt(seed.prompt, seed.id, round=0, again=True)


def _tasks(draws: _Draws) -> Iterator[_Attempt]:
    """Set closed tasks by program."""
    for n in count():
        random = draws.random("task", n)
        kind, level = draws.earlier.difficulty.draw(random, list(TASKS), LEVELS)
        drawn = draw_task(random, kind, level)
        yield _Attempt(drawn.task.prompt, round=0, checks=drawn)


def _open(prompts: pd.DataFrame) -> list[Any]:
    """Return the rows of the prompts that no program checks."""
    return list(prompts[prompts["checks"] == ""].itertuples())
