"""Supervised fine-tuning on prompts and responses, loss on the response only (paper section 3.1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from srlm_pipeline.config import ModelSettings, TrainingSettings
from srlm_pipeline.data.chat import tokenize_exchange
from srlm_pipeline.progress import ProgressReporter
from srlm_pipeline.training.common import (
    TrainingRun,
    adapter_config,
    finish,
    load_for_training,
    require_rows,
    run_trainer,
    trainer_arguments,
)


@dataclass(frozen=True)
class SftExample:
    """A user message and the response to be learned."""

    prompt: str
    response: str


def train_sft(
    source: str | Path,
    examples: Sequence[SftExample],
    settings: TrainingSettings,
    model: ModelSettings,
    seed: int,
    work: Path,
    description: str,
    progress: ProgressReporter,
) -> TrainingRun:
    """Fine-tune a model with TRL's SFTTrainer.

    Args:
        source: Model to start from.
        examples: Training data.
        settings: Method, learning rate, batch, ...
        model: How models are loaded.
        seed: Of data order and adapter initialisation.
        work: Folder for resumable checkpoints; a later call with the same one continues.
        description: Shown with the progress.
        progress: Where progress is shown.

    Raises:
        EmptyDataError: If there are no examples.
    """
    require_rows(examples, "examples", "check the data files")
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig

    from srlm_pipeline.training.trainers import TokenizedSFTTrainer

    set_seed(seed)
    loaded = load_for_training(source, settings, model)
    tokenizer = loaded.tokenizer
    tokenized = [tokenize_exchange(tokenizer, example.prompt, example.response) for example in examples]
    rows = [
        {"input_ids": prompt + reply, "completion_mask": [0] * len(prompt) + [1] * len(reply)}
        for prompt, reply in tokenized
    ]
    trainer = TokenizedSFTTrainer(
        model=loaded.model,
        args=SFTConfig(
            **trainer_arguments(settings, loaded, work, seed),
            max_length=settings.max_length,
            completion_only_loss=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=adapter_config(settings, loaded.model),
    )
    history = run_trainer(trainer, work, description, progress)
    return TrainingRun(finish(trainer, source, settings, model, tokenizer, work), history, len(rows))
