"""The trainers behind `sft`, `dpo` and `reward_model`; their base classes make importing this module expensive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device
from datasets import Dataset
from torch.utils.data import Sampler
from trl import DPOTrainer, RewardTrainer, SFTTrainer

from srlm_pipeline.training.divided import DividedSteps
from srlm_pipeline.training.ranks import n_ranks, rank


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
        per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * n_ranks()
        return LengthSortedSampler(lengths, per_step, self.args.data_seed or self.args.seed)


class TokenizedSFTTrainer(_LengthSorted, DividedSteps, SFTTrainer):
    """TRL's SFTTrainer on rows of `input_ids` and `completion_mask`."""


class TokenizedDPOTrainer(_LengthSorted, DividedSteps, DPOTrainer):
    """TRL's DPOTrainer on rows of `prompt_ids`, `chosen_ids` and `rejected_ids`.

    Given texts, TRL ends every reply with the end token, cut-off ones too, and lets the tokenizer put a second
    beginning-of-text token before the one of the chat template.

    Rows that have the reference's log-probabilities, as the `train_dataset` of a trainer of the reference model has,
    keep them.
    """

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        if "ref_chosen_logps" in dataset.column_names:
            return dataset
        if n_ranks() == 1:
            return super()._precompute_ref_logps(dataset, name, batch_size)
        # TRL hands them on in a file of a folder that every process has for itself.
        starts = range(0, len(dataset), batch_size)
        own: list[tuple[int, list[float], list[float]]] = []
        for start in starts[rank() :: n_ranks()]:
            rows = [dataset[place] for place in range(start, min(start + batch_size, len(dataset)))]
            batch = send_to_device(self.data_collator(rows), self.accelerator.device)
            chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, batch)
            own.append((start, chosen.tolist(), rejected.tolist()))
        found = sorted(gather_object(own))
        for column, place in (("ref_chosen_logps", 1), ("ref_rejected_logps", 2)):
            dataset = dataset.add_column(column, [value for part in found for value in part[place]])
        return dataset


class DividedRewardTrainer(DividedSteps, RewardTrainer):
    """TRL's RewardTrainer, whose steps several processes can share."""
