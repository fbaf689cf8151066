"""Supervised fine-tuning on prompts and responses, loss on the response only (paper section 3.1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from srlm_pipeline.config import SftSettings
from srlm_pipeline.data.chat import end_token, tokenize_exchange
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class SftExample:
    """A user message and the response to be learned.

    Attributes:
        prompt: The message.
        response: The response.
        whole: Whether a part of the response is worth nothing, as a judgement is without its last line, the score.
    """

    prompt: str
    response: str
    whole: bool = False


@launchable()
@fits_memory
def train_sft(job: TrainingJob, examples: Sequence[SftExample], settings: SftSettings) -> TrainingRun:
    """Fine-tune a model with TRL's SFTTrainer.

    Raises:
        EmptyDataError: If there are no examples, or none that fits.
    """
    require_rows(examples, "examples", "check the data files")
    from datasets import Dataset
    from trl import SFTConfig

    from srlm_pipeline.training.trainers import TokenizedSFTTrainer

    loaded = load_for_training(job, settings)
    tokenizer = loaded.tokenizer
    encoded = [encode_example(tokenizer, example, settings.max_length) for example in examples]
    rows = [row for row in encoded if row is not None]
    require_rows(rows, "examples", f"none fits into sft.max_length ({settings.max_length} tokens)")
    end = end_token(tokenizer)
    n_cut = sum(row["input_ids"][-1] != end for row in rows)
    trainer = TokenizedSFTTrainer(
        model=loaded.model,
        args=SFTConfig(
            **trainer_arguments(job, settings, loaded),
            max_length=settings.max_length,
            completion_only_loss=True,
            packing=settings.packing,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=adapter_config(settings, loaded.model),
    )
    history = run_trainer(job, trainer)
    trained = trained_model(job, settings, trainer, tokenizer)
    return TrainingRun(trained, history, len(rows), len(encoded) - len(rows), n_cut)


def encode_example(
    tokenizer: PreTrainedTokenizerBase, example: SftExample, max_length: int
) -> dict[str, list[int]] | None:
    """Return an example's token ids, and which of them are learned; None where nothing of worth would be left.

    Args:
        tokenizer: The model's.
        example: What is to be learned.
        max_length: Of prompt and response together. A longer response is cut, and has no end token then; one that is
            worth something as a whole alone is left out.
    """
    prompt, reply = tokenize_exchange(tokenizer, example.prompt, example.response)
    room = max_length - len(prompt)
    if room < (len(reply) if example.whole else 1):
        return None
    learned = reply[:room]
    return {"input_ids": prompt + learned, "completion_mask": [0] * len(prompt) + [1] * len(learned)}
