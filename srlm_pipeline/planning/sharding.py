"""What a training holds on each device, alone or with others: weights, gradients, moments, activations.

Bytes per parameter in mixed precision are those of Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054), section 3.1, less
the half-precision copies, which autocast makes layer by layer: 4 for a trained weight, 4 for its gradient, 8 for the
two moments of Adam. Moments in 8 bits take 2 (Dettmers et al. 2022, arXiv 2110.02861), frozen weights in 4 bits 4.127
bits each (Dettmers et al. 2023, arXiv 2305.14314, section 3). Activations follow Korthikanti et al. 2022 (arXiv
2205.05198), equation 2, without the attention matrix, which fused attention never writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from srlm_pipeline.config import TrainingSettings

Strategy = Literal["one", "ddp", "fsdp2"]
"""One device; every device with all of it (`DistributedDataParallel`); or each with a share (`fully_shard`)."""

# Bytes that libraries and their kernels hold beside any model.
LIBRARIES = 2**30
# Bytes of a parameter in half precision, and in 4 bits with its scales.
_HALF, _FOUR_BITS = 2, 4.127 / 8
# Bytes that a layer keeps per token and element of its width: 34 in a layer of Korthikanti et al., and those of the
# gate that today's layers have beside it. Of a layer that is computed again its input is kept.
_KEPT, _INPUT = 50, 2
# The logits in half precision, in float32, and their gradient.
_LOGITS = 10


@dataclass(frozen=True)
class ModelShape:
    """What of a model decides its costs.

    Attributes:
        parameters: All of them.
        layers: Decoder layers.
        hidden: Width of the residual stream.
        kv_width: Key heads times their size.
        vocabulary: Tokens.
    """

    parameters: int
    layers: int
    hidden: int
    kv_width: int
    vocabulary: int

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token's keys and values in bfloat16."""
        return 2 * self.layers * self.kv_width * 2


@dataclass(frozen=True)
class RankMemory:
    """Bytes that a training holds on one device.

    Attributes:
        weights: Trained and frozen ones, its share of them.
        gradients: And the copy in which they are exchanged.
        moments: Of the optimiser.
        gathered: Whole layers that are put together for a moment where each device has a share.
        per_token: Activations, per token of a forward pass.
    """

    weights: float
    gradients: float
    moments: float
    gathered: float
    per_token: float

    @property
    def fixed(self) -> float:
        """Bytes that are there however few tokens are read."""
        return self.weights + self.gradients + self.moments + self.gathered + LIBRARIES

    def total(self, tokens: float) -> float:
        """Return the bytes with so many tokens in a forward pass."""
        return self.fixed + self.per_token * tokens


def adapter_parameters(shape: ModelShape, settings: TrainingSettings) -> float:
    """Return the elements of the adapters: seven linear modules a layer, in and out about 23 times the width."""
    return shape.layers * settings.lora.top_layers * settings.lora.rank * 23 * shape.hidden


def rank_memory(
    shape: ModelShape,
    settings: TrainingSettings,
    strategy: Strategy = "one",
    ranks: int = 1,
    checkpointing: bool = True,
    width: int = _HALF,
) -> RankMemory:
    """Return what each of several devices holds.

    Args:
        shape: Of the model.
        settings: Method and optimiser.
        strategy: How they work together.
        ranks: How many they are.
        checkpointing: Whether activations are computed again for the backward pass.
        width: Bytes of a frozen weight, unless `settings.method` puts it into 4 bits.
    """
    n = float(shape.parameters)
    full = settings.method == "full"
    trained = n if full else adapter_parameters(shape, settings)
    frozen = 0.0 if full else width * n
    if settings.method == "qlora":
        frozen = _FOUR_BITS * n + _HALF * 2 * shape.vocabulary * shape.hidden
    weights, gradients = 4 * trained + frozen, 4 * trained
    moments, gathered = (8 if settings.optimizer == "adamw" else 2) * trained, 0.0
    if strategy == "ddp":
        # Buckets: gradients are reduced in a copy.
        gradients *= 2
    if strategy == "fsdp2":
        # The layer at work and the next one, embeddings and head, and one layer's gradients before they are shared.
        gathered = 2 * _HALF * n / shape.layers + _HALF * 2 * shape.vocabulary * shape.hidden
        gathered += 4 * n / shape.layers if full else 0.0
        weights, gradients, moments = weights / ranks, gradients / ranks, moments / ranks
    layers = _INPUT * shape.layers + _KEPT if checkpointing else _KEPT * shape.layers
    return RankMemory(weights, gradients, moments, gathered, layers * shape.hidden + _LOGITS * shape.vocabulary)


def training_ranks(settings: TrainingSettings, devices: int) -> int:
    """Return how many devices can share an optimiser step: each takes as many of its examples as the others."""
    return max(n for n in range(1, min(devices, settings.batch_size) + 1) if settings.batch_size % n == 0)


def choose_strategy(
    shape: ModelShape, settings: TrainingSettings, devices: int, available: float
) -> tuple[Strategy, int]:
    """Return the strategy to take, and on how many devices: the plainest that fits.

    DDP sends the least and shares nothing; FSDP2 is for full weights that do not fit a device. Adapters are trained by
    DDP alone (`training.launcher`), so that the frozen weights have to fit.

    Args:
        shape: Of the model.
        settings: Of the training.
        devices: How many there are.
        available: Bytes on each.
    """
    ranks = training_ranks(settings, devices)
    if ranks == 1:
        return "one", 1
    if settings.keeps_weights:
        return "ddp", ranks
    tokens = settings.micro_batches()[-1] * settings.max_length
    fits = rank_memory(shape, settings, "ddp", ranks, settings.gradient_checkpointing is not False).total(tokens)
    return ("ddp", ranks) if fits <= available else ("fsdp2", ranks)


def sent_bytes(shape: ModelShape, settings: TrainingSettings, strategy: Strategy, ranks: int) -> float:
    """Return the bytes that each device sends: with DDP per optimiser step, with FSDP2 per forward and backward pass.

    An all-reduce sends every gradient twice, a gathering or a reduction once (ZeRO, section 7.1): FSDP2 gathers all
    weights in half precision forward and backward, and reduces the gradients of those that are trained in float32.
    """
    trained = shape.parameters if settings.method == "full" else adapter_parameters(shape, settings)
    others = (ranks - 1) / ranks
    if strategy == "ddp":
        return 2 * 4 * trained * others
    if strategy == "fsdp2":
        return (2 * _HALF * shape.parameters + 4 * trained) * others
    return 0.0


def writing_devices(shape: ModelShape, devices: int, available: float) -> int:
    """Return how many devices hold one copy of a model that writes: the fewest that do, each a slice of every layer.

    Two fifths of the memory are left to the keys and values of many replies at a time.
    """
    together = 1
    while together < devices and _HALF * shape.parameters / together + LIBRARIES > 0.6 * available:
        together *= 2
    return min(together, devices)
