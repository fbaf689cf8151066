"""The Trainer behind `ranking`; a module of its own because its base class makes importing it expensive."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Trainer

from srlm_pipeline.generation.transformers_engine import last_position_only
from srlm_pipeline.training.ranking import EncodedItem

# Unit-scale differences of expected scores would leave the logistic loss almost flat over the 0..5 range.
_SHARPNESS = 2.0


class RankingTrainer(Trainer):
    """Trains next-token choices of whole groups.

    Args:
        pad_token_id: For left padding.
        kwargs: Of `transformers.Trainer`.
    """

    def __init__(self, *, pad_token_id: int, **kwargs: Any) -> None:
        super().__init__(data_collator=lambda items: {"items": items}, **kwargs)
        self._pad_token_id = pad_token_id
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> torch.Tensor:
        """Return the mean loss over the items of a batch."""
        items: list[EncodedItem] = inputs["items"]
        sequences = [sequence for item in items for sequence in item.sequences]
        width = max(map(len, sequences))
        device = next(model.parameters()).device
        ids = torch.tensor([[self._pad_token_id] * (width - len(s)) + s for s in sequences], device=device)
        mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences], device=device)
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            logits_to_keep=last_position_only(device),
            use_cache=False,
        ).logits[:, -1]
        losses: list[torch.Tensor] = []
        start = 0
        for item in items:
            rows = logits[start : start + len(item.sequences)].float()
            start += len(item.sequences)
            losses.append(item_loss(rows, item))
        return torch.stack(losses).mean()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the base class cannot read these batches."""
        return 0


def item_loss(logits: torch.Tensor, item: EncodedItem) -> torch.Tensor:
    """Return ranking loss plus cross-entropy for one item.

    Args:
        logits: Shape (sequences, vocabulary), float32.
        item: Options, ranks and targets of the same sequences.
    """
    options = torch.tensor(item.options, device=logits.device)
    # Over the whole vocabulary, so that probability is also drawn towards the options.
    log_probabilities = logits.log_softmax(-1).gather(-1, options)
    loss = logits.new_zeros(())
    with_target = [place for place, target in enumerate(item.targets) if target is not None]
    if with_target:
        targets = torch.tensor([item.targets[place] for place in with_target], device=logits.device)
        loss = loss - (targets * log_probabilities[with_target]).sum(-1).mean()
    if item.ranks:
        values = torch.arange(options.shape[-1], device=logits.device, dtype=logits.dtype)
        expected = log_probabilities.softmax(-1) @ values
        ranks = torch.tensor(item.ranks, device=logits.device)
        better = ranks[:, None] < ranks[None, :]
        if better.any():
            difference = expected[:, None] - expected[None, :]
            loss = loss + nn.functional.softplus(-_SHARPNESS * difference[better]).mean()
    return loss
