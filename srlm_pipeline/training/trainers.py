"""The trainers behind `sft` and `dpo`; a module of its own because its base classes make importing it expensive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from trl import DPOTrainer, SFTTrainer


class LengthSortedSampler(Sampler[int]):
    """Random order in which the examples of one optimiser step stand sorted by length.

    The micro-batches that a step is made of are then padded little, while every step sees the examples that it would
    have seen anyway: unlike grouping by length over the whole data, this changes no gradient.

    Args:
        lengths: Of the examples, in tokens.
        batch_size: Examples per optimiser step.
        seed: Of the order; every epoch has its own.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        for start in range(0, len(order), self._batch_size):
            yield from sorted(order[start : start + self._batch_size], key=lambda i: -self._lengths[i])

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; a resumed training asks for the one that it left."""
        self._epoch = epoch


class _LengthSorted:
    """Draws a trainer's examples through `LengthSortedSampler`."""

    args: Any
    train_dataset: Dataset

    def _get_train_sampler(self, *_: Any) -> Sampler[int]:
        lengths = [sum(len(ids) for ids in row.values() if isinstance(ids, list)) for row in self.train_dataset]
        per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthSortedSampler(lengths, per_step, self.args.data_seed or self.args.seed)


class TokenizedSFTTrainer(_LengthSorted, SFTTrainer):
    """TRL's SFTTrainer on rows of `input_ids` and `completion_mask`."""


class TokenizedDPOTrainer(_LengthSorted, DPOTrainer):
    """TRL's DPOTrainer on rows of `prompt_ids`, `chosen_ids` and `rejected_ids`.

    Given texts, TRL ends every reply with the end token, cut-off ones too, and lets the tokenizer put a second
    beginning-of-text token before the one of the chat template.

    Rows that have the reference's log-probabilities, as the `train_dataset` of a trainer of the reference model has,
    keep them.
    """

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *more: Any) -> Dataset:
        return dataset if "ref_chosen_logps" in dataset.column_names else super()._precompute_ref_logps(dataset, *more)
