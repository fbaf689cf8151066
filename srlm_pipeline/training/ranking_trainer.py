"""The Trainer behind `ranking`; a module of its own because its base class makes importing it expensive."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from srlm_pipeline.generation.prefill import last_token_logits
from srlm_pipeline.training.divided import DividedSteps, as_model
from srlm_pipeline.training.ranking_items import EncodedItem, RankingWeights
from srlm_pipeline.training.retention import RetainedReply, divergence

# Unit-scale differences of expected scores would leave the logistic loss almost flat over the 0..5 range.
_SHARPNESS = 2.0
# In the trainer's log: nats per token by which the model has strayed at the replies that it is to keep.
STRAYED = "strayed"


class RankingTrainer(DividedSteps, Trainer):
    """Trains next-token choices of whole groups.

    Args:
        pad_token_id: For left padding.
        weights: Of the parts of the loss.
        retained: For each item of `train_dataset` replies at which the model is to go on as it was; empty: it may
            change at will.
        reference: The model as it was; None: the one that is trained, with its adapters off.
        kwargs: Of `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        pad_token_id: int,
        weights: RankingWeights,
        train_dataset: list[EncodedItem],
        retained: Sequence[Sequence[RetainedReply]] = (),
        reference: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        rows = list(zip_longest(train_dataset, retained, fillvalue=()))
        super().__init__(data_collator=lambda rows: {"rows": rows}, train_dataset=rows, **kwargs)
        self._pad_token_id, self._weights, self._reference = pad_token_id, weights, reference
        self._strayed: list[float] = []
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> torch.Tensor:
        """Return the mean loss over the items of a batch."""
        rows: list[tuple[EncodedItem, Sequence[RetainedReply]]] = inputs["rows"]
        model = as_model(model)
        # One item after the other: its sequences share most of their tokens, those of different items few.
        share = not self.args.gradient_checkpointing
        losses = [
            item_loss(last_token_logits(model, item.sequences, self._pad_token_id, share).float(), item, self._weights)
            for item, _ in rows
        ]
        loss = torch.stack(losses).mean()
        retained = [reply for _, replies in rows for reply in replies]
        if retained:
            strayed = divergence(model, self._reference, retained, self._pad_token_id)
            self._strayed.append(strayed.item())
            loss = loss + self._weights.retention * strayed
        return loss

    def log(self, logs: dict[str, float], *more: Any, **named: Any) -> None:
        """Log how far the model has strayed since the last time, beside the loss."""
        if self._strayed and "loss" in logs:
            logs[STRAYED] = sum(self._strayed) / len(self._strayed)
            self._strayed.clear()
        super().log(logs, *more, **named)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the base class cannot read these batches."""
        return 0


def item_loss(logits: torch.Tensor, item: EncodedItem, weights: RankingWeights) -> torch.Tensor:
    """Return ranking loss plus cross-entropy for one item.

    Args:
        logits: Shape (sequences, vocabulary), float32.
        item: Options, ranks, targets and lengths of the same sequences.
        weights: Of the parts of the loss.
    """
    options = torch.tensor(item.options, device=logits.device)
    # Over the whole vocabulary, so that probability is also drawn towards the options.
    log_probabilities = logits.log_softmax(-1).gather(-1, options)
    loss = logits.new_zeros(())
    with_target = [place for place, target in enumerate(item.targets) if target is not None]
    if with_target:
        targets = torch.tensor([item.targets[place] for place in with_target], device=logits.device)
        # Of a comparison the target is all there is to learn.
        weight = weights.score if item.ranks else 1.0
        loss = loss - weight * (targets * log_probabilities[with_target]).sum(-1).mean()
    if item.ranks:
        values = torch.arange(options.shape[-1], device=logits.device, dtype=logits.dtype)
        expected = log_probabilities.softmax(-1) @ values
        ranks = torch.tensor(item.ranks, device=logits.device)
        better = ranks[:, None] < ranks[None, :]
        if better.any():
            difference = expected[:, None] - expected[None, :]
            lengths = torch.tensor(item.lengths, device=logits.device)
            longer = lengths[:, None] > lengths[None, :]
            of_pairs = torch.where(longer, weights.better_longer, weights.better_shorter)[better]
            loss = loss + (of_pairs * nn.functional.softplus(-_SHARPNESS * difference[better])).mean()
    return loss
