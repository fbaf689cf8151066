"""How much work each stage is, whatever machine will do it: a table of the stages in three kinds of work.

A model reads texts, writes replies, or is trained on examples. Each of the three is counted in one place, in units
that take a time each (`Unit`); a stage names what is read, written and learned. Padding is not counted, a rate per
token includes it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from srlm_pipeline.config import PROGRAMS, PanelMember, Settings, TrainingSettings
from srlm_pipeline.evaluation.assessing import reply_limits
from srlm_pipeline.judging.checklists import LONGEST_CHECKLIST
from srlm_pipeline.planning.texts import Facts, Lengths
from srlm_pipeline.prompting import evolution, few_shot
from srlm_pipeline.prompting.evolution import prompts_by_operator
from srlm_pipeline.prompting.rewriting import OPERATORS
from srlm_pipeline.training.retention import BEGINNING, PER_ITEM

Phase = Literal["seed", "iteration"]
Trainer = Literal["sft", "ranking", "dpo"]
Kind = Literal["engine", "sft", "ranking", "dpo"]
"""What holds memory: an engine that reads and writes, or a trainer."""
Unit = Literal[
    "opened", "read", "step", "drawn", "sft", "ranking", "dpo", "trainer", "sft_pass", "ranking_pass", "dpo_pass"
]
"""What takes time: opening a model, a token read, a forward pass of one new token a row, a token drawn, a token trained
on by each trainer, what a training takes beside its steps (setting up, merging, saving), and, where devices send each
other weights or gradients, a forward and backward pass of each trainer."""

PASSES: Mapping[Trainer, Unit] = {"sft": "sft_pass", "ranking": "ranking_pass", "dpo": "dpo_pass"}


class Assumptions(BaseModel):
    """What no one knows before the run."""

    model_config = ConfigDict(frozen=True)

    reply_share: float = Field(
        0.85, description="length of replies, as a share of the instruction data's, before the limit cuts them"
    )
    acceptance: float = Field(0.5, description="share of the invented prompts that are accepted")
    pairs_kept: float = Field(0.95, description="share of the prompts whose best and worst reply make a pair")
    positive: float = Field(0.25, description="share of the replies that are good enough to be learned")
    judgement_tokens: int = Field(130, description="tokens of a written judgement, before the limit cuts it")
    thought_share: float = Field(0.5, description="length of a thought, as a share of what it may take at the most")
    self_judged_kept: float = Field(
        0.25, description="share of the judging prompts whose replies the SFT baseline orders as people do"
    )


MIDDLE = Assumptions()
LITTLE = Assumptions(
    reply_share=0.6, acceptance=0.75, pairs_kept=0.8, positive=0.1, judgement_tokens=80, self_judged_kept=0.1,
    thought_share=0.2,
)  # fmt: skip
MUCH = Assumptions(
    reply_share=1.2, acceptance=0.35, pairs_kept=1.0, positive=0.5, judgement_tokens=250, self_judged_kept=0.6,
    thought_share=1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """Work of one kind.

    Attributes:
        kind: Which.
        items: Texts read, replies written, or examples in one epoch.
        units: How many of which unit.
        held: Tokens that are in memory at a time, at the most.
        resumable: Whether checkpoints of all weights are kept meanwhile.
    """

    kind: Kind
    items: int
    units: Mapping[Unit, float]
    held: float
    resumable: bool = False


@dataclass(frozen=True)
class StageWork:
    """What one asset computes.

    Attributes:
        stage: Name of the asset.
        phase: Group of the asset.
        items: What is counted.
        unit: What is counted, in words.
        parts: The work.
        opened: Models that are opened for reading or writing.
        models: Whole models that the stage keeps.
        temporary_models: Whole float32 models that it holds on disk meanwhile.
        requests: To servers that are asked for their opinion.
    """

    stage: str
    phase: Phase
    items: int
    unit: str
    parts: Sequence[Work] = ()
    opened: int = 0
    models: int = 0
    temporary_models: float = 0.0
    requests: int = 0

    @property
    def units(self) -> Counter[Unit]:
        """How many of which unit, over all parts."""
        total: Counter[Unit] = Counter({"opened": self.opened})
        for part in self.parts:
            total.update(part.units)
        return total


def count_work(settings: Settings, facts: Facts, assumed: Assumptions, in_flight: int | None = None) -> list[StageWork]:
    """Return the work of the seed's stages and of one iteration's, in the order in which they run.

    Args:
        settings: All settings.
        facts: Of the data.
        assumed: What cannot be known.
        in_flight: Requests that a server works on at a time, each making room for the next when it is done; None for
            an engine that works on one batch after the other.
    """
    stages = _Stages(settings, facts, assumed, in_flight)
    return [*stages.seed(), *stages.iteration()]


@dataclass(frozen=True)
class _Stages:
    settings: Settings
    facts: Facts
    assumed: Assumptions
    in_flight: int | None

    def seed(self) -> Iterator[StageWork]:
        facts, sft, eft = self.facts, self.settings.sft, self.settings.eft
        instructions = facts["instruction"].cut(sft.max_length)
        yield self._model("sft_baseline", "seed", [self._train("sft", sft, instructions)] if sft.enabled else [])
        ranked = facts["explained"].of(facts["explained"].count if eft.enabled else 0)
        own = self._judge(ranked, "sampled") if eft.targets == "self" and ranked.count else []
        yield StageWork("eft_dataset", "seed", ranked.count, "replies", own, opened=len(own))
        yield self._model("seed_model", "seed", self._seed_training())
        yield self._assessed("seed_assessment", "seed", self._first_models)
        # M1 meets the others; then the arbiters are measured by people.
        n, known = facts["evaluation"].count, self.settings.judge.mode == "distribution"
        matches, asked = self._matches(self._first_models * n, (self._first_models - 1) * n)
        measured, more = self._opinions(facts["held_out"], facts["held_out_pair"], known)
        parts, opened = matches + measured, len(matches)
        yield StageWork("seed_evaluation", "seed", n, "prompts", parts, opened, requests=asked + more)

    def iteration(self) -> Iterator[StageWork]:
        facts, judge, tested = self.facts, self.settings.judge, self.settings.evaluation
        invented, chosen = self.settings.prompt_generation, self.settings.candidates
        made = prompts_by_operator(invented)
        inventing = self._attempts(facts["few_shot"], made["few_shot"], few_shot.ROUND)
        rewriting = self._attempts(facts["rewriting"], sum(made[way] for way in OPERATORS), evolution.ROUND)
        n = inventing.items + rewriting.items
        yield StageWork("generated_prompts", "iteration", n, "attempts", [inventing, rewriting], opened=1)
        prompts, replies = facts["prompt"].of(invented.count), self._replies(chosen.max_new_tokens)
        answering = self._write(prompts, replies, chosen.max_new_tokens, chosen.batch_size, chosen.per_prompt, True)
        n = answering.items
        yield StageWork("candidates", "iteration", n, "replies", [answering], opened=1)
        shown = prompts.of(n) + facts["judge"] + replies
        members = [m for m in judge.panel or (PanelMember(),) if m.model not in PROGRAMS]
        modes = [m.mode or judge.mode for m in members if not m.server.base_url]
        before = self._before_judging(prompts.count, facts["kind"].of(prompts.count))
        judging = [part for mode in modes for part in (*before, *self._judge(shown, mode))]
        asked = (len(members) - len(modes)) * n * judge.samples
        yield StageWork("judged_scores", "iteration", n, "replies", judging, len(modes), requests=asked)
        learned = self._thought if self.settings.model.thinking.trained else 0.0
        yield self._iteration_model(prompts + facts["template"] + (replies + learned))
        yield self._assessed("assessment", "iteration", models=1)
        # The new model's replies alone are judged: its opponents' scores lie in their journals.
        n = facts["evaluation"].count
        matches, asked = self._matches(n, self._first_models * n)
        yield StageWork("win_rates", "iteration", n, "prompts", matches, len(matches), requests=asked)
        # The new model's evaluation replies are read by itself and by M1.
        n = 2 * n if self.settings.monitors.max_kl is not None else 0
        answers = facts["evaluation"].of(n) + self._replies(tested.max_new_tokens)
        reading = [self._read(answers, tested.batch_size)]
        yield StageWork("collapse_monitors", "iteration", n, "replies", reading, opened=2 if n else 0)

    @property
    def _first_models(self) -> int:
        """Base model, SFT baseline and M1; without SFT the first two are one."""
        return 3 if self.settings.sft.enabled else 2

    def _read(self, texts: Lengths, rows: int) -> Work:
        rows = min(self.in_flight or rows, texts.count)
        return Work("engine", texts.count, {"read": texts.total}, rows * texts.longest)

    @property
    def _thought(self) -> float:
        """Tokens of a thought; 0 of a model that does not think."""
        return self.assumed.thought_share * self.facts["thought"].mean

    def _write(
        self, prompts: Lengths, replies: Lengths, limit: float, rows: int, per_prompt: int = 1, thinking: bool = False
    ) -> Work:
        """A prompt is read once for all replies to it; in a batch one of the replies comes near the limit.

        With `thinking`, a model that thinks does so first; where a beginning is put into its mouth it does not.
        """
        n, mean = prompts.count * per_prompt, replies.cut(limit).mean
        if thinking:
            mean, limit = mean + self._thought, limit + self.facts["thought"].mean
        rows = max(1, min(self.in_flight or rows, n))
        steps = n / rows * mean if self.in_flight else math.ceil(n / rows) * limit
        units: dict[Unit, float] = {"read": prompts.total, "step": steps, "drawn": n * mean}
        return Work("engine", n, units, rows * (prompts.longest + limit))

    def _attempts(self, begun: Lengths, wanted: int, together: int) -> Work:
        """What a model writes until enough prompts are accepted, so many of them at a time."""
        chosen = self.settings.prompt_generation
        attempts = wanted * min(1 / self.assumed.acceptance, chosen.max_attempts_factor)
        begun, rows = begun.of(together * math.ceil(attempts / together)), min(chosen.batch_size, together)
        return self._write(begun, self.facts["prompt"] + 1, chosen.max_new_tokens, rows)

    def _train(self, trainer: Trainer, settings: TrainingSettings, *examples: Lengths) -> Work:
        tokens = settings.epochs * sum(texts.total for texts in examples)
        held = settings.micro_batches()[-1] * max(texts.longest for texts in examples)
        n = sum(texts.count for texts in examples)
        passes = settings.epochs * n / settings.micro_batches()[-1]
        units: dict[Unit, float] = {trainer: tokens, "trainer": 1, PASSES[trainer]: passes}
        resumable = settings.method == "full" and optimiser_steps(n, settings) >= settings.save_every
        return Work(trainer, n, units, held, resumable)

    def _judge(self, shown: Lengths, mode: str) -> list[Work]:
        judge, judgement = self.settings.judge, self._judgement
        if mode == "distribution":
            return [self._read(shown, judge.batch_size)]
        samples = judge.samples if mode == "sampled" else 1
        writing = self._write(shown, judgement, judge.max_new_tokens, judge.batch_size, samples, True)
        # Prompt and rationale are read once more, up to the place of the score.
        return [writing] if mode == "sampled" else [writing, self._read(shown + judgement, judge.batch_size)]

    def _before_judging(self, prompts: int, of_no_kind: Lengths) -> list[Work]:
        """What a judge finds out of prompts first: their kinds where these are not known, or what to check."""
        judge = self.settings.judge
        if judge.rubric == "by_kind" and of_no_kind.count:
            return [self._read(of_no_kind, judge.batch_size)]
        if judge.rubric == "checklist":
            written = Lengths(1, (self.assumed.judgement_tokens,))
            return [self._write(self.facts["checklist"].of(prompts), written, LONGEST_CHECKLIST, judge.batch_size)]
        return []

    def _opinions(self, replies: Lengths, pairs: Lengths, scored: bool = False) -> tuple[list[Work], int]:
        """What the arbiters here read, each being as large as the project's model, and how often servers are asked.

        Scores are kept in a journal, so each reply is judged once, and not at all by the model itself if it is
        `scored`; comparisons are made anew, in both orders.
        """
        parts, requests = [], 0
        for arbiter in self.settings.evaluation.arbiters:
            comparing = arbiter.method == "comparison"
            shown = pairs.of(2 * pairs.count) if comparing else replies
            if arbiter.model in PROGRAMS or (scored and not comparing and arbiter.model == "self"):
                continue
            if arbiter.server.base_url:
                requests += shown.count
            else:
                parts.append(self._read(shown, self.settings.judge.batch_size))
        return parts, requests

    def _matches(self, new_replies: int, pairs: int) -> tuple[list[Work], int]:
        prompts, replies = self.facts["evaluation"], self._replies(self.settings.evaluation.max_new_tokens)
        return self._opinions(
            prompts.of(new_replies) + self.facts["judge"] + replies,
            prompts.of(pairs) + self.facts["comparison"] + replies.times(2),
        )

    def _assessed(self, stage: str, phase: Phase, models: int) -> StageWork:
        """Everything that is asked of a model, and the best human replies read as if it had written them."""
        facts, tested, judge = self.facts, self.settings.evaluation, self.settings.judge
        parts = [self._answers(facts[part], limit) for part, limit in reply_limits(tested).items()]
        n = sum(part.items for part in parts) + facts["held_out"].count
        parts += self._before_judging(facts["best"].count, facts["held_out_kind"])
        parts += [*self._judge(facts["held_out"], judge.mode), self._read(facts["best"], judge.batch_size)]
        return StageWork(stage, phase, models * n, "replies", parts * models, opened=2 * models)

    def _answers(self, prompts: Lengths, limit: int) -> Work:
        return self._write(prompts, self._replies(limit), limit, self.settings.evaluation.batch_size, thinking=True)

    def _replies(self, limit: int) -> Lengths:
        return self.facts["response"].times(self.assumed.reply_share).cut(limit)

    @property
    def _judgement(self) -> Lengths:
        return Lengths(1, (self.assumed.judgement_tokens,)).cut(self.settings.judge.max_new_tokens)

    def _model(
        self, stage: str, phase: Phase, parts: Sequence[Work], unit: str = "examples", opened: int = 0
    ) -> StageWork:
        """A stage that makes a model; where it trains twice, the model in between is kept until the second is done."""
        trained = [part for part in parts if part.kind != "engine"]
        # Weights and both moments of the optimiser; while one checkpoint replaces another there are two.
        meanwhile = (len(trained) > 1) + 6.0 * any(part.resumable for part in trained)
        n = sum(part.items for part in trained)
        return StageWork(stage, phase, n, unit, parts, opened, models=1, temporary_models=meanwhile)

    def _seed_training(self, *more: Lengths) -> list[Work]:
        """SFT on instructions and judgement texts, then the ranking objective; without such texts only the latter."""
        facts, settings, eft = self.facts, self.settings, self.settings.eft
        taught, groups = facts["judgement"], facts["group"]
        if eft.enabled and eft.targets == "self":
            replies = facts["explained"].count / max(groups.count, 1)
            groups = groups.of(max(1, round(self.assumed.self_judged_kept * groups.count)))
            n = round(groups.count * min(eft.rationales_per_prompt or math.inf, replies))
            taught = facts["explained"].of(n) + self._judgement
        texts = [facts["instruction"], *([taught] if taught.count else []), *more]
        cut = [lengths.cut(settings.sft.max_length) for lengths in texts]
        parts = [self._train("sft", settings.sft, *cut)] if len(texts) > 1 else []
        if eft.enabled and eft.ranking:
            two = facts["prompt"] + facts["comparison"] + facts["response"].times(2)
            compared = two.of(groups.count * eft.comparisons_per_prompt).cut(eft.max_length).times(2)
            ranked = self._train("ranking", eft, groups, *([compared] if compared.count else []))
            if eft.retention:
                # Beginnings of replies, learned in the manner of SFT, and read as the model was before.
                kept = facts["instruction"].of(PER_ITEM * ranked.items).cut(BEGINNING + round(facts["prompt"].mean))
                beside = eft.epochs * kept.total
                ranked = replace(ranked, units={**ranked.units, "sft": beside, "read": beside})
            parts.append(ranked)
        return parts

    def _iteration_model(self, exchanges: Lengths) -> StageWork:
        settings, dpo, n = self.settings, self.settings.dpo, exchanges.count
        if settings.pairs.strategy == "positive_only":
            positive = max(1, round(n * settings.candidates.per_prompt * self.assumed.positive))
            parts = self._seed_training(self.facts["instruction"].of(positive))
            return self._model("iteration_model", "iteration", parts)
        facts = self.facts
        pairs = exchanges.of(max(1, round(n * self.assumed.pairs_kept))).cut(dpo.max_length).times(2)
        taught = [pairs]
        by_people = min(facts["group"].count, round(pairs.count * dpo.rehearsal / (1 - dpo.rehearsal)))
        if by_people:
            exchange = facts["prompt"] + facts["template"] + facts["response"]
            taught.append(exchange.of(by_people).cut(dpo.max_length).times(2))
        # The reference model reads both once.
        parts = [self._train("dpo", dpo, *taught), *(self._read(texts, dpo.micro_batches()[-1]) for texts in taught)]
        looks = 0
        if dpo.early_stopping.every:
            looks = optimiser_steps(pairs.count, dpo) // dpo.early_stopping.every
        by_arbiter = looks if dpo.early_stopping.by == "arbiter" else 0
        asked = min(dpo.early_stopping.prompts, max(1, facts["best"].count))
        look = self._answers(facts["evaluation"].of(asked), settings.evaluation.max_new_tokens)
        parts += [look, *self._matches(2 * asked, asked)[0]] * by_arbiter
        # At most: the first ratio that passes is the last. M_t is measured beside them.
        measured = len(dpo.interpolation) + looks - by_arbiter
        measured += bool(measured)
        answers = self._answers(facts["evaluation"].of(facts["best"].count), settings.evaluation.max_new_tokens)
        parts += [answers, self._read(facts["best"], settings.judge.batch_size)] * measured
        opened = by_arbiter + 2 * measured + (dpo.reference != "policy")
        made = self._model("iteration_model", "iteration", parts, "pairs", opened)
        # What was trained, and what lies between it and M_t.
        return replace(made, temporary_models=made.temporary_models + 2 * bool(dpo.interpolation))


def optimiser_steps(examples: int, settings: TrainingSettings) -> int:
    """Return how many optimiser steps a training takes."""
    return math.ceil(math.ceil(examples / settings.batch_size) * settings.epochs)
