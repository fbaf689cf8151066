"""Inventing new prompts from examples (paper section 3.1.3 and appendix A.6, after Self-Instruct).

Attempts are made in rounds. An attempt's examples depend on its own seed and on the prompts accepted before its
round, so the same settings always lead to the same prompts, and an interrupted run continues where it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from srlm_pipeline.config import PromptGenerationSettings
from srlm_pipeline.data.conversations import opening
from srlm_pipeline.errors import EmptyDataError
from srlm_pipeline.generation.engine import Sampling, TextEngine, derive_seed
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.generation.stage import Ask, generate_all
from srlm_pipeline.progress import PartOf, ProgressReporter
from srlm_pipeline.prompting.filters import NoveltyIndex, clean_prompt, rejection_reason
from srlm_pipeline.tables import GENERATED_PROMPTS, REFUSED_PROMPTS

ROUND = 32
"""Attempts between which no new example joins; a constant, so that results do not depend on the batch size."""
_REQUEST = (
    "Write a numbered list of tasks that different people gave to an assistant: questions, requests, puzzles, things "
    "to write. Every task is on another subject than the others and complete in itself, without its answer."
)


@dataclass(frozen=True)
class SeedPrompt:
    """A prompt that may serve as an example."""

    id: str
    prompt: str


def seed_prompts(instructions: pd.DataFrame) -> list[SeedPrompt]:
    """Return IFT prompts as examples: of a conversation its first message, once, since the others need it.

    Args:
        instructions: Table `INSTRUCTIONS`.
    """
    rows = list(zip(instructions["id"], instructions["prompt"], strict=True))
    whole = [SeedPrompt(key, prompt) for key, prompt in rows if opening(prompt) == prompt]
    known = {seed.prompt for seed in whole}
    begun = {opening(prompt): key for key, prompt in rows if opening(prompt) not in known}
    return whole + [SeedPrompt(key, prompt) for prompt, key in begun.items()]


@dataclass(frozen=True)
class PromptGeneration:
    """What came of it.

    Attributes:
        prompts: Table `GENERATED_PROMPTS`.
        refused: Table `REFUSED_PROMPTS`.
        attempts: Completions asked for.
    """

    prompts: pd.DataFrame
    refused: pd.DataFrame
    attempts: int

    @property
    def rejected(self) -> Counter[str]:
        """Refused prompts by reason."""
        return Counter(self.refused["reason"])


def generate_prompts(
    engine: TextEngine,
    seeds: Sequence[SeedPrompt],
    forbidden: Sequence[str],
    settings: PromptGenerationSettings,
    run_seed: int,
    stage: str,
    progress: ProgressReporter,
    journal: Journal | None = None,
    known: Sequence[SeedPrompt] = (),
) -> PromptGeneration:
    """Invent prompts until `settings.count` are accepted.

    Args:
        engine: The model that invents.
        seeds: Human-written prompts: examples, and too similar ones are refused.
        forbidden: Evaluation prompts; too similar ones are refused and counted apart.
        settings: Few-shot composition, sampling, filters.
        run_seed: The run's seed.
        stage: Name that keeps iterations' randomness apart, e.g. ``"prompts/iter_001"``.
        progress: Where progress is shown.
        journal: Finished attempts.
        known: Prompts accepted in earlier iterations: examples too, and not to be repeated.

    Raises:
        EmptyDataError: If too few prompts survive the allowed attempts.
    """
    taken = NoveltyIndex(seed.prompt for seed in (*seeds, *known))
    evaluation = NoveltyIndex(forbidden)
    accepted: list[dict[str, object]] = []
    pool = list(known)
    refused: list[dict[str, object]] = []
    limit = settings.count * settings.max_attempts_factor
    sampling = Sampling(settings.temperature, settings.top_p, settings.max_new_tokens, stop=("\nTask",))
    attempts = 0
    with progress.task("inventing prompts", settings.count, "prompts") as task:
        while len(accepted) < settings.count and attempts < limit:
            numbers = range(attempts, min(attempts + ROUND, limit))
            chosen = {n: _choose_examples(seeds, pool, settings, derive_seed(run_seed, stage, n)) for n in numbers}
            asks = []
            for n, examples in chosen.items():
                message, begun = few_shot_exchange([e.prompt for e in examples])
                asks.append(Ask(f"{n:06d}", message, derive_seed(run_seed, stage, n, "sample"), begun))
            shown, before = PartOf(task), len(accepted)
            completions = generate_all(engine, asks, sampling, stage, shown, journal)
            for number, completion in zip(numbers, completions, strict=True):
                if len(accepted) >= settings.count:
                    break
                attempts += 1
                text = clean_prompt(completion.text)
                reason = rejection_reason(text, settings.min_words, settings.max_words, settings.banned_words)
                if reason is None and completion.finish_reason == "length":
                    reason = "unfinished"
                nearest = taken.nearest(text)
                if reason is None and nearest >= settings.novelty_rouge_l:
                    reason = "not_novel"
                if reason is None and evaluation.nearest(text) >= settings.novelty_rouge_l:
                    reason = "like_an_evaluation_prompt"
                if reason is not None:
                    refused.append({"attempt": number, "reason": reason, "prompt": text})
                    continue
                prompt_id = numbered_id(stage, len(accepted))
                parents = ",".join(e.id for e in chosen[number])
                accepted.append(prompt_row(prompt_id, text, "few_shot", parents, nearest))
                taken.add(text)
                pool.append(SeedPrompt(prompt_id, text))
            # All at once, for all have been written by now.
            new = len(accepted) - before
            task.advance(new, f"{attempts} attempts", new if shown.found_all else 0)
    made = PromptGeneration(
        pd.DataFrame(accepted, columns=list(GENERATED_PROMPTS.columns)),
        pd.DataFrame(refused, columns=list(REFUSED_PROMPTS.columns)),
        attempts,
    )
    if len(accepted) < settings.count:
        raise EmptyDataError(
            f"only {len(accepted)} of {settings.count} prompts were accepted after {attempts} attempts "
            f"(refused: {dict(made.rejected.most_common())}); raise prompt_generation.temperature or novelty_rouge_l, "
            "add seed prompts, or lower prompt_generation.count"
        )
    return made


def few_shot_exchange(examples: Sequence[str]) -> tuple[str, str]:
    """Return a user message that asks for tasks, and a reply to it that has given the examples and begins the next.

    Where the examples stand in the message and a wish for one more follows them, a small model takes up words of the
    wish ("A new one, complete in itself"); a list that it believes to have begun itself, it continues.
    """
    shown = "".join(f"Task {number}: {' '.join(e.split())}\n" for number, e in enumerate(examples, start=1))
    return _REQUEST, f"{shown}Task {len(examples) + 1}:"


def numbered_id(stage: str, number: int) -> str:
    """Return the id of an iteration's prompt: ``"prompts/iter_001"`` and 7 make ``"iter_001-00007"``."""
    return f"{stage.rsplit('/', 1)[-1]}-{number:05d}"


def prompt_row(
    prompt_id: str, prompt: str, operator: str, parent_ids: str, nearest: float, generation: int = 0, checks: str = ""
) -> dict[str, object]:
    """Return a row of table `GENERATED_PROMPTS`.

    Args:
        prompt_id: See `numbered_id`.
        prompt: The new prompt.
        operator: What made it.
        parent_ids: Of the prompts that it was made of, separated by commas.
        nearest: ROUGE-L F1 with the most similar known prompt, in 0..1.
        generation: How many operators lie between it and an invention.
        checks: What a program checks of its replies, as `write_checks` writes it.
    """
    return {
        "prompt_id": prompt_id,
        "prompt": prompt,
        "operator": operator,
        "round": generation,
        "parent_ids": parent_ids,
        "checks": checks,
        "nearest_rouge_l": nearest,
        "n_words": len(prompt.split()),
    }


def _choose_examples(
    seeds: Sequence[SeedPrompt], generated: Sequence[SeedPrompt], settings: PromptGenerationSettings, seed: int
) -> list[SeedPrompt]:
    """Draw seed and generated examples; where too few were generated yet, seeds take their places."""
    random = np.random.default_rng(seed)
    n_generated = min(settings.generated_examples, len(generated))
    n_seeds = min(settings.seed_examples + settings.generated_examples - n_generated, len(seeds))
    examples = [seeds[i] for i in random.choice(len(seeds), n_seeds, replace=False)]
    examples += [generated[i] for i in random.choice(len(generated), n_generated, replace=False)] if n_generated else []
    return [examples[i] for i in random.permutation(len(examples))]
