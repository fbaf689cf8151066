"""Teaching a small model to judge: its expected score is trained to follow the human order.

The paper's evaluation fine-tuning is SFT on judgement texts, which a model of a hundred million parameters imitates
without learning to tell replies apart. Here the same forward pass that the distribution judge makes is trained
directly: within a prompt, a logistic (Bradley-Terry) loss on the difference of expected scores of every ordered
pair, plus cross-entropy to the human score where there is one, which keeps the scale. Comparison examples train
A against B in the same way. This objective is ours, not the paper's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from srlm_pipeline.config import EftSettings
from srlm_pipeline.judging.rubric import Rubric
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
from srlm_pipeline.training.ranking_items import RankedExample, encode_comparisons, encode_ranked, ranking_weights
from srlm_pipeline.training.retention import draw_retained
from srlm_pipeline.training.sft import SftExample


@launchable()
@fits_memory
def train_ranking(
    job: TrainingJob,
    examples: Sequence[RankedExample],
    settings: EftSettings,
    rubric: Rubric,
    replies: Sequence[SftExample] = (),
) -> TrainingRun:
    """Train a model's expected score on ranked replies.

    Args:
        job: Its seed is also that of the choice of comparisons.
        examples: Ranked replies; one example counts as one in `settings.batch_size`.
        settings: Method, learning rate, epochs, comparisons per prompt.
        rubric: The rubric that the judge will use.
        replies: With `settings.retention`, at which the model is to go on as it was.

    Raises:
        EmptyDataError: If there are no examples, or no replies where some are to be kept.
    """
    require_rows(examples, "ranked replies", "check data.ranked_replies")
    from transformers import TrainingArguments

    from srlm_pipeline.training.ranking_trainer import RankingTrainer

    loaded = load_for_training(job, settings)
    items = [encode_ranked(loaded.tokenizer, example, rubric, settings.max_length) for example in examples]
    random = np.random.default_rng(job.seed)
    for example in examples:
        items += encode_comparisons(
            loaded.tokenizer, example, settings.comparisons_per_prompt, settings.max_length, random
        )
    retained = (
        draw_retained(loaded.tokenizer, replies, len(items), settings.max_length, job.seed)
        if settings.retention
        else []
    )
    network, reference = loaded.model, None
    adapters = adapter_config(settings, loaded.model)
    if adapters is not None:
        from peft import get_peft_model

        network = get_peft_model(network, adapters)
    elif retained:
        reference = copy.deepcopy(network).eval().requires_grad_(False)
    trainer = RankingTrainer(
        model=network,
        args=TrainingArguments(
            **trainer_arguments(job, settings, loaded),
            remove_unused_columns=False,
        ),
        train_dataset=items,
        pad_token_id=int(loaded.tokenizer.pad_token_id or 0),
        weights=ranking_weights(examples, settings),
        retained=retained,
        reference=reference,
    )
    history = run_trainer(job, trainer)
    return TrainingRun(trained_model(job, settings, trainer, loaded.tokenizer), history, len(items))
