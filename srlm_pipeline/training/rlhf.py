"""Classic RLHF: the SFT baseline learns by reinforcement what a frozen reward model likes.

RLOO (Ahmadian et al. 2024, arXiv 2402.14740): several replies are drawn to a prompt, and the advantage of each is its
reward less the mean reward of the others. The reward is the reward model's, less the KL coefficient times the log
ratio of the reply's probabilities under policy and SFT baseline. Of TRL's two on-policy trainers it is the one that
keeps to the objective of PPO-based RLHF, whole replies and a KL penalty in the reward, without a value model; under
adapters the reference is the policy with its adapters switched off, so that no second model is held in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from srlm_pipeline.config import ModelSettings, RlhfSettings
from srlm_pipeline.data.chat import render_user_turn
from srlm_pipeline.errors import EmptyDataError
from srlm_pipeline.models.loading import LoadedModel
from srlm_pipeline.models.saving import end_tokens as declared_ends
from srlm_pipeline.training.common import (
    TrainingJob,
    TrainingRun,
    adapter_config,
    launchable,
    load_for_training,
    require_rows,
    run_trainer,
    trained_model,
    trainer_arguments,
)
from srlm_pipeline.training.fitting import fits_memory
from srlm_pipeline.training.reward_model import RewardModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RewardFunction = Callable[..., list[float]]


@launchable()
@fits_memory
def train_rlhf(
    job: TrainingJob,
    prompts: Sequence[str],
    open_reward: Callable[[ModelSettings], RewardModel],
    settings: RlhfSettings,
) -> TrainingRun:
    """Train a policy against a frozen reward model with TRL's RLOOTrainer.

    Advantages are normalised over each step's replies: reward models end up on scales of their own, and the size of a
    step should not follow them.

    Args:
        job: Its source is the SFT baseline, policy and reference.
        prompts: User messages to answer.
        open_reward: Opens the reward model as models are loaded here; it was trained from the same model as the policy
            starts from, so that both read the same tokens.
        settings: Method, learning rate, replies per prompt, KL coefficient, ...

    Returns:
        The trained model; `reward`, `kl` and `completions/mean_length` in its history show how it went.

    Raises:
        EmptyDataError: If there are no prompts, all are too long, or they do not fill one step.
    """
    require_rows(prompts, "prompts", "check the data files")
    from datasets import Dataset
    from trl import RLOOConfig

    from srlm_pipeline.training.rloo_trainer import RenderedRLOOTrainer

    reward_model = open_reward(job.model)
    loaded = load_for_training(job, settings)
    rendered = fitting_prompts(loaded.tokenizer, prompts, settings.max_length - settings.max_new_tokens)
    require_rows(
        rendered, "prompts", "all are longer than baselines.rlhf.max_length leaves room for beside max_new_tokens"
    )
    order = prompt_order(len(rendered), settings, job.seed)
    trainer = RenderedRLOOTrainer(
        model=loaded.model,
        reward_funcs=reward_function(reward_model, loaded, settings.missing_end_penalty),
        args=RLOOConfig(
            **trainer_arguments(job, settings, loaded),
            max_steps=len(order) * settings.generations // settings.batch_size,
            num_generations=settings.generations,
            max_completion_length=settings.max_new_tokens,
            temperature=settings.temperature,
            beta=settings.kl_coefficient,
            normalize_advantages=True,
            # Otherwise policy and reference would differ by dropout's noise.
            disable_dropout=True,
            shuffle_dataset=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": [rendered[place] for place in order]}),
        processing_class=loaded.tokenizer,
        peft_config=adapter_config(settings, loaded.model),
    )
    logged = run_trainer(job, trainer)
    # TRL logs None where a figure does not exist.
    history = [{name: value for name, value in entry.items() if value is not None} for entry in logged]
    trained = trained_model(job, settings, trainer, loaded.tokenizer)
    return TrainingRun(trained, history, len(rendered), len(prompts) - len(rendered))


def fitting_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], room: int) -> list[str]:
    """Return the rendered user turns of those prompts that are at most `room` tokens long."""
    rendered = [render_user_turn(tokenizer, prompt) for prompt in prompts]
    return [text for text in rendered if len(tokenizer(text, add_special_tokens=False).input_ids) <= room]


def prompt_order(n_prompts: int, settings: RlhfSettings, seed: int) -> list[int]:
    """Return which prompts are answered, all steps one after the other: every epoch in an order of its own.

    Fixed beforehand, because TRL shuffles anew when a training is resumed.

    Args:
        n_prompts: To choose from.
        settings: `batch_size`, `generations`, `epochs` and `max_steps` are read.
        seed: Of the order.

    Raises:
        EmptyDataError: If the prompts do not fill one step.
    """
    per_step = settings.batch_size // settings.generations
    if n_prompts < per_step:
        raise EmptyDataError(
            f"{n_prompts} prompts do not fill one step of {per_step} prompts with {settings.generations} replies each: "
            "lower baselines.rlhf.batch_size or raise baselines.rlhf.generations"
        )
    steps = max(1, min(settings.max_steps, int(n_prompts * settings.epochs) // per_step))
    random = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < steps * per_step:
        order += random.permutation(n_prompts).tolist()
    return order[: steps * per_step]


def reward_function(reward_model: RewardModel, policy: LoadedModel, missing_end_penalty: float) -> RewardFunction:
    """Return what TRL asks for rewards.

    A reply that the token limit cut off is read as if it had ended there, which the reward model knows how to judge,
    and pays for it.

    Args:
        reward_model: Reads the very tokens that were drawn.
        policy: Whose end tokens tell whether a reply came to its end.
        missing_end_penalty: Taken off the reward of one that did not.
    """
    tokenizer, ends = policy.tokenizer, end_tokens(policy)

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        read = tokenizer(prompts, add_special_tokens=False).input_ids
        ended = [bool(ids) and ids[-1] in ends for ids in completion_ids]
        replies = [ids[:-1] if has_end else ids for ids, has_end in zip(completion_ids, ended, strict=True)]
        rewards = reward_model.of_tokens(list(zip(read, replies, strict=True)))
        return [r if has_end else r - missing_end_penalty for r, has_end in zip(rewards, ended, strict=True)]

    return reward


def end_tokens(loaded: LoadedModel) -> set[int]:
    """Return the tokens with which a model ends a reply: its tokenizer's, and those that its configuration adds."""
    return set(declared_ends(loaded.model, loaded.tokenizer))
