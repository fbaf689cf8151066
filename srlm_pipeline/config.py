"""One YAML file, validated, becomes typed settings. Nothing here knows where settings are used.

A configuration file may start from a preset (``preset: quickstart``) and name only what differs. Unknown
keys are refused together with the nearest valid name, because a misspelt learning rate that is silently
ignored costs a night.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from srlm_pipeline.errors import SettingsError

PRESETS = ("quickstart", "paper", "single-gpu")
EMBEDDED_MODEL = "smollm2-135m-instruct"
EMBEDDED_DATA = "embedded"
# How the command line hands its --set options to the definitions that it loads; JSON.
OVERRIDES_VARIABLE = "SRLM_OVERRIDES"


Role = Literal["result", "verdict", "resources"]


def verdict(default: Any, **more: Any) -> Any:
    """Return a field that decides only what is thought of a result, as a threshold does; see `role_of`."""
    return Field(default, json_schema_extra={_ROLE: "verdict"}, **more)


def resources(default: Any, **more: Any) -> Any:
    """Return a field that decides only how something is computed, as a batch size does; see `role_of`."""
    return Field(default, json_schema_extra={_ROLE: "resources"}, **more)


def role_of(field: FieldInfo) -> Role:
    """Return what a change of a setting means.

    ``result``: something else comes out, so what was made with another value is stale. ``verdict``: the same comes
    out, and is judged anew. ``resources``: the same comes out, and nothing is done again.
    """
    extra = field.json_schema_extra
    role: Any = extra.get(_ROLE, "result") if isinstance(extra, dict) else "result"
    return cast("Role", role)


_ROLE = "role"


class Section(BaseModel):
    """A group of settings; immutable, and closed to unknown keys.

    Attributes:
        short_form: The field that a plain text in place of the whole section stands for, if there is one.
        apart: Results that are no part of the section's fingerprint: most of its readers do not depend on them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    short_form: ClassVar[str | None] = None
    apart: ClassVar[frozenset[str]] = frozenset()

    def results(self) -> dict[str, Any]:
        """Return what the section's readers make something else of, by name."""
        fields = type(self).model_fields
        return {k: v for k, v in self if k not in self.apart and role_of(fields[k]) == "result"}

    def short(self) -> Any:
        """Return the field that stands for the whole section, or the section itself."""
        return getattr(self, self.short_form) if self.short_form else self

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, value: Any) -> Any:
        return {cls.short_form: value} if cls.short_form and isinstance(value, str) else value


class ModelSettings(Section):
    """How models are loaded and stored."""

    device: str = resources("auto", description="auto, cpu, cuda, cuda:1, mps, ...")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = resources(
        "auto", description="compute type; auto: bfloat16 where the device has it, float32 otherwise"
    )
    save_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="type of the saved weights, which the next iteration starts from; bfloat16 takes half the disk and "
        "rounds small updates away",
    )
    trust_remote_code: bool = resources(False, description="run code that a model repository ships")


class EngineSettings(Section):
    """What writes and judges; `engine: vllm` is short for `engine: {kind: vllm}`."""

    short_form = "kind"
    kind: Literal["auto", "transformers", "vllm", "openai"] = Field(
        "auto",
        description="auto: vllm where a CUDA device and a vLLM installation are found, transformers otherwise; "
        "openai: any server that speaks its protocol",
    )
    vllm_python: str | None = Field(
        None, description="interpreter of the environment that has vLLM; None: the one that runs the pipeline"
    )
    vllm_arguments: tuple[str, ...] = Field((), description="further arguments of `vllm serve`")
    base_url: str | None = Field(None, description="of the server, e.g. http://127.0.0.1:8000/v1; for openai")
    model: str = Field(
        "{path}",
        description="name under which the server knows a model; {path}, {name} and {digest} are the checkpoint's",
    )
    api_key_variable: str = Field("OPENAI_API_KEY", description="environment variable that holds the server's key")
    concurrency: int | None = Field(
        None, ge=1, description="requests in flight; None: 16, or 256 for a vLLM that the pipeline starts"
    )
    timeout_seconds: float = Field(600.0, gt=0, description="of one request, the wait for its turn included")
    max_retries: int = Field(5, ge=0, description="of a request that failed for the server's sake, with back-off")

    @model_validator(mode="after")
    def _server_is_named(self) -> EngineSettings:
        if self.kind == "openai" and not self.base_url:
            raise ValueError("engine.kind openai needs engine.base_url")
        return self


class SourceSettings(Section):
    """Where one kind of data comes from and how it is written; `ift: FILE` is short for `ift: {source: FILE}`."""

    short_form = "source"

    source: str = Field(
        EMBEDDED_DATA,
        description="embedded: the set in the package; else a file (.jsonl, .json, .parquet, or .gz of the first two), "
        "a folder or a hub name that `datasets` loads",
    )
    format: Literal["auto", "plain", "messages", "open_assistant_messages", "open_assistant_trees"] = Field(
        "auto", description="auto: told by the first row's fields; plain: prompt with response, replies, or alone"
    )
    columns: dict[
        Literal["id", "kind", "prompt", "response", "reference", "replies", "messages"], str | tuple[str, ...]
    ] = Field(
        {},
        description="which column holds a field, e.g. {prompt: instruction}; dots lead into nested ones; "
        "for replies also a list of columns, best first",
    )
    subset: str | None = Field(None, description="of a folder or hub dataset")
    split: str = Field("train", description="of a folder or hub dataset")
    languages: tuple[str, ...] = Field(("en",), description="of Open Assistant messages; []: all languages")


class DataSettings(Section):
    """Instruction, judging and evaluation data."""

    ift: SourceSettings = SourceSettings()
    ranked_replies: SourceSettings = SourceSettings()
    evaluation_prompts: SourceSettings = SourceSettings()
    bad_rows: Literal["fail", "skip"] = Field("fail", description="skip: rows that cannot be used are counted instead")
    include_unreviewed: bool = Field(
        False, description="use Open Assistant messages that no reviewer approved, written by models among them, too"
    )
    ranked_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="of prompts that both ift and ranked_replies have, the share used for judging alone",
    )
    held_out_fraction: float = Field(0.35, gt=0, lt=1, description="share of judging prompts never trained on")
    ift_limit: int | None = Field(None, ge=1, description="use only the first so many pairs")
    ranked_limit: int | None = Field(None, ge=2, description="use only the first so many judging prompts")
    evaluation_limit: int | None = Field(None, ge=1, description="use only the first so many evaluation prompts")


class LoraSettings(Section):
    """Low-rank adapters, merged into the weights at the end of each round."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    top_layers: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the layers that are adapted, from the output down; below, none is trained",
    )


class TrainingSettings(Section):
    """What every training stage has in common."""

    method: Literal["lora", "full"] = "lora"
    lora: LoraSettings = LoraSettings()
    learning_rate: float = Field(gt=0)
    final_learning_rate_ratio: float = Field(0.2, ge=0, le=1, description="cosine decay ends at this share")
    epochs: float = Field(1.0, gt=0)
    batch_size: int = Field(16, ge=1, description="examples per optimiser step")
    micro_batch_size: int = resources(
        4, ge=1, validate_default=True, description="examples per forward pass; must divide batch_size"
    )
    max_length: int = Field(1024, ge=16, description="tokens of prompt and completion; longer ones are cut")
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    save_every: int = resources(50, ge=1, description="optimiser steps between resumable checkpoints")

    @field_validator("micro_batch_size")
    @classmethod
    def _divides(cls, value: int, info: Any) -> int:
        batch = info.data.get("batch_size")
        if batch is not None and batch % value:
            raise ValueError(f"must divide batch_size ({batch})")
        return value


class SftSettings(TrainingSettings):
    """Supervised fine-tuning: paper section 3.1.2 (learning rate 5.5e-6 to 1.1e-6, batch 16)."""

    learning_rate: float = Field(5.5e-6, gt=0)


class EftSettings(TrainingSettings):
    """Evaluation fine-tuning: how the seed model learns to judge."""

    enabled: bool = Field(True, description="off: M1 is trained on instruction data alone")
    targets: Literal["self", "dataset", "ranks"] = Field(
        "self",
        description="self: the SFT baseline judges, judgements that agree with the human order are kept "
        "(the paper); dataset: score and rationale as the data file gives them; ranks: scores alone, spread from 5 to "
        "1 over the human order, for `ranking`",
    )
    min_prompts: int = verdict(
        20, ge=1, description="with targets self: fewer prompts with judgements that agree stop the run"
    )
    max_score_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="judgement texts that state the most frequent score are dropped until they are this share of all",
    )
    rationales_per_prompt: int | None = Field(
        None, ge=1, description="judgement texts per prompt for SFT; None: one per reply"
    )
    ranking: bool = Field(
        False, description="afterwards, also train the expected score to follow the human order (not in the paper)"
    )
    score_weight: float = Field(
        1.0,
        ge=0,
        description="in the ranking stage, weight of the cross-entropy to the scores; 0: the order alone is learned",
    )
    length_balance: bool = Field(
        False,
        description="in the ranking stage, pairs whose better reply is the shorter one weigh as much in sum as the "
        "others, so that length alone is no way to rank",
    )
    strangers: int = Field(
        0,
        ge=0,
        description="in the ranking stage, so many replies to other prompts join each prompt's, ranked below its own "
        "(not in the paper): a judge that does not read the prompt is wrong about them",
    )
    spoiled: int = Field(
        0,
        ge=0,
        description="in the ranking stage, so many copies of each prompt's last-ranked reply join it, padded, "
        "repetitive or cut off, ranked below it (not in the paper): a judge that goes by length is wrong about most",
    )
    comparisons_per_prompt: int = Field(
        0, ge=0, description="pairs per prompt on which the ranking stage also trains A/B comparison, both orders"
    )
    learning_rate: float = Field(3e-4, gt=0, description="of the ranking stage; the SFT part uses sft.learning_rate")

    @model_validator(mode="after")
    def _teaches_something(self) -> EftSettings:
        if self.enabled and self.targets == "ranks" and not self.ranking:
            raise ValueError("eft.targets ranks gives no judgement texts: it needs eft.ranking: true")
        if self.enabled and (self.strangers or self.spoiled) and not self.ranking:
            raise ValueError("eft.strangers and eft.spoiled are for the ranking stage: they need eft.ranking: true")
        return self


class PromptGenerationSettings(Section):
    """Self-instruction creation, step 1: new prompts, few-shot (paper section 3.1.3, appendix A.6)."""

    count: int = Field(5000, ge=1, description="accepted prompts per iteration")
    generator: str = Field(
        "base",
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
    max_attempts_factor: int = resources(8, ge=1, description="give up after count times this many attempts")
    batch_size: int = resources(32, ge=1)


class CandidateSettings(Section):
    """Self-instruction creation, step 2: N replies per prompt (paper: N = 4, T 0.7, p 0.9)."""

    per_prompt: int = Field(4, ge=2)
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.9, gt=0, le=1)
    max_new_tokens: int = Field(512, ge=1)
    batch_size: int = resources(32, ge=1)


class ServerSettings(Section):
    """An OpenAI-compatible server that is asked for its opinion; the key comes from the environment alone."""

    base_url: str | None = Field(None, description="e.g. https://api.openai.com/v1; None: a model on this machine")
    api_key_variable: str = resources("OPENAI_API_KEY", description="environment variable that holds the server's key")
    concurrency: int = resources(8, ge=1, description="requests in flight")
    timeout_seconds: float = resources(120.0, gt=0, description="of one request")
    max_retries: int = resources(5, ge=0, description="of a request that failed for the server's sake, with back-off")
    max_requests: int = resources(
        2000, ge=1, description="budget of one materialization; answers known from before cost nothing"
    )
    max_new_tokens: int = Field(512, ge=1, description="of one opinion")


def _require_name(model: str, server: ServerSettings, *own: str) -> None:
    if server.base_url and model in own:
        raise ValueError(f"with server.base_url, model is the name of the server's model, not {model!r}")


class PanelMember(Section):
    """One who scores candidates; `panel: [self]` is short for `panel: [{model: self}]`."""

    short_form = "model"

    model: str = Field(
        "self",
        description="self: M_t; else folder or hub name of another model, or with server.base_url the server's name "
        "for it",
    )
    mode: Literal["sampled", "distribution", "hybrid"] | None = Field(
        None, description="as judge.mode; None: that one, or for a server sampled, the only one it can do"
    )
    weight: float = Field(1.0, gt=0, description="of its scores in the mean")
    server: ServerSettings = ServerSettings()

    @model_validator(mode="after")
    def _server_writes(self) -> PanelMember:
        _require_name(self.model, self.server, "self")
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
    rubric: Literal["additive", "short"] = Field("additive", description="additive: the full five-point rubric")
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
        "accuracy remain the model's own",
    )


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
    min_score: float = Field(
        5.0, ge=0, le=5, description="for positive_only; the paper takes perfect fives, which small models seldom give"
    )


class EarlyStoppingSettings(Section):
    """DPO ends where the replies stop getting better (paper section 3.1.2)."""

    every: int | None = Field(
        None, ge=1, description="optimiser steps between looks, the paper's being 200; None: train to the end"
    )
    prompts: int = Field(
        253, ge=1, description="answered at each look, at most; from the held-out prompts of data.ranked_replies"
    )
    min_win_rate: float = Field(
        0.5, ge=0, le=1, description="against the replies of the look before; below it the model of that look is taken"
    )


class DpoSettings(TrainingSettings):
    """Instruction-following training (paper: learning rate 1e-6 to 1e-7, beta 0.1, batch 16)."""

    learning_rate: float = Field(1e-6, gt=0)
    final_learning_rate_ratio: float = Field(0.1, ge=0, le=1)
    beta: float = Field(0.1, gt=0)
    loss: Literal[
        "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
        "aot_unpaired", "apo_zero", "apo_down", "discopop",
    ] = Field("sigmoid", description="TRL's loss_type; sigmoid_norm is length-normalised DPO")  # fmt: skip
    nll_weight: float = Field(
        0.0, ge=0, description="weight of the chosen reply's negative log-likelihood per token, added to the loss"
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="how often a preference is taken to be the wrong way round; for robust, exo_pair, aot",
    )
    early_stopping: EarlyStoppingSettings = EarlyStoppingSettings()

    @model_validator(mode="after")
    def _smoothing_is_used(self) -> DpoSettings:
        if self.label_smoothing and self.loss not in _SMOOTHED_LOSSES:
            raise ValueError(
                f"dpo.label_smoothing has no effect on loss {self.loss}; use one of {', '.join(_SMOOTHED_LOSSES)}"
            )
        if self.loss == "exo_pair" and not self.label_smoothing:
            raise ValueError("dpo.loss exo_pair needs dpo.label_smoothing above 0")
        return self


# The others of TRL's losses do not read it, and say nothing.
_SMOOTHED_LOSSES = ("robust", "exo_pair", "aot", "aot_unpaired")


class RewardModelSettings(TrainingSettings):
    """The reward model of classic RLHF: trained on the human rankings, then frozen."""

    learning_rate: float = Field(1e-4, gt=0)


class RlhfSettings(TrainingSettings):
    """Classic RLHF: REINFORCE with a leave-one-out baseline (RLOO) against the frozen reward model."""

    learning_rate: float = Field(5e-5, gt=0)
    batch_size: int = Field(16, ge=1, description="replies per optimiser step, all to its prompts together")
    max_length: int = Field(
        1024, ge=16, description="tokens of prompt and reply; prompts that leave no room are left out"
    )
    save_every: int = resources(10, ge=1, description="optimiser steps between resumable checkpoints")
    generations: int = Field(
        4,
        ge=2,
        validate_default=True,
        description="replies per prompt, compared with each other; must divide batch_size",
    )
    max_new_tokens: int = Field(256, ge=1, validate_default=True, description="per reply; must be below max_length")
    temperature: float = Field(1.0, gt=0, description="at which the replies are drawn, and learned from")
    kl_coefficient: float = Field(
        0.05,
        ge=0,
        description="taken off a reply's reward per nat by which it has become likelier than under the SFT baseline",
    )
    missing_end_penalty: float = Field(
        1.0, ge=0, description="taken off the reward of a reply that max_new_tokens cut off"
    )
    max_steps: int = Field(100, ge=1, description="optimiser steps at most; epochs over the prompts may end it before")

    @field_validator("generations")
    @classmethod
    def _fills_the_batch(cls, value: int, info: Any) -> int:
        batch = info.data.get("batch_size")
        if batch is not None and batch % value:
            raise ValueError(f"must divide batch_size ({batch})")
        return value

    @field_validator("max_new_tokens")
    @classmethod
    def _leaves_room_for_a_prompt(cls, value: int, info: Any) -> int:
        whole = info.data.get("max_length")
        if whole is not None and value >= whole:
            raise ValueError(f"must be below max_length ({whole}), which is of prompt and reply together")
        return value


class BaselineSettings(Section):
    """What self-rewarding is compared with, and may start from; DPO on the human pairs is trained as `dpo` says."""

    start_from: Literal["base", "rlhf", "human_dpo"] = Field(
        "base",
        description="model that M1 is trained from; base: the base model, on instruction and judging data (the paper); "
        "rlhf, human_dpo: that baseline, on judging data alone",
    )
    reward_model: RewardModelSettings = RewardModelSettings()
    rlhf: RlhfSettings = RlhfSettings()


# Arbiters that are no language model.
PROGRAMS = ("verifiers", "reference", "people")


class ArbiterSettings(Section):
    """One who decides head-to-heads; `arbiters: [self]` is short for `arbiters: [{model: self}]`."""

    short_form = "model"

    model: str = Field(
        "self",
        description="self: M1, the same ruler for all iterations; verifiers: the checkable instructions in the "
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
        _require_name(self.model, self.server, "self", *PROGRAMS)
        return self


class VerifiableSettings(Section):
    """Instructions whose fulfilment a program can check (IFEval)."""

    source: str = Field(
        EMBEDDED_DATA, description="embedded: the set in the package; else a JSONL file in IFEval's format; none: off"
    )
    limit: int | None = Field(None, ge=1, description="use only so many prompts, always the same, of all kinds in turn")
    max_new_tokens: int = Field(512, ge=1)


class ClosedTaskSettings(Section):
    """Short questions with exact answers, checked by program: what the model still knows and can do."""

    source: str = Field(EMBEDDED_DATA, description="embedded: the set in the package; else a JSONL file; none: off")
    limit: int | None = Field(None, ge=1, description="use only so many tasks, always the same, of all kinds in turn")
    max_new_tokens: int = Field(24, ge=1)


class EvaluationSettings(Section):
    """Head to head on the evaluation prompts, both orders, disagreement counts as a tie."""

    arbiters: tuple[ArbiterSettings, ...] = Field(
        (ArbiterSettings(),), min_length=1, description="who decides; several are a jury"
    )
    decision: Literal["mean", "majority"] = Field(
        "mean",
        description="of a jury: mean of the weighted preferences, each first divided by its juror's typical size; or "
        "the weighted majority of votes",
    )
    tie_margin: float = Field(0.0, ge=0, description="differences up to this are a tie")
    other_answers: tuple[str, ...] = Field(
        (), description="files of other models' answers (`prompt` or `instruction`, `output`, `generator`) to meet"
    )
    verifiable: VerifiableSettings = VerifiableSettings()
    closed_tasks: ClosedTaskSettings = ClosedTaskSettings()
    encoder: Literal["embedded", "none"] = Field(
        "embedded", description="embedded: the sentence encoder that says how near replies are to reference replies"
    )
    harness_tasks: tuple[str, ...] = Field(
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

    unfit: float | None = Field(0.12, gt=0, le=1, description="share of replies that show any of the signs below")
    loops: float | None = Field(0.1, gt=0, le=1, description="share of replies that go in circles")
    echoes: float | None = Field(0.1, gt=0, le=1, description="share of replies that are the prompt copied")
    recites: float | None = Field(0.1, gt=0, le=1, description="share of replies that recite or are a stock reply")
    empty: float | None = Field(0.1, gt=0, le=1, description="share of replies without a word")
    refuses: float | None = Field(0.1, gt=0, le=1, description="share of replies that refuse")
    other_language: float | None = Field(0.1, gt=0, le=1, description="share of replies in another language than asked")
    cut_off: float | None = Field(0.2, gt=0, le=1, description="share of replies that the token limit ended")
    closed_tasks: float | None = Field(0.08, gt=0, le=1, description="share of closed tasks that are solved")
    checkable: float | None = Field(0.12, gt=0, le=1, description="share of checkable instructions that are followed")
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


class ScheduleSettings(Section):
    """The nightly iteration."""

    cron: str = "0 2 * * *"
    timezone: str = "UTC"
    planned_iterations: int = Field(10, ge=1, le=999, description="partitions shown; the schedule stops after these")
    after_rejection: Literal["stop", "retry"] = Field(
        "stop",
        description="stop: a person decides; retry: the iteration is done again from the champion with a new seed",
    )
    max_retries: int = Field(2, ge=1, description="of one iteration, with after_rejection retry")


class TrackingSettings(Section):
    """MLflow; MLFLOW_TRACKING_URI overrides the address."""

    tracking_uri: str | None = Field(None, description="default: SQLite under dagster_home")
    ui_url: str = Field("http://127.0.0.1:5000", description="where people open MLflow; used for links")


class Settings(Section):
    """Everything a project can decide. `describe_fields` lists all keys with their meaning."""

    preset: str = "quickstart"
    project: str = Field("quickstart", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="MLflow experiment name")
    seed: int = Field(20, ge=0)
    base_model: str = Field(EMBEDDED_MODEL, description="embedded name, model folder, or hub name")
    storage: str | None = Field(None, description="models, tables, journals; default: srlm/ under DAGSTER_HOME")
    owners: tuple[str, ...] = resources((), description="shown on every asset: e-mail addresses or team:name")
    model: ModelSettings = ModelSettings()
    engine: EngineSettings = resources(EngineSettings())
    data: DataSettings = DataSettings()
    sft: SftSettings = SftSettings()
    eft: EftSettings = EftSettings()
    prompt_generation: PromptGenerationSettings = PromptGenerationSettings()
    candidates: CandidateSettings = CandidateSettings()
    judge: JudgeSettings = JudgeSettings()
    pairs: PairSettings = PairSettings()
    dpo: DpoSettings = DpoSettings()
    baselines: BaselineSettings = BaselineSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    monitors: MonitorSettings = verdict(MonitorSettings())
    promotion: PromotionSettings = verdict(PromotionSettings())
    schedule: ScheduleSettings = resources(ScheduleSettings())
    tracking: TrackingSettings = resources(TrackingSettings())

    @field_validator("baselines")
    @classmethod
    def _start_leads_to_a_judge(cls, value: BaselineSettings, info: Any) -> BaselineSettings:
        eft, pairs = info.data.get("eft"), info.data.get("pairs")
        if value.start_from == "base" or eft is None or pairs is None:
            return value
        if not eft.enabled:
            raise ValueError(f"start_from {value.start_from} needs eft.enabled: without it M1 would not learn to judge")
        if pairs.strategy == "positive_only":
            raise ValueError(
                f"start_from {value.start_from} would be lost with pairs.strategy positive_only, which trains the base "
                "model again in every iteration; use base, or best_worst"
            )
        return value

    def fingerprint(self, *keys: str) -> str:
        """Twelve hex digits that change when one of the named settings does.

        Args:
            keys: Dotted paths of sections or fields, e.g. ``"judge"``, ``"candidates.temperature"``. Of a section
                count the fields that change results and are not kept apart; others only where they are named:
                ``"judge.panel"``, ``"judge.min_parse_rate"``.
        """
        chosen: dict[str, Any] = {}
        for key in sorted(keys):
            value: Any = self
            for part in key.split("."):
                value = getattr(value, part)
            chosen[key] = _decisive(value)
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


def load_settings(source: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read, merge and validate settings.

    Args:
        source: Preset name or path of a YAML file. None: the ``SRLM_CONFIG`` environment variable, else
            ``quickstart``.
        overrides: Nested mapping laid over the file, e.g. ``{"dpo": {"beta": 0.2}}``.

    Raises:
        SettingsError: With one sentence for every wrong field.
    """
    source = source or os.environ.get("SRLM_CONFIG") or "quickstart"
    if str(source) in PRESETS:
        merged = _read_preset(str(source))
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise SettingsError(
                [f"there is no such file, and no preset of that name (presets: {', '.join(PRESETS)})"], str(source)
            )
        own = _long_form(_read_yaml(path.read_bytes(), str(path)))
        preset = own.get("preset", "quickstart")
        if preset not in PRESETS:
            raise SettingsError([f"preset: unknown preset {preset!r}{_nearest(str(preset), PRESETS)}"], str(path))
        merged = _lay_over(_read_preset(preset), _absolute_paths(own, path.resolve().parent))
    merged = _lay_over(merged, _long_form(json.loads(os.environ.get(OVERRIDES_VARIABLE, "{}"))))
    merged = _lay_over(merged, _long_form(overrides or {}))
    problems = _unknown_keys(merged, Settings)
    if not problems:
        try:
            return Settings.model_validate(merged)
        except ValidationError as error:
            problems = [f"{_key(e['loc'])}: {e['msg']} (got {e['input']!r})" for e in error.errors()]
    raise SettingsError(problems, str(source))


def parse_override(text: str) -> dict[str, Any]:
    """Turn ``dpo.beta=0.2`` into ``{"dpo": {"beta": 0.2}}``; the value is read as YAML.

    Raises:
        SettingsError: If there is no ``=`` or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise SettingsError([f"{text!r} is not of the form section.key=value"], "--set")
    try:
        nested: Any = yaml.load(value, Loader=_Loader)  # noqa: S506 - a SafeLoader subclass
    except yaml.YAMLError as error:
        raise SettingsError([f"{text!r}: the value is not valid YAML: {error}"], "--set") from error
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return dict(nested)


def merge_overrides(texts: list[str]) -> dict[str, Any]:
    """Merge several ``section.key=value`` texts, later ones winning."""
    merged: dict[str, Any] = {}
    for text in texts:
        merged = _lay_over(merged, _long_form(parse_override(text)))
    return merged


def changed_settings(before: Settings, after: Settings) -> list[str]:
    """Return the dotted keys of the settings that differ."""

    def different(prefix: str, one: Section, other: Section) -> list[str]:
        found: list[str] = []
        for name, value in one:
            others = getattr(other, name)
            if isinstance(value, Section) and isinstance(others, Section):
                found += different(f"{prefix}{name}.", value, others)
            elif value != others:
                found.append(f"{prefix}{name}")
        return found

    return different("", before, after)


def describe_fields(model: type[BaseModel] = Settings, prefix: str = "") -> list[tuple[str, str, str]]:
    """List every setting as (dotted key, default, description); ``arbiters[].model`` is a field of each list item."""
    rows: list[tuple[str, str, str]] = []
    for name, field in model.model_fields.items():
        key, section, items = f"{prefix}{name}", _section_of(field.annotation), _item_section_of(field.annotation)
        if section is not None:
            rows += describe_fields(section, f"{key}.")
            continue
        default = field.get_default()
        if items is not None:
            default = [item.model_dump(exclude_defaults=True) or item.short() for item in default]
        rows.append((key, repr(default), field.description or ""))
        if items is not None:
            rows += describe_fields(items, f"{key}[].")
    return rows


def _decisive(value: Any) -> Any:
    """Return a setting as JSON has it, of sections only what changes results."""
    if isinstance(value, Section):
        return {name: _decisive(field) for name, field in value.results().items()}
    return [_decisive(item) for item in value] if isinstance(value, tuple) else value


def _item_section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section of which a setting is a list, if it is one."""
    return _section_of(get_args(annotation)[0]) if get_origin(annotation) is tuple else None


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) is tuple:
        return None
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _read_preset(name: str) -> dict[str, Any]:
    text = files("srlm_pipeline.presets").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return _read_yaml(text, name)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 5.5e-6 and 1e-4 as numbers, as everyone but YAML 1.1 does."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _read_yaml(text: str | bytes, name: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader subclass
    except yaml.YAMLError as error:
        raise SettingsError([f"not valid YAML: {error}"], name) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError([f"expected `key: value` lines, found a {type(content).__name__}"], name)
    return content


def _long_form(content: Any, model: type[BaseModel] = Settings) -> Any:
    """Write out the sections given as a plain text, so that layers are merged field by field."""
    short = model.short_form if issubclass(model, Section) else None
    if short and isinstance(content, str):
        return {short: content}
    if not isinstance(content, Mapping):
        return content

    def written_out(key: str, value: Any) -> Any:
        annotation = model.model_fields[key].annotation if key in model.model_fields else None
        if section := _section_of(annotation):
            return _long_form(value, section)
        items = _item_section_of(annotation)
        return [_long_form(item, items) for item in value] if items and isinstance(value, list) else value

    return {k: written_out(k, v) for k, v in content.items()}


def _absolute_paths(own: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Relative paths in a configuration file are relative to that file."""

    def absolute(value: Any) -> Any:
        is_path = isinstance(value, str) and (folder / value).exists()
        return str((folder / value).resolve()) if is_path else value

    data = own.get("data")
    if isinstance(data, dict):
        sources = {k: {**v, "source": absolute(v["source"])} for k, v in data.items() if _names_source(v)}
        own = {**own, "data": {**data, **sources}}
    if own.get("storage"):
        own = {**own, "storage": str((folder / Path(str(own["storage"])).expanduser()).resolve())}
    if "base_model" in own:
        own = {**own, "base_model": absolute(own["base_model"])}
    prompts = own.get("prompt_generation")
    if isinstance(prompts, dict) and prompts.get("generator") not in (None, "base", "policy"):
        own = {**own, "prompt_generation": {**prompts, "generator": absolute(prompts["generator"])}}
    for section, key in (("evaluation", "arbiters"), ("judge", "panel")):
        items = own[section].get(key) if isinstance(own.get(section), dict) else None
        if isinstance(items, list):
            judges = [{**i, "model": absolute(i["model"])} if _names_model(i) else i for i in items]
            own = {**own, section: {**own[section], key: judges}}
    evaluation = own.get("evaluation")
    if isinstance(evaluation, dict):
        lists = [key for key in ("other_answers", "harness_tasks") if isinstance(evaluation.get(key), list)]
        files: dict[str, Any] = {key: [absolute(item) for item in evaluation[key]] for key in lists}
        for key in ("verifiable", "closed_tasks"):
            asked = evaluation.get(key)
            if isinstance(asked, dict) and _names_source(asked):
                files[key] = {**asked, "source": absolute(asked["source"])}
        own = {**own, "evaluation": {**evaluation, **files}}
    return own


def _names_source(value: Any) -> bool:
    return isinstance(value, dict) and "source" in value


def _names_model(judge: Any) -> bool:
    return isinstance(judge, dict) and "server" not in judge and judge.get("model", "self") not in ("self", *PROGRAMS)


def _lay_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _lay_over(merged[key], value)
        else:
            merged[key] = value
    return merged


def _key(location: tuple[int | str, ...]) -> str:
    # Pydantic marks an error in a mapping's key so.
    return ".".join(str(part) for part in location if part != "[key]")


def _unknown_keys(content: Mapping[str, Any], model: type[BaseModel], prefix: str = "") -> list[str]:
    problems: list[str] = []
    for key, value in content.items():
        if key not in model.model_fields:
            valid = [k for k, _, _ in describe_fields()] if not prefix else list(model.model_fields)
            near = _nearest(str(key), [*model.model_fields, *valid])
            problems.append(f"{prefix}{key}: unknown setting{near}")
            continue
        annotation = model.model_fields[key].annotation
        section, items = _section_of(annotation), _item_section_of(annotation)
        if section is not None and isinstance(value, Mapping):
            problems += _unknown_keys(value, section, f"{prefix}{key}.")
        if items is not None and isinstance(value, list):
            for place, item in enumerate(value):
                problems += _unknown_keys(item, items, f"{prefix}{key}.{place}.") if isinstance(item, Mapping) else []
    return problems


def _nearest(word: str, valid: tuple[str, ...] | list[str]) -> str:
    found = difflib.get_close_matches(word, valid, n=1, cutoff=0.4)
    return f"; did you mean {found[0]!r}?" if found else f"; valid names: {', '.join(dict.fromkeys(valid))}"
