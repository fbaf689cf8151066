"""A trainer's optimiser steps divided among processes, so that their sum is what one process would have computed.

Accelerate deals out micro-batches one by one, and repeats examples where a round does not come out even. Here a step is
made of the very micro-batches that one process would make it of. Only an epoch's last step may hold fewer than there
are places: what is left over there is computed on an example of which nothing counts, neither for the gradient nor in
the figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import BatchSampler, DataLoader, Sampler

from srlm_pipeline.training.ranks import n_ranks, rank

# Not learned, in labels.
_IGNORED = -100
# Of a trainer's figures those that add up from its beginning.
_TOTALS = {"num_tokens"}


class Rounds(BatchSampler):
    """The micro-batches of an epoch, as one process makes them, filled up to whole rounds of all processes.

    Args:
        sampler: The examples' order.
        micro_batch_size: Examples per forward pass.
        n_places: Processes, each of which takes every `n_places`-th micro-batch.
    """

    # Micro-batches differ in size.
    batch_size = None
    drop_last = False

    def __init__(self, sampler: Sampler[int], micro_batch_size: int, n_places: int) -> None:
        self.sampler, self._size, self._n_places = sampler, micro_batch_size, n_places

    def __len__(self) -> int:
        real = -(-len(self.sampler) // self._size)
        return -(-real // self._n_places) * self._n_places

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        batches = [order[start : start + self._size] for start in range(0, len(order), self._size)]
        yield from batches
        for _ in range(len(self) - len(batches)):
            yield order[:1]


@dataclass(frozen=True)
class Place:
    """A micro-batch's place in a step.

    Attributes:
        counts: Whether it is one of those that one process would compute.
        divisor: Its loss is divided by this, as the trainer divides by how often gradients are added up.
        weight: Of its round's figures, which the trainer averages over rounds as if all were alike.
        even: Whether all of its round count, and are of one size.
    """

    counts: bool
    divisor: float
    weight: float = 1.0
    even: bool = True


def places(n_examples: int, micro_batch_size: int, n_rounds: int, n_places: int, own: int) -> list[Place]:
    """Return the places of one process's micro-batches in a step.

    Args:
        n_examples: Of the step.
        micro_batch_size: Examples per forward pass.
        n_rounds: Micro-batches of each process.
        n_places: Processes.
        own: Number of this one.
    """
    n_real = -(-n_examples // micro_batch_size)
    found = []
    for number in range(n_rounds):
        n_counting = min(n_places, n_real - number * n_places)
        counts = own < n_counting
        # Gradients are averaged over processes: together, each loss is divided by the number of micro-batches.
        divisor = n_real / n_places if counts else math.inf
        even = (number + 1) * n_places * micro_batch_size <= n_examples
        found.append(Place(counts, divisor, n_counting * n_rounds / n_real, even))
    return found


class DividedSteps:
    """Divides a trainer's steps among processes; a training by one process goes its usual way."""

    args: Any
    accelerator: Any
    data_collator: Any
    state: Any
    train_dataset: Any
    current_gradient_accumulation_steps: float
    # Of this process's micro-batches in the step at hand.
    _places: Iterator[Place]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return this process's share of the micro-batches."""
        if n_ranks() == 1:
            whole: DataLoader[Any] = super().get_train_dataloader()  # type: ignore[misc]
            return whole
        dataset, collate = self.train_dataset, self.data_collator
        if isinstance(dataset, Dataset):
            dataset = self._remove_unused_columns(dataset, "training")  # type: ignore[attr-defined]
        rounds = Rounds(self._get_train_sampler(), self.args.per_device_train_batch_size, n_ranks())  # type: ignore[attr-defined]
        loader = DataLoader(
            dataset, batch_sampler=rounds, collate_fn=collate, pin_memory=self.args.dataloader_pin_memory
        )
        # Accelerate puts a sampler of its own in the place of a random one, the same in all processes.
        self.accelerator.dataloader_config.even_batches = False
        divided: DataLoader[Any] = self.accelerator.prepare_data_loader(loader)
        # Where a training goes on in the middle of an epoch, the epoch's number reaches the sampler only from here.
        divided.set_sampler(divided.batch_sampler.batch_sampler.sampler)
        return divided

    def _get_num_items_in_batch(self, batch_samples: list[Any], *more: Any) -> Any:
        if n_ranks() > 1:
            own = self._places_of_step(len(batch_samples))
            batch_samples = [_learned(batch, place) for batch, place in zip(batch_samples, own, strict=True)]
            self._places = iter(own)
        return super()._get_num_items_in_batch(batch_samples, *more)  # type: ignore[misc]

    def _places_of_step(self, n_rounds: int) -> list[Place]:
        size, n_examples = self.args.per_device_train_batch_size, len(self.train_dataset)
        per_step = size * n_ranks() * self.args.gradient_accumulation_steps
        step = self.state.global_step % -(-n_examples // per_step)
        return places(min(per_step, n_examples - step * per_step), size, n_rounds, n_ranks(), rank())

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Compute a micro-batch, and let it weigh as much as one process would let it."""
        if n_ranks() == 1:
            alone: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
            return alone
        place = next(self._places)
        self.current_gradient_accumulation_steps = place.divisor
        # A loss is divided by either of the two.
        items = math.inf if num_items_in_batch is not None and not place.counts else num_items_in_batch
        with nullcontext() if place.even else uneven_figures(self.accelerator, place.counts):
            loss: torch.Tensor = super().training_step(model, inputs, items)  # type: ignore[misc]
        for name, values in getattr(self, "_metrics", {}).get("train", {}).items():
            if name not in _TOTALS:
                values[-1] *= place.weight
        return loss


def _learned(batch: Any, place: Place) -> Any:
    """Return of a micro-batch what tells how much is learned from it."""
    if place.counts or "labels" not in batch:
        return batch
    return {**batch, "labels": torch.full_like(batch["labels"], _IGNORED)}


def as_model(network: Any) -> Any:
    """Return what is called as the trainer's network is, and is the model in everything else that is asked of it."""
    return _AsModel(network) if isinstance(network, torch.nn.parallel.DistributedDataParallel) else network


class _AsModel:
    """Gradients of what is called here are shared with the other processes; the model's own call would share none."""

    def __init__(self, network: torch.nn.parallel.DistributedDataParallel) -> None:
        self._network = network

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        return self._network(*arguments, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network.module, name)


@contextmanager
def uneven_figures(accelerator: Any, counts: bool) -> Iterator[None]:
    """Gather figures of micro-batches of different sizes, of those that count, each of which weighs the same.

    Args:
        accelerator: Whose `gather` and `gather_for_metrics` take figures of one shape otherwise.
        counts: Whether this process's micro-batch does.
    """
    from accelerate.utils import gather_object

    def gather(figures: torch.Tensor) -> torch.Tensor:
        parts = gather_object([figures.detach().cpu() if counts else None])
        kept = [part.reshape(1) if part.dim() == 0 else part for part in parts if part is not None]
        rows = math.lcm(*map(len, kept))
        return torch.cat([part.repeat_interleave(rows // len(part), 0) for part in kept]).to(figures.device)

    usual: tuple[Callable[..., Any], ...] = accelerator.gather, accelerator.gather_for_metrics
    accelerator.gather = accelerator.gather_for_metrics = gather
    try:
        yield
    finally:
        accelerator.gather, accelerator.gather_for_metrics = usual
