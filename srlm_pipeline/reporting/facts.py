"""What the reports show, as plain values.

A section whose facts are missing (None or an empty tuple) is left out. Shares are in 0..1. A figure that is None or
not finite is shown as not measured. Texts are shown as they are: nothing in them is read as markup.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from srlm_pipeline.reporting.read_facts import ReadModel, ReadPrompt


@dataclass(frozen=True)
class Estimate:
    """A figure, with the ends of its range where there is one.

    Attributes:
        value: The figure.
        low: Lower end, of the 95 % interval unless said otherwise.
        high: Upper end.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Finding:
    """A promotion rule or a collapse monitor, with its verdict.

    Attributes:
        name: What is looked at, in plain words.
        passed: None if it is switched off or could not be measured.
        explanation: One sentence with the figures and what is allowed.
    """

    name: str
    passed: bool | None
    explanation: str


@dataclass(frozen=True)
class Juror:
    """One arbiter, alone or in a jury.

    Attributes:
        name: Method and model, in words.
        weight: Of its vote.
        agreement: With human rankings, among the pairs that it decides.
        decided: Share of the human-ranked pairs that it decides.
    """

    name: str
    weight: float
    agreement: Estimate | None = None
    decided: float | None = None


@dataclass(frozen=True)
class MatchFigures:
    """The reported model against one opponent.

    Attributes:
        opponent: Its name.
        role: Why it is met, in words: ``SFT baseline``, ``previous model, champion``, ``other model's answers``.
        wins: Prompts won.
        ties: Prompts without a decision.
        losses: Prompts lost.
        win_rate: Ties count half.
        length_controlled: Win rate, had the replies the same length.
        decided: Wins among decided prompts.
        p_value: Sign test of wins against losses, two-sided.
        disagreement: Share of prompts on which the two orders contradict each other.
        position_bias: Share of verdicts for the first place minus those for the second, in -1..1.
        length_ratio: Mean reply length divided by the opponent's.
        jury_agreement: Share of prompts on which jurors agree; None without a jury.
        effective_votes: How many independent jurors the jury is worth; None without a jury.
    """

    opponent: str
    role: str
    wins: int
    ties: int
    losses: int
    win_rate: Estimate
    length_controlled: Estimate | None = None
    decided: Estimate | None = None
    p_value: float | None = None
    disagreement: float | None = None
    position_bias: float | None = None
    length_ratio: float | None = None
    jury_agreement: float | None = None
    effective_votes: float | None = None


@dataclass(frozen=True)
class VitalSign:
    """One measure that no judge takes part in, of several models.

    Attributes:
        name: What it is, in words.
        unit: ``share``, ``cosine`` or ``nats``.
        models: By model, in the order to be shown; None where it was not measured.
        worse: Models that the reported one is worse than, with 95 % confidence.
        better: Models that it is better than, likewise.
        note: Why it was not measured; blank if it was.
    """

    name: str
    unit: str
    models: Mapping[str, Estimate | None]
    worse: tuple[str, ...] = ()
    better: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class JudgeFigures:
    """Agreement of one model's judgements with held-out human rankings.

    Attributes:
        model: The judge.
        pairwise: Share of human-ordered pairs in the same order.
        length_baseline: The same for "the longer reply is better".
        length_balanced: Mean over pairs that the longer reply wins and pairs that the shorter one wins.
        five_best: Of the replies given a perfect 5, those that humans ranked top.
        exact_match: Prompts whose whole order agrees.
        spearman: Mean rank correlation, in -1..1.
        kendall: Mean Kendall tau-b, in -1..1.
        parse_rate: Replies with a readable score.
        n_groups: Prompts.
        n_pairs: Pairs compared.
    """

    model: str
    pairwise: Estimate | None
    length_baseline: float | None
    length_balanced: float | None
    five_best: float | None
    exact_match: float | None
    spearman: float | None
    kendall: float | None
    parse_rate: float
    n_groups: int
    n_pairs: int


@dataclass(frozen=True)
class KindFigures:
    """Instructions of one kind: how many, and which share of them is followed strictly."""

    kind: str
    n: int
    share: float


@dataclass(frozen=True)
class VerifiableFigures:
    """Instructions whose fulfilment a program checks.

    Attributes:
        model: Who was asked.
        n_prompts: Prompts.
        n_instructions: Instructions in them.
        prompt_strict: Prompts all of whose instructions are followed.
        prompt_loose: The same after small changes (first or last line, asterisks left out).
        instruction_strict: Instructions followed.
        instruction_loose: The same after small changes.
        by_kind: Per kind of instruction.
        ahead: By how much the report's model exceeds this one, prompt by prompt: the difference of the mean shares of
            instructions that are followed, strictly. None for the report's model itself.
    """

    model: str
    n_prompts: int
    n_instructions: int
    prompt_strict: Estimate
    prompt_loose: Estimate
    instruction_strict: Estimate
    instruction_loose: Estimate
    by_kind: tuple[KindFigures, ...] = ()
    ahead: Estimate | None = None


@dataclass(frozen=True)
class TaskFigures:
    """A model's score in a task of lm-evaluation-harness; `score` is a share."""

    task: str
    metric: str
    model: str
    score: Estimate


@dataclass(frozen=True)
class Distribution:
    """Values to be shown as a histogram, with what they belong to; names within one chart differ."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Answer:
    """One model's reply.

    Attributes:
        model: Its name.
        text: The reply.
        score: The arbiter's, if it scores.
        cut_off: Whether the token limit ended it.
    """

    model: str
    text: str
    score: float | None = None
    cut_off: bool = False


@dataclass(frozen=True)
class Exchange:
    """One evaluation prompt and the replies to it.

    Attributes:
        prompt: The instruction.
        answers: The reported model's first.
        verdict: Of the match that `Replies` names.
        advantage: How much the reported model's reply is preferred, over both orders; negative: the opponent's.
        dispute: How far the two orders, or the jurors, are apart; 0 where they agree.
        note: Further facts in words, e.g. the jurors' votes.
    """

    prompt: str
    answers: tuple[Answer, ...]
    verdict: Literal["win", "tie", "loss"]
    advantage: float
    dispute: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Replies:
    """All evaluation prompts of one match; the report chooses the best, the worst and the most disputed."""

    opponent: str
    exchanges: tuple[Exchange, ...]


@dataclass(frozen=True)
class RejectedPrompts:
    """Invented prompts turned away for one reason; underscores in the reason are shown as blanks."""

    reason: str
    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptFigures:
    """What came of inventing prompts."""

    kept: int
    attempts: int
    rejected: tuple[RejectedPrompts, ...] = ()
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class PairExample:
    """A pair that the model learned from; without `rejected` a positive example."""

    prompt: str
    chosen: str
    chosen_score: float
    rejected: str | None = None
    rejected_score: float | None = None


@dataclass(frozen=True)
class PairFigures:
    """What the model learned from.

    Attributes:
        prompts: Prompts that had candidates.
        kept: Pairs, or positive examples.
        dropped: Prompts without one, by reason in words.
        examples: A few of those kept.
    """

    prompts: int
    kept: int
    dropped: tuple[tuple[str, int], ...] = ()
    examples: tuple[PairExample, ...] = ()


@dataclass(frozen=True)
class LineageStep:
    """A model on the way to the reported one.

    Attributes:
        name: E.g. ``M1``.
        digest: Of its files.
        origin: How it was made, in words.
        note: E.g. ``champion``.
    """

    name: str
    digest: str
    origin: str
    note: str = ""


@dataclass(frozen=True)
class StageCost:
    """What a stage took; None where it was not recorded or not planned.

    Attributes:
        stage: Name of the asset.
        seconds: As the run recorded it.
        planned_seconds: With the ends of the plan's range.
        tokens_written: Drawn tokens.
        planned_tokens_written: Before the run.
        tokens_read: Computed prompt and training tokens.
        planned_tokens_read: Before the run.
    """

    stage: str
    seconds: float | None = None
    planned_seconds: Estimate | None = None
    tokens_written: float | None = None
    planned_tokens_written: float | None = None
    tokens_read: float | None = None
    planned_tokens_read: float | None = None


@dataclass(frozen=True)
class Link:
    """An address with its name. Only http, https and relative addresses become links."""

    name: str
    address: str


@dataclass(frozen=True)
class FilePath:
    """A file or folder on the machine where the iteration ran; an absolute path becomes a link."""

    name: str
    path: str


@dataclass(frozen=True)
class IterationReport:
    """Everything about one iteration.

    Attributes:
        project: Name.
        iteration: From 1.
        model: The model that this iteration made.
        previous: The model that entered it.
        champion: The champion before the decision; None if there was none.
        promoted: The decision.
        rules: Its reasons, the most important first.
        made_at: When the report was made, in words.
        monitors: Signs of collapse.
        vital_signs: In the order to be shown.
        reading: Relative address of the page with all replies.
        telling: Prompts whose replies should be read first.
        compared: The models whose replies these show, the reported one last.
        arbiters: Who decides the matches; several are a jury.
        decision: How a jury decides, in words.
        dependences: Why the arbiters are not independent of the loop; nothing if they are.
        matches: In the order to be shown.
        judges: In the order to be shown; the reported model is found by its name.
        verifiable: The same.
        verifiable_source: Which set of checkable instructions, in words.
        tasks: Further benchmarks.
        scores: Of the candidates, this iteration's first.
        lengths: Of the evaluation replies in characters, the reported model's first.
        replies: To the evaluation prompts.
        prompts: Invented ones.
        pairs: What the model learned from.
        lineage: From the base model on.
        costs: In the order in which the stages ran.
        settings: As YAML.
        links: E.g. to the MLflow run.
        files: Tables, model, journals.
        overview: Relative address of the report over all iterations.
    """

    project: str
    iteration: int
    model: str
    previous: str
    champion: str | None
    promoted: bool
    rules: tuple[Finding, ...]
    made_at: str
    monitors: tuple[Finding, ...] = ()
    vital_signs: tuple[VitalSign, ...] = ()
    reading: str | None = None
    telling: tuple[ReadPrompt, ...] = ()
    compared: tuple[ReadModel, ...] = ()
    arbiters: tuple[Juror, ...] = ()
    decision: str = ""
    dependences: tuple[str, ...] = ()
    matches: tuple[MatchFigures, ...] = ()
    judges: tuple[JudgeFigures, ...] = ()
    verifiable: tuple[VerifiableFigures, ...] = ()
    verifiable_source: str = ""
    tasks: tuple[TaskFigures, ...] = ()
    scores: tuple[Distribution, ...] = ()
    lengths: tuple[Distribution, ...] = ()
    replies: Replies | None = None
    prompts: PromptFigures | None = None
    pairs: PairFigures | None = None
    lineage: tuple[LineageStep, ...] = ()
    costs: tuple[StageCost, ...] = ()
    settings: str = ""
    links: tuple[Link, ...] = ()
    files: tuple[FilePath, ...] = ()
    overview: str | None = None


@dataclass(frozen=True)
class ModelSummary:
    """One row of the report over all iterations.

    Attributes:
        model: Its name.
        iteration: That made it; None for models that no iteration made: they are in the table, not in the curves.
        promoted: None if nothing was to be decided.
        reason: The decisive one, one sentence.
        report: Relative address of the iteration's report.
        win_rates: By role of the opponent, e.g. ``SFT baseline``, ``previous model``, ``champion``; at most four roles
            over all rows are drawn.
        judge_accuracy: Pairwise.
        verifiable: Share of checkable instructions followed.
        parse_rate: Judgements with a readable score.
        length: Mean of the evaluation replies, in characters.
        pairs_kept: Pairs that it learned from.
        failed_monitors: By name.
        seconds: What the iteration took.
        closed_tasks: Share of closed tasks solved.
        loops: Share of replies that go in circles.
    """

    model: str
    iteration: int | None
    promoted: bool | None
    reason: str = ""
    report: str | None = None
    win_rates: Mapping[str, Estimate] = field(default_factory=dict)
    judge_accuracy: Estimate | None = None
    verifiable: Estimate | None = None
    parse_rate: float | None = None
    length: float | None = None
    pairs_kept: int | None = None
    failed_monitors: tuple[str, ...] = ()
    seconds: float | None = None
    closed_tasks: Estimate | None = None
    loops: Estimate | None = None


@dataclass(frozen=True)
class OverviewReport:
    """Everything about all iterations.

    Attributes:
        project: Name.
        champion: The champion's name; None if there is none yet.
        models: In the order to be shown.
        made_at: When the report was made, in words.
        arbiters: Who decides the matches; several are a jury.
        decision: How a jury decides, in words.
        lineage: From the base model on.
        links: E.g. to the MLflow experiment.
    """

    project: str
    champion: str | None
    models: tuple[ModelSummary, ...]
    made_at: str
    arbiters: tuple[Juror, ...] = ()
    decision: str = ""
    lineage: tuple[LineageStep, ...] = ()
    links: tuple[Link, ...] = ()
