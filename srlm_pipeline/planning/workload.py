"""How much work each stage is: counted from settings and data, whatever machine will do it.

Work is counted in units (`Unit`), so that its time is a sum of units times seconds per unit. What every prompt of a
kind begins with is read once and not counted; padding is not counted, a rate per token includes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import pandas as pd

from srlm_pipeline.checks.closed_tasks import load_closed_tasks
from srlm_pipeline.checks.verifiable import load_verifiable
from srlm_pipeline.config import PROGRAMS, ArbiterSettings, JudgeSettings, Settings, TrainingSettings
from srlm_pipeline.data.chat import render_user_turn
from srlm_pipeline.data.loaders import load_evaluation_prompts, load_instructions, load_ranked_replies
from srlm_pipeline.generation.prefill import common_length
from srlm_pipeline.judging.checklists import LONGEST_CHECKLIST
from srlm_pipeline.judging.eft import eft_from_dataset
from srlm_pipeline.judging.kind_rubrics import kind_rubrics
from srlm_pipeline.judging.kinds import kind_place
from srlm_pipeline.judging.negatives import with_negatives
from srlm_pipeline.judging.rubric import (
    COMPARISON_START,
    SCORE_START,
    YES_NO_START,
    comparison_prompt,
    dimension_prompt,
    judge_prompt,
    kind_rubric_prompt,
    questions_exchange,
    yes_no_prompt,
)
from srlm_pipeline.prompting.few_shot import ROUND, few_shot_exchange
from srlm_pipeline.training.seed import judgement_examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Phase = Literal["seed", "iteration"]
Kind = Literal["writing", "judging", "sft", "ranking", "dpo"]
Unit = Literal["prompted", "step", "drawn", "judged", "sft", "ranking", "dpo", "trainer", "engine", "save", "stage"]
"""What takes time: a prompt token before writing, a forward pass of one new token a row, a token drawn, a token of a
forward pass that writes nothing, a token trained on by each trainer, setting up a trainer, opening a model, saving
one, and what every stage takes anyway."""
TRAINERS: tuple[Literal["sft", "ranking", "dpo"], ...] = ("sft", "ranking", "dpo")
Item = TypeVar("Item")
# Lengths are measured on so many texts, evenly spaced; more would not change a mean.
_SAMPLE = 400


@dataclass(frozen=True)
class TextMeasure:
    """How texts become tokens.

    Attributes:
        render: A user message, and how the reply begins, as the model reads them.
        tokens: How many tokens a text has.
    """

    render: Callable[[str, str], str]
    tokens: Callable[[str], int]

    def prompt(self, message: str, start: str = "") -> int:
        """Return the tokens of a rendered user message."""
        return self.tokens(self.render(message, start))

    def exchange(self, message: str, reply: str) -> int:
        """Return the tokens of a user message and the reply to it, end token included."""
        return self.prompt(message) + self.tokens(reply) + 1


def tokenizer_measure(tokenizer: PreTrainedTokenizerBase) -> TextMeasure:
    """Measure texts as the model's own tokenizer and chat template make them."""
    return TextMeasure(
        lambda message, start: render_user_turn(tokenizer, message, start),
        lambda text: len(tokenizer(text, add_special_tokens=False).input_ids),
    )


def character_measure() -> TextMeasure:
    """Four characters a token, and a short chat template: for a model of which only the size is known."""
    return TextMeasure(
        lambda message, start: f"<|user|>\n{message}\n<|assistant|>\n{start}", lambda text: -(-len(text) // 4)
    )


@dataclass(frozen=True)
class Lengths:
    """Token counts of `count` texts, known of a sample of them."""

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


@dataclass(frozen=True)
class DataFacts:
    """What the work depends on, measured on the data.

    Attributes:
        instructions: IFT prompt and response together.
        messages: IFT prompts as a model is asked them; invented prompts are taken to be as long.
        responses: IFT responses.
        judgements: Judgement texts of the data file with their prompts; empty where the model writes its own.
        ranked: Judging prompts of the training replies with those made up for the judge, that ask for a score.
        groups: Prompts that these belong to.
        explaining: Judging prompts of the training replies, that ask for a rationale.
        held_out: What is read of the held-out replies to judge them, without their common beginning.
        held_out_groups: Prompts that these belong to.
        held_out_of_no_kind: Those of them whose kind the data does not tell.
        held_out_pairs: Ordered pairs among them.
        evaluation: Evaluation prompts as a model is asked them.
        verifiable: The same of verifiable prompts.
        closed: The same of closed tasks.
        best_replies: The best human replies to held-out prompts, with these.
        few_shot: Exchanges after which a model writes a new prompt, without their common beginning.
        kinds: Prompts as a model is asked of which kind they are, without their common beginning.
        checklists: The same as it is asked for checklists.
        bare_prompt: Mean tokens of an IFT prompt alone.
        judge_frame: Tokens around prompt and reply that are not the same beginning every time.
        comparison_frame: The same around a prompt and two replies.
    """

    instructions: Lengths
    messages: Lengths
    responses: Lengths
    judgements: Lengths
    ranked: Lengths
    groups: int
    explaining: Lengths
    held_out: Lengths
    held_out_groups: int
    held_out_of_no_kind: int
    held_out_pairs: int
    evaluation: Lengths
    verifiable: Lengths
    closed: Lengths
    best_replies: Lengths
    few_shot: Lengths
    kinds: Lengths
    checklists: Lengths
    bare_prompt: float
    judge_frame: int
    comparison_frame: int


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
class Part:
    """Work of one kind.

    Attributes:
        kind: Which.
        items: Replies, judgements, or examples in one epoch.
        units: How many of which unit.
        held: Tokens that are in memory at a time, at the most.
        steps: Of the optimiser, in training.
        full: Whether all weights are trained, and resumable checkpoints therefore large.
    """

    kind: Kind
    items: int
    units: Mapping[Unit, float]
    held: float
    steps: int = 0
    full: bool = False


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
        temporary_models: Whole float32 models that it holds on disk meanwhile.
        requests: To servers that are asked for their opinion.
    """

    stage: str
    phase: Phase
    items: int
    unit: str
    parts: tuple[Part, ...] = ()
    engines: int = 0
    models: int = 0
    temporary_models: float = 0.0
    requests: int = 0

    @property
    def units(self) -> dict[Unit, float]:
        """How many of which unit, over all parts."""
        trained = sum(part.kind in TRAINERS for part in self.parts)
        total: dict[Unit, float] = {"stage": 1, "engine": self.engines, "trainer": trained, "save": trained}
        for part in self.parts:
            for unit, number in part.units.items():
                total[unit] = total.get(unit, 0.0) + number
        return total

    @property
    def tokens_read(self) -> float:
        """Prompt and training tokens that are computed."""
        read: tuple[Unit, ...] = ("prompted", "judged", *TRAINERS)
        return sum((self.units.get(unit, 0.0) for unit in read), 0.0)

    @property
    def tokens_written(self) -> float:
        """Tokens that are drawn."""
        return self.units.get("drawn", 0.0)


def measure_data(settings: Settings, measure: TextMeasure) -> DataFacts:
    """Load the data that the settings name and measure it.

    Raises:
        SrlmError: If a data file is missing or wrong.
    """
    eft, rubric, invented = settings.eft, settings.judge.taught_rubric, settings.prompt_generation
    ift = load_instructions(settings.data).table
    ranked = load_ranked_replies(settings.data).table
    train, held_out = (ranked[ranked["split"] == split] for split in ("train", "held_out"))
    best = held_out.sort_values("rank", kind="stable").drop_duplicates("group_id")
    known = eft_from_dataset(train)
    if eft.enabled:
        known = with_negatives(known, eft.mismatched_negatives, eft.corrupted_negatives, settings.seed)
    taught = (
        judgement_examples(known.table, rubric, eft.rationales_per_prompt, settings.seed)
        if eft.enabled and eft.targets != "self"
        else []
    )
    prompts = ift["prompt"].tolist()
    shown = invented.seed_examples + invented.generated_examples

    def teaching(prompt: str, reply: str) -> str:
        return measure.render(judge_prompt(rubric, prompt, reply, "direct"), SCORE_START)

    def judging(prompt: str, reply: str, kind: str | None = None) -> str:
        return read_to_judge(settings.judge, measure, prompt, reply, kind)

    def comparing(prompt: str, reply: str) -> str:
        return measure.render(comparison_prompt(prompt, reply, reply), COMPARISON_START)

    def lengths(texts: Sequence[str]) -> Lengths:
        return Lengths(len(texts), tuple(map(measure.tokens, evenly(texts))))

    def asked(messages: Sequence[str]) -> Lengths:
        return lengths([measure.render(message, "") for message in messages])

    def frame(text: Callable[[str, str], str]) -> int:
        return measure.tokens(text("", "")[common_length([text("a", "b"), text("b", "a")]) :])

    few_shot = [few_shot_exchange(prompts[i : i + shown]) for i in range(0, len(prompts), shown)]
    return DataFacts(
        instructions=Lengths(len(ift), tuple(measure.exchange(r.prompt, r.response) for r in _rows(ift))),
        messages=asked(prompts),
        responses=lengths(ift["response"].tolist()),
        judgements=Lengths(len(taught), tuple(measure.exchange(t.prompt, t.response) for t in evenly(taught))),
        ranked=lengths([teaching(r.prompt, r.text) for r in known.table.itertuples()]),
        groups=known.table["group_id"].nunique(),
        explaining=asked([judge_prompt(rubric, r.prompt, r.text, "rationale") for r in train.itertuples()]),
        held_out=lengths(unshared([judging(r.prompt, r.text, r.kind) for r in held_out.itertuples()])),
        held_out_groups=len(best),
        held_out_of_no_kind=int((~best["kind"].isin(kind_rubrics().by_kind)).sum()),
        held_out_pairs=_ordered_pairs(held_out),
        evaluation=asked(load_evaluation_prompts(settings.data).table["prompt"].tolist()),
        verifiable=asked([p.prompt for p in load_verifiable(settings.evaluation.verifiable)]),
        closed=asked(
            [
                task.prompt
                for task in load_closed_tasks(
                    settings.evaluation.closed_tasks.source, settings.evaluation.closed_tasks.limit
                )
            ]
        ),
        best_replies=Lengths(len(best), tuple(measure.exchange(r.prompt, r.text) for r in _rows(best))),
        few_shot=lengths(unshared([measure.render(*exchange) for exchange in few_shot])),
        kinds=lengths(unshared([measure.render(p.message, p.start) for p in map(kind_place, prompts)])),
        checklists=lengths(unshared([measure.render(*questions_exchange(prompt)) for prompt in prompts])),
        bare_prompt=lengths(prompts).mean,
        judge_frame=frame(judging),
        comparison_frame=frame(comparing),
    )


def read_to_judge(judge: JudgeSettings, measure: TextMeasure, prompt: str, reply: str, kind: str | None = None) -> str:
    """Return all that is read of a reply to judge it, once: of several questions about it the later ones' ends follow.

    The questions of the kind stand for those of a checklist, which nobody has written yet.

    Args:
        judge: Rubric and mode.
        measure: How texts are rendered.
        prompt: The user's instruction.
        reply: To be judged.
        kind: Of the prompt, where it is known.
    """
    if judge.rubric == "additive" or judge.rubric == "short":
        return measure.render(judge_prompt(judge.rubric, prompt, reply, "direct"), SCORE_START)
    rubric = kind_rubrics().of(kind)
    if judge.mode != "distribution":
        return measure.render(kind_rubric_prompt(rubric, prompt, reply), "")
    if judge.rubric == "by_kind":
        texts = [measure.render(dimension_prompt(d.question, prompt, reply), SCORE_START) for d in rubric.dimensions]
    else:
        texts = [measure.render(yes_no_prompt(d.question, prompt, reply), YES_NO_START) for d in rubric.dimensions]
    return "".join([texts[0], *unshared(texts)[1:]])


def count_work(
    settings: Settings, facts: DataFacts, assumed: Assumptions, in_flight: int | None = None
) -> list[StageWork]:
    """Return the work of the seed's stages and of one iteration's, in the order in which they run.

    Args:
        settings: All settings.
        facts: Of the data.
        assumed: What cannot be known.
        in_flight: Requests that a server works on at a time, each making room for the next when it is done; None for
            an engine that works on one batch after the other.
    """
    return list(_Counter(settings, facts, assumed, in_flight).stages())


@dataclass(frozen=True)
class _Counter:
    settings: Settings
    facts: DataFacts
    assumed: Assumptions
    in_flight: int | None

    def stages(self) -> Iterator[StageWork]:
        settings, facts = self.settings, self.facts
        eft, invented, chosen = settings.eft, settings.prompt_generation, settings.candidates
        sft = [self._sft([facts.instructions])] if settings.sft.enabled else []
        yield self._trained("sft_baseline", "seed", sft)

        replies = facts.explaining
        if eft.enabled and eft.targets == "self":
            samples = self._rationales(replies.count, replies.mean, replies.largest, settings.judge.samples)
            yield StageWork("eft_dataset", "seed", replies.count, "replies", (samples,), engines=1)
        else:
            yield StageWork("eft_dataset", "seed", replies.count if eft.enabled else 0, "replies")
        yield self._trained("seed_model", "seed", self._seed_training([]))
        yield self._assessed("seed_assessment", "seed", 3)
        yield self._seed_evaluation()

        attempts = min(
            math.ceil(invented.count / self.assumed.acceptance), invented.count * invented.max_attempts_factor
        )
        attempts = -(-attempts // ROUND) * ROUND
        rows, limit = min(invented.batch_size, ROUND), invented.max_new_tokens
        length = min(facts.bare_prompt + 1, limit)
        inventing = self._writing(attempts, attempts * facts.few_shot.mean, length, rows, limit, facts.few_shot.largest)
        yield StageWork("generated_prompts", "iteration", attempts, "attempts", (inventing,), engines=1)

        # Replies to one prompt lie side by side in a batch, which reads it once.
        n, limit = invented.count * chosen.per_prompt, chosen.max_new_tokens
        read = invented.count * facts.messages.mean
        answering = self._writing(n, read, self._reply(limit), chosen.batch_size, limit, facts.messages.largest)
        yield StageWork("candidates", "iteration", n, "replies", (answering,), engines=1)

        mean = facts.judge_frame + facts.bare_prompt + self._reply(limit)
        longest = facts.judge_frame + facts.messages.largest + limit
        members = settings.judge.panel
        here = [m.mode or settings.judge.mode for m in members if not m.server.base_url]
        modes = here if members else [settings.judge.mode]
        yield StageWork(
            "judged_scores",
            "iteration",
            n,
            "replies",
            tuple(
                part
                for mode in modes
                for part in (*self._before_judging(invented.count), *self._judge(n, mean, longest, mode))
            ),
            engines=len(modes),
            requests=(len(members) - len(here)) * n * settings.judge.samples,
        )
        yield self._iteration_model()
        yield self._assessed("assessment", "iteration", 1)

        # The new model's replies alone are judged: its opponents' scores lie in their journals.
        met = facts.evaluation.count
        matches = self._match(new_replies=met, pairs=3 * met)
        opened, requests = self._opened(3), self._requests(met, 3 * met)
        yield StageWork("win_rates", "iteration", met, "prompts", tuple(matches), opened, requests=requests)

        # The new model's evaluation replies are read twice, by itself and by M1.
        n = 2 * met if settings.monitors.max_kl is not None else 0
        limit = settings.evaluation.max_new_tokens
        longest = facts.evaluation.largest + limit
        reading = self._reading(n, facts.evaluation.mean + self._reply(limit), settings.evaluation.batch_size, longest)
        yield StageWork("collapse_monitors", "iteration", n, "replies", (reading,), engines=2 if n else 0)

    def _iteration_model(self) -> StageWork:
        settings, facts, dpo = self.settings, self.facts, self.settings.dpo
        if settings.pairs.strategy == "positive_only":
            n = round(settings.prompt_generation.count * settings.candidates.per_prompt * self.assumed.positive)
            positives = Lengths(max(1, n), facts.instructions.sample)
            return self._trained("iteration_model", "iteration", self._seed_training([positives]))
        pairs, limit = max(1, round(settings.prompt_generation.count * self.assumed.pairs_kept)), dpo.max_length
        replies = self._replies(settings.candidates.max_new_tokens)
        both = 2 * pairs * float(np.minimum(facts.messages.mean + replies, limit).mean())
        largest = min(facts.messages.largest + settings.candidates.max_new_tokens, limit)
        held = 2 * dpo.micro_batch_size * largest
        # The reference model reads both once.
        parts = [self._training("dpo", dpo, pairs, both, held), Part("judging", 0, {"judged": both}, held)]
        looks = parts[0].steps // dpo.early_stopping.every if dpo.early_stopping.every else 0
        prompts = min(dpo.early_stopping.prompts, max(1, facts.held_out_groups))
        for _ in range(looks):
            parts += [self._answers(facts.evaluation, prompts), *self._match(new_replies=2 * prompts, pairs=prompts)]
        return self._trained("iteration_model", "iteration", parts, "pairs", looks)

    def _trained(
        self, stage: str, phase: Phase, parts: Sequence[Part], unit: str = "examples", engines: int = 0
    ) -> StageWork:
        """A stage that makes a model; where it trains twice, the model in between is kept until the second is done."""
        trained = [part for part in parts if part.kind in TRAINERS]
        # Weights and both moments of the optimiser; while one checkpoint replaces another there are two.
        resumable = 6.0 if any(part.full for part in trained) else 0.0
        return StageWork(
            stage,
            phase,
            sum(part.items for part in trained),
            unit,
            tuple(parts),
            engines,
            models=1,
            temporary_models=float(len(trained) > 1) + resumable,
        )

    def _seed_training(self, more: list[Lengths]) -> list[Part]:
        """SFT on instructions and judgement texts, then the ranking objective; without such texts only the latter."""
        facts, eft = self.facts, self.settings.eft
        judgements, share = facts.judgements, 1.0
        if eft.enabled and eft.targets == "self":
            share = self.assumed.self_judged_kept
            replies = facts.explaining.count / max(facts.groups, 1)
            texts = share * facts.groups * min(eft.rationales_per_prompt or math.inf, replies)
            judgements = Lengths(round(texts), tuple(n + self._judgement() for n in facts.explaining.sample))
        elif eft.targets == "ranks":
            judgements = Lengths(0, ())
        taught = [judgements] if eft.enabled and judgements.count else []
        parts = [self._sft([facts.instructions, *taught, *more])] if taught or more else []
        return parts + ([self._ranking(max(1, round(share * facts.groups)))] if eft.enabled and eft.ranking else [])

    def _sft(self, texts: Sequence[Lengths]) -> Part:
        settings = self.settings.sft
        cut = [lengths.cut(settings.max_length) for lengths in texts]
        largest = settings.micro_batch_size * max(lengths.largest for lengths in cut)
        n, tokens = sum(lengths.count for lengths in cut), sum(lengths.count * lengths.mean for lengths in cut)
        return self._training("sft", settings, n, tokens, largest)

    def _ranking(self, groups: int) -> Part:
        """A group is all replies to one prompt; a comparison shows a prompt and two replies, in both orders."""
        settings, facts = self.settings.eft, self.facts
        cut, replies = facts.ranked.cut(settings.max_length), facts.ranked.count / max(facts.groups, 1)
        compared = 2 * min(facts.comparison_frame + facts.bare_prompt + 2 * facts.responses.mean, settings.max_length)
        pairs = min(settings.comparisons_per_prompt, math.comb(round(replies), 2)) * groups
        tokens = groups * replies * cut.mean + pairs * compared
        largest = settings.micro_batch_size * max(replies * cut.largest, compared if pairs else 0)
        return self._training("ranking", settings, groups + pairs, tokens, largest)

    def _training(
        self, kind: Literal["sft", "ranking", "dpo"], settings: TrainingSettings, n: int, tokens: float, held: float
    ) -> Part:
        steps = optimiser_steps(n, settings)
        resumable = settings.method == "full" and steps >= settings.save_every
        return Part(kind, n, {kind: settings.epochs * tokens}, held, steps, resumable)

    def _assessed(self, stage: str, phase: Phase, models: int) -> StageWork:
        """Everything that is asked of a model, and the best human replies read as if it had written them."""
        facts, chosen = self.facts, self.settings.evaluation
        judging = (
            *self._before_judging(facts.held_out_groups, facts.held_out_of_no_kind),
            *self._judge(facts.held_out.count, facts.held_out.mean, facts.held_out.largest),
        )
        best = facts.best_replies
        parts = (
            self._answers(facts.evaluation),
            self._answers(facts.verifiable, limit=chosen.verifiable.max_new_tokens),
            self._answers(facts.closed, limit=chosen.closed_tasks.max_new_tokens),
            *judging,
            self._reading(best.count, best.mean, self.settings.judge.batch_size, best.largest),
        )
        n = facts.evaluation.count + facts.verifiable.count + facts.closed.count + facts.held_out.count
        return StageWork(stage, phase, models * n, "replies", parts * models, engines=2 * models)

    def _seed_evaluation(self) -> StageWork:
        """M1 meets base model and SFT baseline, all of which have answered; the arbiter is measured by people."""
        facts, n, held_out = self.facts, self.facts.evaluation.count, self.facts.held_out
        parts = self._match(new_replies=3 * n, pairs=2 * n)
        judge = self.settings.judge
        # M1 as a distribution judge has these scores in its journal, unless it knew the kinds that it now has to tell.
        same = judge.rubric != "by_kind" or facts.held_out_of_no_kind == facts.held_out_groups
        known = judge.mode == "distribution" and same
        for arbiter in self._arbiters_here:
            if arbiter.method == "comparison":
                parts.append(self._comparing(facts.held_out_pairs))
                continue
            parts += self._before_judging(n)
            if arbiter.model != "self" or not known:
                parts += self._before_judging(facts.held_out_groups)
                parts.append(self._judging(held_out.count, held_out.mean, held_out.largest))
        requests = self._requests(3 * n, 2 * n) + self._requests(held_out.count, facts.held_out_pairs)
        return StageWork("seed_evaluation", "seed", n, "prompts", tuple(parts), self._opened(3), requests=requests)

    def _replies(self, limit: int) -> np.ndarray:
        return np.minimum(np.array(self.facts.responses.sample) * self.assumed.reply_share, limit)

    def _reply(self, limit: int) -> float:
        """Mean length of a reply, in tokens."""
        return float(self._replies(limit).mean())

    def _judgement(self) -> int:
        return min(self.assumed.judgement_tokens, self.settings.judge.max_new_tokens)

    def _answers(self, prompts: Lengths, n: int | None = None, limit: int | None = None) -> Part:
        n, limit = prompts.count if n is None else n, limit or self.settings.evaluation.max_new_tokens
        rows = self.settings.evaluation.batch_size
        return self._writing(n, n * prompts.mean, self._reply(limit), rows, limit, prompts.largest)

    def _writing(self, n: int, read: float, reply: float, rows: int, limit: int, longest_prompt: int) -> Part:
        together = max(1, min(self.in_flight or rows, n))
        # A batch of one takes as long as its own reply; the more there are, the nearer one comes to the limit.
        in_batches = -(-n // together) * (limit - (limit - reply) / together)
        steps = n / together * reply if self.in_flight else in_batches
        units: dict[Unit, float] = {"prompted": read, "step": steps, "drawn": n * reply}
        return Part("writing", n, units, together * (longest_prompt + limit))

    def _judge(self, n: int, mean: float, longest: int, mode: str | None = None) -> tuple[Part, ...]:
        judge = self.settings.judge
        mode = mode or judge.mode
        if mode == "distribution":
            return (self._judging(n, mean, longest),)
        if mode == "sampled":
            return (self._rationales(n, mean, longest, judge.samples),)
        # Prompt and rationale are read once more, up to the place of the score.
        reading = self._judging(n, mean + self._judgement(), longest + judge.max_new_tokens)
        return self._rationales(n, mean, longest, 1), reading

    def _before_judging(self, prompts: int, of_no_kind: int | None = None) -> tuple[Part, ...]:
        """What a judge has to find out of prompts first; a checklist is taken to be as long as a judgement.

        Args:
            prompts: Different ones.
            of_no_kind: Those of them whose kind the data does not tell; None for all.
        """
        judge, facts = self.settings.judge, self.facts
        if judge.rubric == "by_kind":
            n = prompts if of_no_kind is None else of_no_kind
            return (self._judging(n, facts.kinds.mean, facts.kinds.largest),) if n else ()
        if judge.rubric == "checklist":
            length, limit = min(self.assumed.judgement_tokens, LONGEST_CHECKLIST), LONGEST_CHECKLIST
            read, longest = prompts * facts.checklists.mean, facts.checklists.largest
            return (self._writing(prompts, read, length, judge.batch_size, limit, longest),)
        return ()

    def _rationales(self, n: int, mean: float, longest: int, samples: int) -> Part:
        judge = self.settings.judge
        return self._writing(n * samples, n * mean, self._judgement(), judge.batch_size, judge.max_new_tokens, longest)

    def _judging(self, n: int, mean: float, longest: int) -> Part:
        return self._reading(n, mean, self.in_flight or self.settings.judge.batch_size, longest)

    def _reading(self, n: int, mean: float, rows: int, longest: int) -> Part:
        return Part("judging", n, {"judged": n * mean}, max(1, min(rows, n)) * longest)

    @property
    def _arbiters_here(self) -> list[ArbiterSettings]:
        """Those that are models on this machine; each is taken to be as large as the project's own."""
        return [a for a in self.settings.evaluation.arbiters if a.model not in PROGRAMS and not a.server.base_url]

    def _opened(self, matches: int) -> int:
        """How often an arbiter's model is loaded: several make room for each other in every match."""
        models = len({arbiter.model for arbiter in self._arbiters_here})
        return models * matches if models > 1 else models

    def _match(self, new_replies: int, pairs: int) -> list[Part]:
        """Scores are kept in a journal, so each reply is judged once; comparisons are made anew, in both orders."""
        facts, limit = self.facts, self.settings.evaluation.max_new_tokens
        scored = facts.judge_frame + facts.evaluation.mean + self._reply(limit)
        longest = facts.judge_frame + facts.evaluation.largest + limit
        return [
            self._comparing(pairs) if a.method == "comparison" else self._judging(new_replies, scored, longest)
            for a in self._arbiters_here
        ]

    def _comparing(self, pairs: int) -> Part:
        facts, limit = self.facts, self.settings.evaluation.max_new_tokens
        mean = facts.comparison_frame + facts.evaluation.mean + 2 * self._reply(limit)
        return self._judging(2 * pairs, mean, facts.comparison_frame + facts.evaluation.largest + 2 * limit)

    def _requests(self, replies: int, pairs: int) -> int:
        """How often servers are asked for their opinion of replies, or of pairs of them in both orders."""
        asked = [a.method for a in self.settings.evaluation.arbiters if a.server.base_url]
        return asked.count("scores") * replies + asked.count("comparison") * 2 * pairs


def optimiser_steps(examples: int, settings: TrainingSettings) -> int:
    """Return how many optimiser steps a training stage takes."""
    return max(1, math.ceil(math.ceil(examples / settings.batch_size) * settings.epochs))


def evenly(items: Sequence[Item], n: int = _SAMPLE) -> list[Item]:
    """Return up to n items, evenly spaced over all."""
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, min(n, len(items)))]


def _rows(table: pd.DataFrame) -> list[Any]:
    return evenly(list(table.itertuples()))


def unshared(texts: Sequence[str]) -> list[str]:
    """Return the texts without what all of them begin with."""
    beginning = common_length(texts) if len(texts) > 1 else 0
    return [text[beginning:] for text in texts]


def _ordered_pairs(ranked: pd.DataFrame) -> int:
    return sum(
        int((group["rank"].to_numpy()[:, None] < group["rank"].to_numpy()[None, :]).sum())
        for _, group in ranked.groupby("group_id")
    )
