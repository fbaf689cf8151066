"""How models are measured, watched, and promoted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from srlm_pipeline.config.models import VERIFIERS, ServerSettings, require_name
from srlm_pipeline.config.sections import EMBEDDED_DATA, Section, path, resources

# Arbiters that are no language model.
PROGRAMS = (VERIFIERS, "reference", "people")


class ArbiterSettings(Section):
    """One who decides head-to-heads; `arbiters: [self]` is short for `arbiters: [{model: self}]`."""

    short_form = "model"

    model: str = path(
        "self",
        *PROGRAMS,
        description="self: M1, the same ruler for all iterations; verifiers: the verifiable instructions in the "
        "prompts; reference: nearness to the prompts' reference replies; people: votes given with `srlm read`; else "
        "folder or hub name of another model, or with server.base_url the server's name for it",
    )
    method: Literal["scores", "comparison"] = Field(
        "comparison",
        description="comparison: shows both replies and reads P(A) against P(B), or what a server answers; "
        "scores: compares two pointwise expected scores",
    )
    weight: float = Field(1.0, gt=0, description="of its vote in a jury")
    server: ServerSettings = ServerSettings()

    @model_validator(mode="after")
    def _server_is_asked_by_name(self) -> ArbiterSettings:
        require_name(self.model, self.server, "self", *PROGRAMS)
        return self


class VerifiableSettings(Section):
    """Instructions whose fulfilment a program can check (IFEval)."""

    source: str = path(
        EMBEDDED_DATA,
        "none",
        description="embedded: the set in the package; else a JSONL file in IFEval's format; none: off",
    )
    limit: int | None = Field(None, ge=1, description="use only so many prompts, always the same, of all kinds in turn")
    max_new_tokens: int = Field(512, ge=1)


class ClosedTaskSettings(Section):
    """Short questions with exact answers, checked by program: what the model still knows and can do."""

    source: str = path(
        EMBEDDED_DATA,
        "none",
        description="embedded: the set in the package; else a JSONL file; none: off",
    )
    limit: int | None = Field(None, ge=1, description="use only so many tasks, always the same, of all kinds in turn")
    max_new_tokens: int = Field(24, ge=1)


class EvaluationSettings(Section):
    """Head to head on the evaluation prompts, both orders, disagreement counts as a tie."""

    arbiters: tuple[ArbiterSettings, ...] = Field(
        (ArbiterSettings(),), min_length=1, description="who decides; several are a jury"
    )
    tie_margin: float = Field(0.0, ge=0, description="differences up to this are a tie")
    other_answers: tuple[str, ...] = path(
        (), description="files of other models' answers (`prompt` or `instruction`, `output`, `generator`) to meet"
    )
    verifiable: VerifiableSettings = VerifiableSettings()
    closed_tasks: ClosedTaskSettings = ClosedTaskSettings()
    encoder: Literal["embedded", "none"] = Field(
        "embedded", description="embedded: the sentence encoder that says how near replies are to reference replies"
    )
    harness_tasks: tuple[str, ...] = path(
        (), description="tasks of lm-evaluation-harness, to watch the alignment tax; needs the extra `harness`"
    )
    harness_limit: int | None = Field(None, ge=1, description="items per task; None: all")
    max_new_tokens: int = Field(512, ge=1)
    batch_size: int = resources(32, ge=1)
    bootstrap_samples: int = Field(2000, ge=100)


class MonitorSettings(Section):
    """Signs that the loop feeds on itself: asset checks of every iteration; None switches one off."""

    min_parse_rate: float | None = Field(0.9, ge=0, le=1, description="judgements with a readable score")
    max_tie_rate: float | None = Field(0.5, ge=0, le=1, description="prompts without a pair")
    max_score_share: float | None = Field(0.8, ge=0, le=1, description="replies with the most frequent score")
    min_score_std: float | None = Field(0.02, ge=0, description="standard deviation of the scores, in points")
    max_length_growth: float | None = Field(1.3, gt=0, description="mean reply length against the entering model's")
    max_variety_drop: float | None = Field(
        0.1, ge=0, le=1, description="different word pairs within a reply: with 95 % confidence no more below M1's"
    )
    max_recital_rise: float | None = Field(
        0.05, ge=0, le=1, description="replies that recite or are stock replies: likewise no more above M1's"
    )
    max_duplicate_prompts: float | None = Field(
        0.5, ge=0, le=1, description="attempts at prompts that were turned away as too like a known one"
    )
    max_judge_accuracy_drop: float | None = Field(
        0.1, ge=0, le=1, description="pairwise accuracy on the held-out human rankings: likewise no more below M1's"
    )
    max_kl: float | None = Field(
        1.0, gt=0, description="estimated KL divergence from M1 on the model's own replies, in nats per token"
    )


class MarginSettings(Section):
    """How much worse a new model may be, by measures that no judge takes part in; None leaves a measure out.

    Its proof has to be given: with 95 % confidence it is not worse by more than the margin.
    """

    renamed = {"checkable": "verifiable"}  # noqa: RUF012

    unfit: float | None = Field(0.12, gt=0, le=1, description="share of replies that show any of the signs below")
    loops: float | None = Field(0.1, gt=0, le=1, description="share of replies that go in circles")
    echoes: float | None = Field(0.1, gt=0, le=1, description="share of replies that are the prompt copied")
    recites: float | None = Field(0.1, gt=0, le=1, description="share of replies that recite or are a stock reply")
    empty: float | None = Field(0.1, gt=0, le=1, description="share of replies without a word")
    refuses: float | None = Field(0.1, gt=0, le=1, description="share of replies that refuse")
    other_language: float | None = Field(0.1, gt=0, le=1, description="share of replies in another language than asked")
    cut_off: float | None = Field(0.2, gt=0, le=1, description="share of replies that the token limit ended")
    closed_tasks: float | None = Field(0.08, gt=0, le=1, description="share of closed tasks that are solved")
    verifiable: float | None = Field(0.12, gt=0, le=1, description="share of verifiable instructions that are followed")
    verifiable_seen: float | None = Field(None, gt=0, le=1, description="the same of the kinds that may be trained on")
    verifiable_unseen: float | None = Field(
        None, gt=0, le=1, description="the same of the kinds that are never trained on; as a gain it counts anyway"
    )
    nearness: float | None = Field(
        0.06, gt=0, le=2, description="mean cosine to the reference replies, where both models' replies are fit"
    )
    human_likelihood: float | None = Field(
        0.25, gt=0, description="nats per token by which the best human replies have become less likely"
    )
    judge: float | None = Field(
        0.1, gt=0, le=1, description="share of human-ranked pairs that are judged right, where the other can judge"
    )


class PromotionSettings(Section):
    """When the registry's alias `champion` moves to the new model; all rules must be met, None switches one off."""

    min_win_rate: float | None = Field(
        0.5,
        ge=0,
        le=1,
        description="before an independent arbiter, with 95 % confidence, the win rate against the champion must be "
        "above it; of an arbiter that the loop trained on it is shown, and decides nothing",
    )
    min_length_controlled_win_rate: float | None = Field(
        0.5, ge=0, le=1, description="the same win rate, had the replies the same length"
    )
    against: tuple[Literal["baseline", "base"], ...] = Field(
        ("baseline", "base"), description="whom the new model must not be worse than, beside the champion"
    )
    margins: MarginSettings = MarginSettings()
    proven_gain: bool = Field(
        True,
        description="with 95 % confidence, better than the champion by a measure that the loop did not train on",
    )
    min_people_pairs: int | None = Field(
        None,
        ge=1,
        description="people must have read so many pairs of replies of the new model and the champion, and prefer "
        "the new one with 95 % confidence",
    )
    max_length_growth: float | None = Field(1.3, gt=0, description="mean reply length against the longest before")
    monitors: bool = Field(True, description="no failed monitor")
