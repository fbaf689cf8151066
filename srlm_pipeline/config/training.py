"""How models are trained: SFT, judging, DPO, and the baselines."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from srlm_pipeline.config.sections import Section, resources, verdict

Strategy = Literal["ddp", "fsdp2"]


class LauncherSettings(Section):
    """How many processes train, and what each of them keeps of the model."""

    processes: Literal["auto"] | int = Field(
        "auto",
        description="processes that train together, one device each; auto: one for each CUDA device that model.device "
        "leaves to choose from, a single one elsewhere",
    )
    strategy: Strategy = Field(
        "ddp",
        description="ddp: each process keeps the whole model; fsdp2: weights, gradients and optimiser states are "
        "divided among the processes, for method: full on CUDA devices",
    )

    @field_validator("processes")
    @classmethod
    def _at_least_one(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be auto, or a number from 1")
        return value


class DivisionSettings(Section):
    """How training is divided among devices; what comes out is the same."""

    launcher: LauncherSettings = LauncherSettings()


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
    """What every training stage has in common.

    Attributes:
        key: Where a project's settings have the section.
    """

    key: ClassVar[str] = "training"

    method: Literal["lora", "qlora", "full"] = Field(
        "lora", description="qlora: adapters over weights in 4 bits; needs bitsandbytes"
    )
    lora: LoraSettings = LoraSettings()
    learning_rate: float = Field(gt=0)
    final_learning_rate_ratio: float = Field(0.2, ge=0, le=1, description="cosine decay ends at this share")
    epochs: float = Field(1.0, gt=0)
    batch_size: int = Field(16, ge=1, description="examples per optimiser step")
    micro_batch_size: int | Literal["auto"] = resources(
        4,
        validate_default=True,
        description="examples per forward pass; must divide batch_size; auto: as many as fit, found by halving where "
        "the memory runs out",
    )
    gradient_checkpointing: bool | None = resources(
        None,
        description="compute a layer's activations again for the backward pass instead of keeping them: less memory, "
        "a third more time; None: on GPUs",
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw",
        description="adamw_8bit: both moments in 8 bits; paged_adamw_8bit: moved to the host's memory where the "
        "device's runs short; both need bitsandbytes and a GPU",
    )
    max_length: int = Field(1024, ge=16, description="tokens of prompt and completion; longer ones are cut")
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    save_every: int = resources(50, ge=1, description="optimiser steps between resumable checkpoints")

    @field_validator("micro_batch_size")
    @classmethod
    def _divides(cls, value: int | str, info: Any) -> int | str:
        if isinstance(value, str):
            return value
        if value < 1:
            raise ValueError("must be at least 1, or auto")
        batch = info.data.get("batch_size")
        if batch is not None and batch % value:
            raise ValueError(f"must divide batch_size ({batch})")
        return value

    @property
    def keeps_weights(self) -> bool:
        """Whether adapters alone are trained."""
        return self.method != "full"

    def micro_batches(self, most: int | None = None) -> list[int]:
        """Return the sizes of a forward pass to be tried, the largest first; each divides `batch_size`.

        Args:
            most: Where the size is to be found, the largest that may be tried; None: the whole batch.
        """
        if self.micro_batch_size != "auto":
            return [self.micro_batch_size]
        size, sizes = self.batch_size, []
        while size:
            size = next(n for n in range(size, 0, -1) if self.batch_size % n == 0)
            sizes.append(size)
            size //= 2
        return [size for size in sizes if most is None or size <= most]


def obstacle(settings: TrainingSettings, processes: int, strategy: Strategy) -> str | None:
    """Return in a sentence why a stage cannot be trained by so many processes, None where it can.

    Args:
        settings: Of the stage.
        processes: That train it together.
        strategy: What each of them keeps.
    """
    if strategy == "fsdp2" and settings.method != "full":
        return (
            f"{settings.key}.method is {settings.method}, and training.launcher.strategy fsdp2 divides full weights "
            f"only: adapters are small, train them with ddp, or set {settings.key}.method to full"
        )
    if strategy == "fsdp2" and isinstance(settings, RewardModelSettings | RlhfSettings):
        return f"{settings.key} is trained with training.launcher.strategy ddp only"
    if processes > 1 and isinstance(settings, SftSettings) and settings.packing:
        return f"{settings.key}.packing is for one process: set it to false, or training.launcher.processes to 1"
    if settings.micro_batch_size == "auto":
        if processes == 1:
            return None
        return (
            f"{settings.key}.micro_batch_size: auto is found by one process, and {processes} would have to agree: set "
            "it to a number"
        )
    batch, together = settings.batch_size, settings.micro_batch_size * processes
    if batch % together:
        share = batch // processes
        remedy = (
            f"set {settings.key}.micro_batch_size to {max(n for n in range(1, share + 1) if share % n == 0)}"
            if batch % processes == 0
            else f"set training.launcher.processes to a divisor of {batch // settings.micro_batch_size}, or change "
            f"{settings.key}.batch_size"
        )
        return (
            f"{settings.key}.batch_size ({batch}) cannot be divided among {processes} processes with "
            f"{settings.key}.micro_batch_size {settings.micro_batch_size} each: {remedy}"
        )
    return None


class SftSettings(TrainingSettings):
    """Supervised fine-tuning: paper section 3.1.2 (learning rate 5.5e-6 to 1.1e-6, batch 16)."""

    key = "sft"

    enabled: bool = Field(
        True,
        description="off: the base model, which must follow instructions by itself, is the SFT baseline (not in the "
        "paper); needs eft.targets: ranks",
    )
    learning_rate: float = Field(5.5e-6, gt=0)
    packing: bool = Field(
        False,
        description="put several examples into each sequence of max_length, none of which sees another, so that "
        "nothing is padded; batch_size then counts such sequences",
    )


class EftSettings(TrainingSettings):
    """Evaluation fine-tuning: how the seed model learns to judge."""

    key = "eft"

    renamed = {"strangers": "mismatched_negatives", "spoiled": "corrupted_negatives"}  # noqa: RUF012

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
    retention: float = Field(
        0.0,
        ge=0,
        description="in the ranking stage, weight of the divergence (nats per token) from the model that it starts "
        "from, at the instruction data's replies, so that learning to judge changes no replies (not in the paper)",
    )
    mismatched_negatives: int = Field(
        0,
        ge=0,
        description="in the ranking stage, so many replies to other prompts join each prompt's, ranked below its own "
        "(not in the paper): a judge that does not read the prompt is wrong about them",
    )
    corrupted_negatives: int = Field(
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
        if self.enabled and (self.mismatched_negatives or self.corrupted_negatives) and not self.ranking:
            raise ValueError(
                "eft.mismatched_negatives and eft.corrupted_negatives are for the ranking stage: they need "
                "eft.ranking: true"
            )
        return self


class EarlyStoppingSettings(Section):
    """DPO ends where the replies stop getting better (paper section 3.1.2)."""

    every: int | None = Field(
        None, ge=1, description="optimiser steps between looks, the paper's being 200; None: train to the end"
    )
    by: Literal["arbiter", "signs"] = Field(
        "arbiter",
        description="who says that replies get worse; arbiter: evaluation.arbiters, against the look before (the "
        "paper); signs: no judge, but programs that find more unfit replies than M_t gives, or the best human replies "
        "less likely (not in the paper)",
    )
    prompts: int = Field(
        253, ge=1, description="answered at each look, at most; from the held-out prompts of data.ranked_replies"
    )
    min_win_rate: float = Field(
        0.5,
        ge=0,
        le=1,
        description="by arbiter: against the replies of the look before; below it the model of that look is taken",
    )


class DpoSettings(TrainingSettings):
    """Instruction-following training (paper: learning rate 1e-6 to 1e-7, beta 0.1, batch 16)."""

    key = "dpo"

    # Of the loop alone: the baseline that learns from human pairs does without.
    apart = frozenset({"reference", "rehearsal", "interpolation", "nats_tolerance"})

    learning_rate: float = Field(1e-6, gt=0)
    final_learning_rate_ratio: float = Field(0.1, ge=0, le=1)
    beta: float = Field(0.1, gt=0)
    loss: Literal["sigmoid", "sigmoid_norm", "robust"] = Field(
        "sigmoid",
        description="TRL's loss_type; sigmoid_norm is length-normalised DPO, robust takes label_smoothing into account",
    )
    nll_weight: float = Field(
        0.0, ge=0, description="weight of the chosen reply's negative log-likelihood per token, added to the loss"
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="how often a preference is taken to be the wrong way round; for loss robust",
    )
    kl_budget: float | None = Field(
        None,
        gt=0,
        description="nats per reply; training ends at the first logged step at which the policy is estimated to be "
        "farther from its reference (not in the paper); None: train to the end",
    )
    reference: Literal["policy", "seed", "base"] = Field(
        "policy",
        description="the model from which training is not to stray far; policy: the one that training starts from (the "
        "paper); seed: M1; base: the base model",
    )
    rehearsal: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of an iteration's training pairs that people ranked: the best against the worst reply to "
        "training prompts of data.ranked_replies, drawn anew each time (not in the paper)",
    )
    interpolation: tuple[float, ...] = Field(
        (),
        description="shares of the trained model that are tried, the rest being the model that training started from; "
        "the largest that loses nothing on held-out prompts of data.ranked_replies is taken (not in the paper); "
        "empty: the trained model itself",
    )
    nats_tolerance: float = Field(
        0.05,
        ge=0,
        description="nats per token by which the best human replies may become less likely; for interpolation, and "
        "early stopping by signs",
    )
    early_stopping: EarlyStoppingSettings = EarlyStoppingSettings()

    @field_validator("interpolation")
    @classmethod
    def _are_different_shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < ratio <= 1 for ratio in value):
            raise ValueError("shares of the trained model lie above 0 and are 1 at most")
        if len(set(value)) < len(value):
            raise ValueError("a share is given twice")
        return value

    @model_validator(mode="after")
    def _reference_is_whole(self) -> DpoSettings:
        if self.method == "qlora" and self.reference != "policy":
            raise ValueError(
                f"dpo.reference {self.reference} is read by itself, and weights in 4 bits without adapters cannot be: "
                "set dpo.method to lora, or dpo.reference to policy"
            )
        return self

    @model_validator(mode="after")
    def _smoothing_is_used(self) -> DpoSettings:
        # TRL accepts it with every loss, and says nothing.
        if self.label_smoothing and self.loss != "robust":
            raise ValueError(f"dpo.label_smoothing has no effect on loss {self.loss}; use robust")
        return self


class RewardModelSettings(TrainingSettings):
    """The reward model of classic RLHF: trained on the human rankings, then frozen."""

    key = "baselines.reward_model"

    learning_rate: float = Field(1e-4, gt=0)

    @field_validator("method")
    @classmethod
    def _has_whole_weights(cls, value: str) -> str:
        if value == "qlora":
            raise ValueError("the reward model is trained as a whole or by lora; qlora is for models that write")
        return value


class RlhfSettings(TrainingSettings):
    """Classic RLHF: REINFORCE with a leave-one-out baseline (RLOO) against the frozen reward model."""

    key = "baselines.rlhf"

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
