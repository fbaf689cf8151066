"""Direct Preference Optimization on best/worst pairs, M_t as reference (paper section 2.4)."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from srlm_pipeline.config import DpoSettings
from srlm_pipeline.data.chat import end_token, tokenize_exchange, without_thought
from srlm_pipeline.models.checkpoint import Checkpoint, save_checkpoint
from srlm_pipeline.models.loading import load_model, load_tokenizer
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
from srlm_pipeline.training.early_stopping import EarlyStopping
from srlm_pipeline.training.fitting import fits_memory
from srlm_pipeline.training.kl_budget import budget_callback
from srlm_pipeline.training.ranks import decided, is_first

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase
    from trl import DPOTrainer


@dataclass(frozen=True)
class PreferenceExample:
    """A user message with a better and a worse reply.

    Attributes:
        prompt: The user message.
        chosen: The better reply.
        rejected: The worse reply.
        chosen_ended: Whether the better reply came to its end; one that the token limit cut off gets no end token,
            or the model would learn to stop in the middle.
        rejected_ended: The same of the worse reply.
        chosen_ids: The tokens that the policy drew for the better reply, without the end token; None: not known.
        rejected_ids: The same of the worse reply.
    """

    prompt: str
    chosen: str
    rejected: str
    chosen_ended: bool = True
    rejected_ended: bool = True
    chosen_ids: tuple[int, ...] | None = None
    rejected_ids: tuple[int, ...] | None = None


def preference_examples(pairs: pd.DataFrame) -> list[PreferenceExample]:
    """Return the pairs of table `PREFERENCE_PAIRS`."""
    return [
        PreferenceExample(
            row.prompt,
            row.chosen,
            row.rejected,
            row.chosen_finish_reason == "stop",
            row.rejected_finish_reason == "stop",
            *(_tokens(getattr(row, f"{side}_token_ids", None)) for side in ("chosen", "rejected")),
        )
        for row in pairs.itertuples()
    ]


def _tokens(written: str | None) -> tuple[int, ...] | None:
    return None if written is None or pd.isna(written) else tuple(json.loads(written))


@launchable()
@fits_memory
def train_dpo(
    job: TrainingJob,
    examples: Sequence[PreferenceExample],
    settings: DpoSettings,
    early_stopping: EarlyStopping | None = None,
    reference: str | Path | None = None,
) -> TrainingRun:
    """Train the policy `job.source` on preference pairs with TRL's DPOTrainer.

    The reference's log-probabilities are computed once before training, and before the policy is loaded if it is
    another model: two are never in memory together.

    Args:
        job: Its source is M_t.
        examples: Preference pairs.
        settings: Method, learning rate, beta, loss, ...
        early_stopping: Looks at the policy's replies meanwhile.
        reference: Another model that reads text as the same tokens; None: M_t itself.

    Returns:
        The trained model; where early stopping ended the training, the model of the look before.

    Raises:
        EmptyDataError: If there are no pairs, or all prompts are too long.
    """
    require_rows(examples, "preference pairs", "every prompt was a tie or had too few scored candidates")
    from datasets import Dataset

    tokenizer = load_tokenizer(job.source, job.model)
    encoded = [encode_preference(tokenizer, example, settings.max_length) for example in examples]
    rows = [row for row in encoded if row is not None]
    require_rows(rows, "preference pairs", "all prompts are longer than dpo.max_length")
    end = end_token(tokenizer)
    n_cut = sum(
        (example.chosen_ended and row["chosen_ids"][-1:] != [end])
        or (example.rejected_ended and row["rejected_ids"][-1:] != [end])
        for example, row in zip(examples, encoded, strict=True)
        if row is not None
    )
    dataset = Dataset.from_list(rows)
    if reference is not None:
        # A trainer of the reference alone has computed them when it is built; nothing else of it is kept.
        dataset = _trainer(replace(job, source=reference), settings, dataset, adapted=False).train_dataset
        gc.collect()
    trainer = _trainer(job, settings, dataset)
    trainer.add_callback(budget_callback(settings.beta, settings.kl_budget))
    if early_stopping is not None:

        def export(folder: Path, step: int) -> Checkpoint:
            now = trained_model(job, settings, trainer, tokenizer)
            entering, dtype = early_stopping.entering, job.model.save_dtype
            name = f"{entering.name}-step-{step}"
            return decided(lambda: save_checkpoint(now, folder, name, entering.digest, {}, dtype))

        trainer.add_callback(early_stopping.callback(job.work / "looks", export))
    history = run_trainer(job, trainer)
    if early_stopping is not None:
        history += early_stopping.history
        if early_stopping.stopped_at is not None and is_first():
            on_cpu = job.model.model_copy(update={"device": "cpu"})
            best = load_model(early_stopping.best.path, on_cpu, dtype="float32")
            return TrainingRun(best, history, len(rows), len(encoded) - len(rows), n_cut)
    trained = trained_model(job, settings, trainer, tokenizer)
    return TrainingRun(trained, history, len(rows), len(encoded) - len(rows), n_cut)


def _trainer(job: TrainingJob, settings: DpoSettings, dataset: Dataset, adapted: bool = True) -> DPOTrainer:
    """Load a model and return its trainer; it asks the model for the reference's log-probabilities if none are known.

    Args:
        job: Its source is the model.
        settings: Of the training.
        dataset: Encoded pairs.
        adapted: Whether the model gets adapters, where the settings say so.
    """
    from trl import DPOConfig

    from srlm_pipeline.acceleration.log_probabilities import cheap_log_probabilities
    from srlm_pipeline.training.trainers import TokenizedDPOTrainer

    loaded = load_for_training(job, settings)
    with cheap_log_probabilities(loaded.model.device.type):
        return TokenizedDPOTrainer(
            model=loaded.model,
            args=DPOConfig(
                **trainer_arguments(job, settings, loaded),
                max_length=settings.max_length,
                beta=settings.beta,
                **_loss(settings),
                precompute_ref_log_probs=True,
                precompute_ref_batch_size=settings.micro_batches()[0] * 2,
            ),
            train_dataset=dataset,
            processing_class=loaded.tokenizer,
            peft_config=adapter_config(settings, loaded.model) if adapted else None,
        )


def _loss(settings: DpoSettings) -> dict[str, Any]:
    """Return TRL's arguments: DPO's loss, and where asked for the chosen reply's likelihood beside it (DPO + NLL)."""
    weights: dict[str, float] = {settings.loss: 1.0, **({"sft": settings.nll_weight} if settings.nll_weight else {})}
    return {
        "loss_type": list(weights),
        "loss_weights": list(weights.values()),
        "label_smoothing": settings.label_smoothing,
    }


def encode_preference(
    tokenizer: PreTrainedTokenizerBase, example: PreferenceExample, max_length: int
) -> dict[str, list[int]] | None:
    """Return the token ids of prompt, chosen and rejected reply; None where the prompt leaves no room for a reply.

    Args:
        tokenizer: The policy's.
        example: The pair.
        max_length: Of prompt and reply together; replies are cut to it.
    """
    sides = (
        (example.chosen, example.chosen_ended, example.chosen_ids),
        (example.rejected, example.rejected_ended, example.rejected_ids),
    )
    (prompt, chosen), (others_prompt, rejected) = (tokenize_exchange(tokenizer, example.prompt, *s) for s in sides)
    if prompt != others_prompt:
        # One of them has a thought, or the tokens that were drawn, and the other has not: both are learned without.
        (prompt, chosen), (_, rejected) = (
            tokenize_exchange(tokenizer, example.prompt, without_thought(tokenizer, reply), ended)
            for reply, ended, _ in sides
        )
    room = max_length - len(prompt)
    return {"prompt_ids": prompt, "chosen_ids": chosen[:room], "rejected_ids": rejected[:room]} if room > 0 else None
