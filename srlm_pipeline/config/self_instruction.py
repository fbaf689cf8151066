"""Self-instruction creation: prompts, candidates, scores, and the pairs that are chosen."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from srlm_pipeline.config.models import VERIFIERS, ServerSettings, require_name
from srlm_pipeline.config.sections import Section, path, resources, verdict

# Of the prompts, so that there are some to make others of.
_MOST_EVOLVED = 0.9


class EvolutionSettings(Section):
    """Prompts made out of other prompts, each way's share of `prompt_generation.count`; the rest is invented.

    Not in the paper, which invents all of them.
    """

    deepen: float = Field(0.0, ge=0, le=1, description="a model asks for more thought on the same subject")
    concretise: float = Field(0.0, ge=0, le=1, description="a model asks the same of a particular case")
    broaden: float = Field(0.0, ge=0, le=1, description="a model asks for something rarer from the same field")
    constrain: float = Field(
        0.0, ge=0, le=1, description="one to three instructions that a program can check are added"
    )
    given: float = Field(
        0.0,
        ge=0,
        le=1,
        description="prompts of data.ift as people wrote them, those that were given least in earlier iterations first",
    )
    task: float = Field(
        0.0, ge=0, le=1, description="not made out of another: a closed task whose answer a program knows"
    )

    @model_validator(mode="after")
    def _something_is_left(self) -> EvolutionSettings:
        if sum(share for _, share in self) > _MOST_EVOLVED:
            raise ValueError(f"the shares must not exceed {_MOST_EVOLVED} together: parents have to be invented")
        return self


class PromptGenerationSettings(Section):
    """Self-instruction creation, step 1: new prompts, few-shot (paper section 3.1.3, appendix A.6)."""

    count: int = Field(5000, ge=1, description="accepted prompts per iteration")
    generator: str = path(
        "base",
        "policy",
        description="base: the base model; policy: M_t; anything else: folder or hub name of another fixed model, as "
        "in the paper",
    )
    seed_examples: int = Field(6, ge=1, description="few-shot examples from the seed set")
    generated_examples: int = Field(2, ge=0, description="few-shot examples from already generated prompts")
    temperature: float = Field(0.6, ge=0)
    top_p: float = Field(0.9, gt=0, le=1)
    max_new_tokens: int = Field(128, ge=4)
    novelty_rouge_l: float = Field(0.7, gt=0, le=1, description="refuse prompts this similar to a known one")
    min_words: int = Field(4, ge=1)
    max_words: int = Field(150, ge=1)
    banned_words: tuple[str, ...] = (
        "image", "images", "picture", "graph", "video", "audio", "file", "attachment", "link", "website",
    )  # fmt: skip
    evolution: EvolutionSettings = EvolutionSettings()
    max_attempts_factor: int = resources(8, ge=1, description="give up after count times this many attempts")
    batch_size: int = resources(32, ge=1)


class CandidateSettings(Section):
    """Self-instruction creation, step 2: N replies per prompt (paper: N = 4, T 0.7, p 0.9)."""

    per_prompt: int = Field(4, ge=2)
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.9, gt=0, le=1)
    max_new_tokens: int = Field(512, ge=1)
    batch_size: int = resources(32, ge=1)


class PanelMember(Section):
    """One who scores candidates; `panel: [self]` is short for `panel: [{model: self}]`."""

    short_form = "model"

    model: str = path(
        "self",
        VERIFIERS,
        description="self: M_t; verifiers: programs, of prompts that prompt_generation.evolution made checkable; else "
        "folder or hub name of another model, or with server.base_url the server's name for it",
    )
    mode: Literal["sampled", "distribution", "hybrid"] | None = Field(
        None, description="as judge.mode; None: that one, or for a server sampled, the only one it can do"
    )
    weight: float = Field(1.0, gt=0, description="of its scores in the mean")
    server: ServerSettings = ServerSettings()

    @model_validator(mode="after")
    def _server_writes(self) -> PanelMember:
        require_name(self.model, self.server, "self", VERIFIERS)
        if self.model == VERIFIERS and self.mode is not None:
            raise ValueError(f"{VERIFIERS} are programs and have no mode")
        if self.server.base_url and self.mode not in (None, "sampled"):
            raise ValueError(f"mode {self.mode} reads probabilities, a server that is asked in words has mode sampled")
        return self


class JudgeSettings(Section):
    """Self-instruction creation, step 3: LLM-as-a-Judge (paper: K = 3 sampled judgements, averaged)."""

    apart = frozenset({"panel"})

    mode: Literal["sampled", "distribution", "hybrid"] = Field(
        "sampled",
        description="sampled: written rationales, their scores averaged (the paper); distribution: the expected score "
        "from one forward pass; hybrid: one written rationale, then the expected score at the place of its score",
    )
    rubric: Literal["additive", "short", "by_kind", "checklist"] = Field(
        "additive",
        description="additive: the full five-point rubric; short: the same in a paragraph; not in the paper: by_kind: "
        "dimensions that fit the kind of prompt; checklist: yes/no questions written for each prompt",
    )
    samples: int = Field(
        3, ge=1, description="judgements per reply in sampled mode and for eft.targets self; hybrid always writes one"
    )
    temperature: float = Field(0.7, gt=0)
    top_p: float = Field(0.9, gt=0, le=1)
    max_new_tokens: int = Field(256, ge=8)
    batch_size: int = resources(16, ge=1)
    min_parse_rate: float = verdict(0.5, ge=0, le=1, description="below this the iteration stops")
    panel: tuple[PanelMember, ...] = Field(
        (),
        description="who scores the candidates, by weighted mean; (): M_t alone. The seed's judgements and judge "
        "accuracy remain the model's own. With verifiers, a pair of a checkable prompt needs both: chosen passes its "
        "checks and is liked by the others, rejected fails or is disliked",
    )

    @field_validator("panel")
    @classmethod
    def _somebody_likes(cls, value: tuple[PanelMember, ...]) -> tuple[PanelMember, ...]:
        if value and all(member.model == VERIFIERS for member in value):
            raise ValueError(f"{VERIFIERS} have an opinion on checkable prompts only; name self beside them")
        return value

    @property
    def taught_rubric(self) -> Literal["additive", "short"]:
        """The rubric by which M1 learns to judge; judging by kind or checklist is asked of it untaught."""
        return self.rubric if self.rubric in ("additive", "short") else "short"

    @model_validator(mode="after")
    def _can_be_asked_by_the_rubric(self) -> JudgeSettings:
        modes = {self.mode, *(member.mode for member in self.panel if member.mode)}
        if self.rubric == "checklist" and modes != {"distribution"}:
            raise ValueError(
                "rubric checklist reads the probabilities of Yes and No: it needs mode distribution, of every member "
                "of panel too"
            )
        servers = [member.model for member in self.panel if member.server.base_url]
        if self.rubric != self.taught_rubric and servers:
            raise ValueError(
                f"rubric {self.rubric} reads probabilities, and a server ({servers[0]}) is asked in words: take it off "
                "panel, or set rubric to additive or short"
            )
        return self


class PairSettings(Section):
    """What the next model learns from: best against worst (paper section 2.3), or perfect replies alone."""

    strategy: Literal["best_worst", "positive_only"] = Field(
        "best_worst",
        description="best_worst: pairs for DPO; positive_only: replies that score at least `min_score` join the seed "
        "data, on which the base model is fine-tuned again",
    )
    min_margin: float = Field(0.0, ge=0, description="pairs whose scores differ by no more than this are ties")
    length_control: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="chosen is the shortest reply within this share of the score range below the best, rejected the "
        "longest within it above the worst (rho of Meta-Rewarding); 0: best and worst themselves",
    )
    unfit: Literal["scored", "rejected"] = Field(
        "scored",
        description="candidates that loop, copy the prompt, recite, refuse, are empty, in another language or cut off: "
        "scored: like any other (the paper); rejected: never chosen, and rejected before any other unless only cut off "
        "(not in the paper)",
    )
    min_score: float = Field(
        5.0, ge=0, le=5, description="for positive_only; the paper takes perfect fives, which small models seldom give"
    )
