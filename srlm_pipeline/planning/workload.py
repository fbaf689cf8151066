"""How much work each stage is: counted from settings and data, whatever machine will do it.

Counts follow what the stages do: beginnings that the engine reads once are counted once, training is counted with its
padding, journals that spare a stage work spare it here. What cannot be known before a run is an `Assumptions`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np
import pandas as pd

from srlm_pipeline.config import PROGRAMS, ArbiterSettings, Settings, TrainingSettings
from srlm_pipeline.data.chat import render_user_turn, tokenize_exchange
from srlm_pipeline.data.loaders import load_evaluation_prompts, load_instructions, load_ranked_replies
from srlm_pipeline.evaluation.closed_tasks import load_closed_tasks
from srlm_pipeline.evaluation.verifiable.prompts import load_verifiable
from srlm_pipeline.judging.contrasts import with_contrasts
from srlm_pipeline.judging.eft import eft_from_dataset
from srlm_pipeline.judging.rubric import COMPARISON_START, SCORE_START, comparison_prompt, judge_prompt
from srlm_pipeline.prompting.few_shot import few_shot_exchange
from srlm_pipeline.training.seed import judgement_examples, ranked_examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Phase = Literal["seed", "iteration"]
TrainingKind = Literal["sft", "ranking", "dpo"]
JudgeMode = Literal["sampled", "distribution", "hybrid"]
Item = TypeVar("Item")
# Lengths are measured on so many texts, evenly spaced; more would not change a mean.
_SAMPLE = 400
# The engine reads a common beginning once if it is at least so long (`generation/prefill.py`).
_WORTHWHILE = 16
# Prompts are invented in rounds of so many attempts (`prompting/few_shot.py`).
_ROUND = 32
# Bytes of a token's text, in a table or journal.
_TEXT_BYTES = 5


class TextMeasure(Protocol):
    """Tells how a text becomes tokens."""

    def prompt(self, message: str, reply_start: str = "") -> Sequence[Hashable]:
        """Return the tokens of a rendered user message, after which the model writes."""
        ...

    def exchange(self, message: str, reply: str) -> tuple[int, int]:
        """Return how many tokens a rendered user message and the reply to it have, end token included."""
        ...


class TokenizerMeasure:
    """Tokens as the model's own tokenizer makes them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def prompt(self, message: str, reply_start: str = "") -> Sequence[Hashable]:
        """See `TextMeasure.prompt`."""
        rendered = render_user_turn(self._tokenizer, message, reply_start)
        return list(self._tokenizer(rendered, add_special_tokens=False).input_ids)

    def exchange(self, message: str, reply: str) -> tuple[int, int]:
        """See `TextMeasure.exchange`."""
        prompt, replied = tokenize_exchange(self._tokenizer, message, reply)
        return len(prompt), len(replied)


class CharacterMeasure:
    """Four characters a token, and a short chat template: for a model of which only the size is known."""

    def prompt(self, message: str, reply_start: str = "") -> Sequence[Hashable]:
        """See `TextMeasure.prompt`."""
        text = f"<|user|>\n{message}\n<|assistant|>\n{reply_start}"
        return [text[start : start + 4] for start in range(0, len(text), 4)]

    def exchange(self, message: str, reply: str) -> tuple[int, int]:
        """See `TextMeasure.exchange`."""
        return len(self.prompt(message)), -(-len(reply) // 4) + 1


@dataclass(frozen=True)
class Lengths:
    """Token counts of many texts.

    Attributes:
        count: How many texts there are.
        sample: The lengths of some or all of them, in tokens.
    """

    count: int
    sample: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean length in tokens; 0 without texts."""
        return float(np.mean(self.sample)) if self.sample else 0.0

    @property
    def largest(self) -> int:
        """The longest of the sample, in tokens."""
        return max(self.sample, default=0)

    def cut(self, limit: int) -> Lengths:
        """Return the lengths when longer texts are cut."""
        return Lengths(self.count, tuple(min(length, limit) for length in self.sample))

    def joined(self, other: Lengths) -> Lengths:
        """Return both together, each weighing as much as it has texts."""
        if not other.count:
            return self
        each = max(1, round(len(self.sample) * other.count / max(self.count, 1)))
        places = np.linspace(0, len(other.sample) - 1, each).round().astype(int)
        return Lengths(self.count + other.count, self.sample + tuple(sorted(other.sample)[i] for i in places))

    def longer_of_two(self) -> Lengths:
        """Return the lengths of the longer one of two random texts."""
        ordered = np.sort(self.sample)
        n = len(ordered)
        return Lengths(self.count, tuple(int(ordered[int(n * ((i + 0.5) / n) ** 0.5)]) for i in range(n)))

    def padded(self, together: int, step: int) -> float:
        """Return the mean length after batches were padded to their longest text.

        Args:
            together: Texts per batch.
            step: Texts among which those of like length are put together, a multiple of that.
        """
        if not self.sample:
            return 0.0
        from scipy.stats import binom

        ordered = np.sort(self.sample)
        above = 1 - np.arange(len(ordered) + 1) / len(ordered)
        # The longest text of the first batch is the longest of all, that of the second comes `together` places later.
        # It is no longer than a value if no more than those before it are.
        below = [binom.cdf(before, step, above) for before in range(0, step, together)]
        return float(np.mean([ordered @ np.diff(share) for share in below]))


@dataclass(frozen=True)
class Groups:
    """Sequences that are trained together, a prompt's replies for example.

    Attributes:
        count: Groups.
        sequences: Mean number of sequences in one.
        shared: Tokens that a group takes when its common beginning is computed once.
        whole: Tokens that it takes when every sequence is computed whole.
    """

    count: int
    sequences: float
    shared: Lengths
    whole: Lengths


@dataclass(frozen=True)
class DataFacts:
    """What the work depends on, measured on the data. Prompts count without what all of them begin with.

    Attributes:
        instructions: IFT prompt and response together.
        prompts: IFT prompts, chat template included.
        responses: IFT responses.
        judgements: Judgement texts of the data file with their prompts; empty where the model writes its own.
        ranked: Training prompts with their replies as the ranking objective sees them.
        train_replies: Judging prompts of the training replies, that ask for a rationale.
        rationale_beginning: Tokens with which all of these begin.
        held_out: Judging prompts of the held-out replies, that ask for a score.
        held_out_pairs: Ordered pairs among them.
        messages: IFT prompts as a model is asked them; invented prompts are taken to be as long.
        evaluation: Evaluation prompts as a model is asked them.
        checkable: The same of prompts with checkable instructions.
        closed: The same of closed tasks.
        best_replies: The best human replies to held-out prompts, with these.
        few_shot: Exchanges after which a model writes a new prompt.
        bare_prompt: Tokens of an IFT prompt alone.
        judge_frame: Tokens around question and reply that are not the same beginning every time.
        comparison_frame: The same around question and two replies.
    """

    instructions: Lengths
    prompts: Lengths
    responses: Lengths
    judgements: Lengths
    ranked: Groups
    train_replies: Lengths
    rationale_beginning: int
    held_out: Lengths
    held_out_pairs: int
    messages: Lengths
    evaluation: Lengths
    checkable: Lengths
    closed: Lengths
    best_replies: Lengths
    few_shot: Lengths
    bare_prompt: float
    judge_frame: float
    comparison_frame: float


@dataclass(frozen=True)
class Assumptions:
    """What no one knows before the run.

    Attributes:
        reply_share: Replies' mean length, as a share of the IFT responses', before the limit cuts.
        judgement_tokens: Mean length of a judgement that a model writes, before the limit cuts.
        acceptance: Share of invented prompts that are accepted.
        pairs_kept: Share of prompts whose best and worst reply differ enough.
        self_judged_kept: Share of judging prompts whose order the SFT baseline gets right (`eft.targets: self`).
        positive: Share of candidates that are positive examples (`pairs.strategy: positive_only`).
    """

    reply_share: float = 0.85
    judgement_tokens: int = 130
    acceptance: float = 0.5
    pairs_kept: float = 0.95
    self_judged_kept: float = 0.25
    positive: float = 0.25


@dataclass(frozen=True)
class Writing:
    """Generated text.

    Attributes:
        requests: Completions.
        read: Prompt tokens that are computed.
        written: Tokens that are drawn.
        rows: Completions that are written together.
        steps: Forward passes of one token per row.
        context: Tokens that a row's newest token looks back on, on average.
        longest: Tokens of the longest row at its end.
    """

    requests: int
    read: float
    written: float
    rows: int
    steps: float
    context: float
    longest: int

    @property
    def held(self) -> float:
        """Tokens whose keys and values are in memory at the end."""
        return self.rows * self.longest


@dataclass(frozen=True)
class Judging:
    """Forward passes over whole prompts of which only the last position is looked at.

    Attributes:
        items: Prompts.
        read: Tokens that are computed.
        rows: Prompts per forward pass.
        longest: Tokens of the longest prompt.
    """

    items: int
    read: float
    rows: int
    longest: int

    @property
    def held(self) -> float:
        """Tokens of the largest forward pass."""
        return self.rows * self.longest


@dataclass(frozen=True)
class Training:
    """One training stage.

    Attributes:
        kind: Which trainer.
        settings: Of the stage.
        examples: In one epoch.
        steps: Of the optimiser.
        tokens: Forward and backward, padding and epochs included.
        micro_tokens: Tokens of a middling forward pass.
        largest: Tokens of the largest forward pass.
        reference: Tokens of the reference model's forward passes.
    """

    kind: TrainingKind
    settings: TrainingSettings
    examples: int
    steps: int
    tokens: float
    micro_tokens: float
    largest: float
    reference: float = 0.0

    @property
    def held(self) -> float:
        """Tokens of the largest forward pass."""
        return self.largest


Part = Writing | Judging | Training


@dataclass(frozen=True)
class StageWork:
    """What one asset computes.

    Attributes:
        stage: Name of the asset.
        phase: Group of the asset.
        items: What is counted.
        unit: What is counted, in words.
        parts: The work.
        engines: Models that are opened for writing or judging.
        models: Whole models that the stage keeps.
        saves: Times that a whole model is written.
        temporary_models: Whole float32 models that it holds on disk meanwhile.
        text_bytes: Tables and journals.
        requests: To servers that are asked for their opinion.
    """

    stage: str
    phase: Phase
    items: int
    unit: str
    parts: tuple[Part, ...]
    engines: int = 0
    models: int = 0
    saves: int = 0
    temporary_models: float = 0.0
    text_bytes: float = 0.0
    requests: int = 0

    @property
    def tokens_read(self) -> float:
        """Prompt and training tokens that are computed."""
        return sum(p.tokens + p.reference if isinstance(p, Training) else p.read for p in self.parts)

    @property
    def tokens_written(self) -> float:
        """Tokens that are drawn."""
        return sum(p.written for p in self.parts if isinstance(p, Writing))


def measure_data(settings: Settings, measure: TextMeasure) -> DataFacts:
    """Load the data that the settings name and measure it.

    Raises:
        SrlmError: If a data file is missing or wrong.
    """
    ift = load_instructions(settings.data).table
    ranked = load_ranked_replies(settings.data).table
    evaluation = load_evaluation_prompts(settings.data).table
    checkable = load_verifiable(settings.evaluation.verifiable)
    closed = load_closed_tasks(settings.evaluation.closed_tasks.source, settings.evaluation.closed_tasks.limit)
    train, held_out = (ranked[ranked["split"] == split] for split in ("train", "held_out"))
    best = held_out.sort_values("rank", kind="stable").drop_duplicates("group_id")
    exchanges = [measure.exchange(row.prompt, row.response) for row in _spaced(ift).itertuples()]
    rubric = settings.judge.rubric
    chosen = settings.eft
    known = eft_from_dataset(train)
    if chosen.enabled:
        known = with_contrasts(known, chosen.strangers, chosen.spoiled, settings.seed)
    eft = known.table
    own = chosen.targets == "self"
    taught = (
        []
        if own or not chosen.enabled
        else judgement_examples(eft, rubric, chosen.rationales_per_prompt, settings.seed)
    )
    shown = settings.prompt_generation.seed_examples + settings.prompt_generation.generated_examples
    prompts = ift["prompt"].tolist()
    few_shot = [prompts[start : start + shown] for start in range(0, len(prompts), shown)]
    explaining = [measure.prompt(judge_prompt(rubric, r.prompt, r.text, "rationale")) for r in _rows(train)]
    empty = len(measure.prompt(""))
    frame = measure.prompt(judge_prompt(rubric, "", "", "direct"), SCORE_START)
    judging = [measure.prompt(judge_prompt(rubric, r.prompt, r.text, "direct"), SCORE_START) for r in _rows(held_out)]
    comparing = [measure.prompt(comparison_prompt(p, p, p), COMPARISON_START) for p in _evenly(prompts)]
    comparison_frame = measure.prompt(comparison_prompt("", "", ""), COMPARISON_START)
    bare = float(np.mean([len(measure.prompt(p)) - empty for p in _evenly(prompts)]))
    return DataFacts(
        instructions=Lengths(len(ift), tuple(prompt + reply for prompt, reply in exchanges)),
        prompts=Lengths(len(ift), tuple(prompt for prompt, _ in exchanges)),
        responses=Lengths(len(ift), tuple(reply for _, reply in exchanges)),
        judgements=Lengths(len(taught), tuple(sum(measure.exchange(t.prompt, t.response)) for t in _evenly(taught))),
        ranked=_groups(eft, settings, measure),
        train_replies=_unshared(explaining, len(train)),
        rationale_beginning=common_beginning(explaining),
        held_out=_unshared(judging, len(held_out)),
        held_out_pairs=_ordered_pairs(held_out),
        messages=_unshared([measure.prompt(p) for p in _evenly(prompts)], len(ift)),
        evaluation=_unshared([measure.prompt(p) for p in _evenly(evaluation["prompt"].tolist())], len(evaluation)),
        checkable=_unshared([measure.prompt(p.prompt) for p in _evenly(checkable)], len(checkable)),
        closed=_unshared([measure.prompt(t.prompt) for t in _evenly(closed)], len(closed)),
        best_replies=Lengths(
            len(best),
            tuple(sum(measure.exchange(row.prompt, row.text)) for row in _spaced(best).itertuples()),
        ),
        few_shot=_unshared([measure.prompt(*few_shot_exchange(shown)) for shown in few_shot], len(few_shot)),
        bare_prompt=bare,
        judge_frame=len(frame) - common_beginning(judging),
        comparison_frame=len(comparison_frame) - common_beginning(comparing),
    )


def count_work(
    settings: Settings, facts: DataFacts, assumed: Assumptions, shares_prefix: bool, in_flight: int | None = None
) -> list[StageWork]:
    """Return the work of the seed's stages and of one iteration's, in the order in which they run.

    Args:
        settings: All settings.
        facts: Of the data.
        assumed: What cannot be known.
        shares_prefix: Whether training computes a group's common beginning once: where activations are kept.
        in_flight: Requests that a server works on at a time, each making room for the next when it is done; None for
            an engine that works on one batch after the other.
    """
    counter = _Counter(settings, facts, assumed, shares_prefix, in_flight)
    return [
        counter.sft_baseline(),
        counter.eft_dataset(),
        counter.seed_model(),
        counter.seed_assessment(),
        counter.seed_evaluation(),
        counter.generated_prompts(),
        counter.candidates(),
        counter.judged_scores(),
        counter.iteration_model(),
        counter.assessment(),
        counter.win_rates(),
        counter.collapse_monitors(),
    ]


@dataclass(frozen=True)
class _Counter:
    settings: Settings
    facts: DataFacts
    assumed: Assumptions
    shares_prefix: bool
    in_flight: int | None

    def sft_baseline(self) -> StageWork:
        training = self._sft(self.facts.instructions)
        return StageWork(
            "sft_baseline",
            "seed",
            training.examples,
            "examples",
            (training,),
            models=1,
            saves=1,
            temporary_models=_resumable(training),
        )

    def eft_dataset(self) -> StageWork:
        eft, replies = self.settings.eft, self.facts.train_replies
        if not eft.enabled or eft.targets != "self":
            return StageWork("eft_dataset", "seed", replies.count if eft.enabled else 0, "replies", ())
        judging = self._rationales(replies.count, replies.mean, replies.largest, self.settings.judge.samples)
        return StageWork(
            "eft_dataset",
            "seed",
            replies.count,
            "replies",
            (judging,),
            engines=1,
            text_bytes=2 * judging.written * _TEXT_BYTES,
        )

    def seed_model(self) -> StageWork:
        return self._seed_training("seed_model", "seed", self.facts.instructions)

    def _seed_training(self, stage: str, phase: Phase, instructions: Lengths) -> StageWork:
        eft = self.settings.eft
        judgements, ranked = self._judging_data()
        ranks = eft.enabled and eft.ranking
        texts = eft.enabled and judgements.count > 0
        # Without judgement texts M1 goes on from the SFT baseline.
        training = [] if stage == "seed_model" and not texts else [self._sft(instructions.joined(judgements))]
        if ranks:
            training.append(self._ranking(ranked))
        return StageWork(
            stage,
            phase,
            sum(part.examples for part in training),
            "examples",
            tuple(training),
            models=1,
            # The model between the two parts is kept until the second is done.
            saves=len(training),
            temporary_models=float(len(training) > 1) + max(map(_resumable, training), default=0.0),
        )

    def seed_assessment(self) -> StageWork:
        """Base model, SFT baseline and M1."""
        return self._assessed("seed_assessment", "seed", 3)

    def assessment(self) -> StageWork:
        return self._assessed("assessment", "iteration", 1)

    def _assessed(self, stage: str, phase: Phase, models: int) -> StageWork:
        facts, chosen = self.facts, self.settings.evaluation
        reply = self._reply(chosen.max_new_tokens)
        best = facts.best_replies
        rows = max(1, min(self.settings.judge.batch_size, best.count))
        parts = [
            self._evaluation_replies(reply),
            self._measured_replies(facts.checkable, chosen.verifiable.max_new_tokens),
            self._measured_replies(facts.closed, chosen.closed_tasks.max_new_tokens),
            *self._measured_judge(),
            Judging(best.count, best.count * best.mean, rows, best.largest),
        ]
        replies = facts.evaluation.count + facts.checkable.count + facts.closed.count
        written = sum(part.written for part in parts if isinstance(part, Writing))
        return StageWork(
            stage,
            phase,
            models * (replies + facts.held_out.count),
            "replies",
            tuple(parts) * models,
            # Once for asking, once for reading the human replies.
            engines=2 * models,
            text_bytes=models * written * _TEXT_BYTES,
        )

    def seed_evaluation(self) -> StageWork:
        facts, held_out = self.facts, self.facts.held_out
        reply = self._reply(self.settings.evaluation.max_new_tokens)
        # M1, the SFT baseline and the base model have answered before.
        parts = self._match(reply, new_replies=3, matches=2)
        for arbiter in self._arbiters_here:
            if arbiter.method == "comparison":
                parts.append(self._comparing(facts.held_out_pairs, facts.responses.mean))
            elif arbiter.model != "self" or self.settings.judge.mode != "distribution":
                # The arbiter's own scores of the held-out replies; M1 as a distribution judge has them in its journal.
                parts.append(self._judging(held_out.count, held_out.mean, held_out.largest))
        return StageWork(
            "seed_evaluation",
            "seed",
            facts.evaluation.count,
            "prompts",
            tuple(parts),
            engines=self._arbiters_opened(3),
            requests=self._requests(3 * facts.evaluation.count, 2 * facts.evaluation.count)
            + self._requests(held_out.count, facts.held_out_pairs),
        )

    def generated_prompts(self) -> StageWork:
        chosen, few_shot = self.settings.prompt_generation, self.facts.few_shot
        attempts = min(math.ceil(chosen.count / self.assumed.acceptance), chosen.count * chosen.max_attempts_factor)
        attempts = -(-attempts // _ROUND) * _ROUND
        part = self._writing(
            attempts,
            attempts * few_shot.mean,
            min(self.facts.bare_prompt + 1, chosen.max_new_tokens),
            min(chosen.batch_size, _ROUND),
            chosen.max_new_tokens,
            few_shot.mean,
            few_shot.largest,
            round_size=_ROUND,
        )
        return StageWork(
            "generated_prompts",
            "iteration",
            attempts,
            "attempts",
            (part,),
            engines=1,
            text_bytes=2 * part.written * _TEXT_BYTES,
        )

    def candidates(self) -> StageWork:
        part = self._answering()
        return StageWork(
            "candidates",
            "iteration",
            part.requests,
            "replies",
            (part,),
            engines=1,
            text_bytes=2 * part.written * _TEXT_BYTES,
        )

    def judged_scores(self) -> StageWork:
        facts, chosen = self.facts, self.settings.candidates
        answering = self._answering()
        tokens = facts.judge_frame + facts.bare_prompt + self._reply(chosen.max_new_tokens)
        longest = round(facts.judge_frame + facts.messages.largest + chosen.max_new_tokens)
        members = self.settings.judge.panel
        here = [m for m in members if not m.server.base_url]
        modes = [m.mode or self.settings.judge.mode for m in here] if members else [self.settings.judge.mode]
        parts = tuple(part for mode in modes for part in self._judge(answering.requests, tokens, longest, mode))
        written = answering.written + sum(part.written for part in parts if isinstance(part, Writing))
        return StageWork(
            "judged_scores",
            "iteration",
            answering.requests,
            "replies",
            parts,
            engines=len(modes),
            text_bytes=2 * written * _TEXT_BYTES,
            requests=(len(members) - len(here)) * answering.requests * self.settings.judge.samples,
        )

    def iteration_model(self) -> StageWork:
        settings = self.settings
        if settings.pairs.strategy == "positive_only":
            replies = settings.prompt_generation.count * settings.candidates.per_prompt * self.assumed.positive
            added = Lengths(max(1, round(replies)), self.facts.instructions.sample)
            return self._seed_training("iteration_model", "iteration", self.facts.instructions.joined(added))
        pairs = max(1, round(settings.prompt_generation.count * self.assumed.pairs_kept))
        part = self._dpo(pairs)
        looks = self._looks(part.steps)
        return StageWork(
            "iteration_model",
            "iteration",
            pairs,
            "pairs",
            (part, *looks),
            engines=len(looks),
            models=1,
            saves=1,
            temporary_models=_resumable(part),
        )

    def _looks(self, steps: int) -> list[Part]:
        """What early stopping asks for: replies to held-out prompts, and their comparison with those of before."""
        chosen = self.settings.dpo.early_stopping
        looks = steps // chosen.every if chosen.every else 0
        groups = self.facts.held_out.count / max(self.facts.ranked.sequences, 1)
        n = min(chosen.prompts, max(1, round(groups)))
        reply = self._reply(self.settings.evaluation.max_new_tokens)
        return [part for _ in range(looks) for part in (self._evaluation_replies(reply, n), *self._match(reply, 2, n))]

    def win_rates(self) -> StageWork:
        """The new model's replies alone are judged: its opponents' scores lie in their journals."""
        n = self.facts.evaluation.count
        reply = self._reply(self.settings.evaluation.max_new_tokens)
        return StageWork(
            "win_rates",
            "iteration",
            n,
            "prompts",
            tuple(self._match(reply, new_replies=1, matches=3)),
            engines=self._arbiters_opened(3),
            requests=self._requests(n, 3 * n),
        )

    def collapse_monitors(self) -> StageWork:
        """The new model's evaluation replies are read twice, by itself and by M1."""
        chosen, prompts = self.settings.evaluation, self.facts.evaluation
        n = 2 * prompts.count if self.settings.monitors.max_kl is not None else 0
        mean = prompts.mean + self._reply(chosen.max_new_tokens)
        part = Judging(n, n * mean, max(1, min(chosen.batch_size, n)), prompts.largest + chosen.max_new_tokens)
        return StageWork("collapse_monitors", "iteration", n, "replies", (part,), engines=2 if n else 0)

    def _reply(self, limit: int) -> float:
        """Mean length of a reply, in tokens."""
        lengths = np.array(self.facts.responses.sample) * self.assumed.reply_share
        return float(np.minimum(lengths, limit).mean())

    def _judgement(self) -> int:
        return min(self.assumed.judgement_tokens, self.settings.judge.max_new_tokens)

    def _judging_data(self) -> tuple[Lengths, Groups]:
        """Judgement texts and groups that teach judging; of the model's own judgements some are kept."""
        eft, judgements, ranked = self.settings.eft, self.facts.judgements, self.facts.ranked
        if eft.targets == "ranks":
            return Lengths(0, ()), ranked
        if not eft.enabled or eft.targets == "dataset":
            return judgements, ranked
        kept = max(1, round(ranked.count * self.assumed.self_judged_kept))
        per_prompt = min(eft.rationales_per_prompt or math.inf, ranked.sequences)
        around = self.facts.rationale_beginning + self._judgement()
        texts = tuple(length + around for length in self.facts.train_replies.sample)
        return Lengths(round(kept * per_prompt), texts), Groups(kept, ranked.sequences, ranked.shared, ranked.whole)

    def _sft(self, lengths: Lengths) -> Training:
        settings = self.settings.sft
        cut = lengths.cut(settings.max_length)
        padded = cut.padded(settings.micro_batch_size, settings.batch_size)
        return Training(
            "sft",
            settings,
            lengths.count,
            optimiser_steps(lengths.count, settings),
            settings.epochs * lengths.count * padded,
            settings.micro_batch_size * padded,
            settings.micro_batch_size * cut.largest,
        )

    def _ranking(self, ranked: Groups) -> Training:
        settings, facts = self.settings.eft, self.facts
        lengths = ranked.shared if self.shares_prefix else ranked.whole
        pairs = min(settings.comparisons_per_prompt, math.comb(round(ranked.sequences), 2)) * ranked.count
        # A comparison shows question and both replies, in both orders.
        compared = 2 * min(facts.comparison_frame + facts.bare_prompt + 2 * facts.responses.mean, settings.max_length)
        n_items = ranked.count + pairs
        tokens = ranked.count * lengths.mean + pairs * compared
        return Training(
            "ranking",
            settings,
            n_items,
            optimiser_steps(n_items, settings),
            settings.epochs * tokens,
            settings.micro_batch_size * tokens / max(n_items, 1),
            settings.micro_batch_size * max(lengths.largest, compared if pairs else 0),
        )

    def _dpo(self, pairs: int) -> Training:
        """Both replies of a pair are computed, each with its prompt."""
        dpo, limit, facts = self.settings.dpo, self.settings.candidates.max_new_tokens, self.facts
        replies = (min(n * self.assumed.reply_share, limit) for n in facts.responses.sample)
        lengths = Lengths(pairs, tuple(round(facts.prompts.mean + n) for n in replies)).cut(dpo.max_length)
        longer, micro = lengths.longer_of_two(), dpo.micro_batch_size
        padded = longer.padded(micro, dpo.batch_size)
        return Training(
            "dpo",
            dpo,
            pairs,
            optimiser_steps(pairs, dpo),
            dpo.epochs * 2 * pairs * padded,
            2 * micro * padded,
            2 * micro * min(facts.prompts.largest + limit, dpo.max_length),
            2 * pairs * longer.padded(2 * micro, 2 * micro),
        )

    def _writing(
        self,
        requests: int,
        read: float,
        reply: float,
        rows: int,
        limit: int,
        prompt: float,
        longest_prompt: int,
        round_size: int | None = None,
    ) -> Writing:
        together = max(1, min(self.in_flight or rows, requests, round_size or requests))
        if self.in_flight:
            steps = requests / together * reply
        else:
            # A batch of one takes as long as its own reply; the more there are, the nearer one comes to the limit.
            steps = -(-requests // together) * (limit - (limit - reply) / together)
        return Writing(requests, read, requests * reply, together, steps, prompt + reply / 2, longest_prompt + limit)

    def _answering(self) -> Writing:
        """Replies to one prompt lie side by side in a batch, which reads it once."""
        count, chosen, messages = self.settings.prompt_generation.count, self.settings.candidates, self.facts.messages
        return self._writing(
            count * chosen.per_prompt,
            count * messages.mean,
            self._reply(chosen.max_new_tokens),
            chosen.batch_size,
            chosen.max_new_tokens,
            messages.mean,
            messages.largest,
        )

    def _evaluation_replies(self, reply: float, n_prompts: int | None = None) -> Part:
        chosen, prompts = self.settings.evaluation, self.facts.evaluation
        n = prompts.count if n_prompts is None else n_prompts
        return self._writing(
            n,
            n * prompts.mean,
            reply,
            chosen.batch_size,
            chosen.max_new_tokens,
            prompts.mean,
            prompts.largest,
        )

    def _measured_replies(self, prompts: Lengths, longest: int) -> Writing:
        return self._writing(
            prompts.count,
            prompts.count * prompts.mean,
            self._reply(longest),
            self.settings.evaluation.batch_size,
            longest,
            prompts.mean,
            prompts.largest,
        )

    def _measured_judge(self) -> tuple[Part, ...]:
        held_out = self.facts.held_out
        return self._judge(held_out.count, held_out.mean, held_out.largest, self.settings.judge.mode)

    def _judge(self, items: int, mean: float, longest: int, mode: JudgeMode) -> tuple[Part, ...]:
        judge = self.settings.judge
        if mode == "distribution":
            return (self._judging(items, mean, longest),)
        if mode == "sampled":
            return (self._rationales(items, mean, longest, judge.samples),)
        # Prompt and rationale are read once more, up to the place of the score.
        reading = self._judging(items, mean + self._judgement(), longest + judge.max_new_tokens)
        return self._rationales(items, mean, longest, 1), reading

    def _judging(self, items: int, mean: float, longest: int) -> Judging:
        rows = self.in_flight or self.settings.judge.batch_size
        return Judging(items, items * mean, max(1, min(rows, items)), longest)

    def _rationales(self, items: int, mean: float, longest: int, samples: int) -> Writing:
        judge = self.settings.judge
        return self._writing(
            items * samples,
            items * mean,
            self._judgement(),
            judge.batch_size,
            judge.max_new_tokens,
            mean,
            longest,
        )

    @property
    def _arbiters_here(self) -> list[ArbiterSettings]:
        """Those that are models on this machine; each is taken to be as large as the project's own."""
        return [a for a in self.settings.evaluation.arbiters if a.model not in PROGRAMS and not a.server.base_url]

    def _arbiters_opened(self, matches: int) -> int:
        """How often an arbiter's model is loaded: several make room for each other in every match."""
        models = len({arbiter.model for arbiter in self._arbiters_here})
        return models * matches if models > 1 else models

    def _match(self, reply: float, new_replies: int, n_prompts: int | None = None, matches: int = 1) -> list[Part]:
        """Scores are kept in a journal, so each reply is judged once; comparisons are made anew, in both orders."""
        facts = self.facts
        n = facts.evaluation.count if n_prompts is None else n_prompts
        longest = round(facts.judge_frame + facts.evaluation.largest + self.settings.evaluation.max_new_tokens)
        parts: list[Part] = []
        for arbiter in self._arbiters_here:
            if arbiter.method == "comparison":
                parts += [self._comparing(n, reply)] * matches
            else:
                mean = facts.judge_frame + facts.evaluation.mean + reply
                parts.append(self._judging(new_replies * n, mean, longest))
        return parts

    def _requests(self, replies: int, pairs: int) -> int:
        """How often servers are asked for their opinion of replies, or of pairs of them in both orders."""
        asked = [a.method for a in self.settings.evaluation.arbiters if a.server.base_url]
        return asked.count("scores") * replies + asked.count("comparison") * 2 * pairs

    def _comparing(self, pairs: int, reply: float) -> Part:
        facts = self.facts
        mean = facts.comparison_frame + facts.evaluation.mean + 2 * reply
        longest = facts.comparison_frame + facts.evaluation.largest + 2 * self.settings.evaluation.max_new_tokens
        return self._judging(2 * pairs, mean, round(longest))


def optimiser_steps(examples: int, settings: TrainingSettings) -> int:
    """Return how many optimiser steps a training stage takes."""
    return max(1, math.ceil(math.ceil(examples / settings.batch_size) * settings.epochs))


def common_beginning(sequences: Sequence[Sequence[Hashable]]) -> int:
    """Return how many tokens the engine reads once for all sequences."""
    if len(sequences) < 2:
        return 0
    shortest = min(map(len, sequences))
    shared = next((i for i in range(shortest) if len({s[i] for s in sequences}) > 1), shortest)
    shared = min(shared, shortest - 1)
    return shared if shared >= _WORTHWHILE else 0


def _unshared(sequences: Sequence[Sequence[Hashable]], count: int) -> Lengths:
    shared = common_beginning(sequences)
    return Lengths(count, tuple(len(s) - shared for s in sequences))


def group_tokens(prompt: str, replies: Sequence[str], settings: Settings, measure: TextMeasure) -> tuple[int, int]:
    """Return the tokens of a prompt's replies in the ranking objective: with the beginning shared, and without."""
    sequences = [
        measure.prompt(judge_prompt(settings.judge.rubric, prompt, reply, "direct"), SCORE_START)[
            -settings.eft.max_length :
        ]
        for reply in replies
    ]
    width, common = max(map(len, sequences)), common_beginning(sequences)
    return common + len(sequences) * (width - common), len(sequences) * width


def _groups(eft: pd.DataFrame, settings: Settings, measure: TextMeasure) -> Groups:
    examples = ranked_examples(eft)
    tokens = [group_tokens(e.prompt, e.replies, settings, measure) for e in _evenly(examples)]
    shared, whole = (Lengths(len(examples), tuple(pair[i] for pair in tokens)) for i in (0, 1))
    return Groups(len(examples), len(eft) / max(len(examples), 1), shared, whole)


def _resumable(part: Training) -> float:
    """Whole float32 models that a resumable checkpoint takes; adapters take next to nothing.

    With full fine-tuning it holds weights and both of the optimiser's moments; for a moment there are two.
    """
    return 6.0 if part.settings.method == "full" and part.steps >= part.settings.save_every else 0.0


def _ordered_pairs(ranked: pd.DataFrame) -> int:
    return sum(
        int((group["rank"].to_numpy()[:, None] < group["rank"].to_numpy()[None, :]).sum())
        for _, group in ranked.groupby("group_id")
    )


def _evenly(items: Sequence[Item]) -> list[Item]:
    if len(items) <= _SAMPLE:
        return list(items)
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, _SAMPLE)]


def _spaced(table: pd.DataFrame) -> pd.DataFrame:
    return table.iloc[_evenly(range(len(table)))]


def _rows(table: pd.DataFrame) -> list[Any]:
    return list(_spaced(table).itertuples())
