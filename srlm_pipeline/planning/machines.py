"""What a model needs and what GPUs can do: memory by formula, speed from stated figures (a roofline).

Dense bfloat16 TFLOP/s with float32 accumulation, memory and its bandwidth, from NVIDIA's data sheets:

- H200 SXM: "NVIDIA H200 Tensor Core GPU" (1,979 with sparsity, so 989; 141 GB; 4.8 TB/s)
- H100 SXM: "NVIDIA H100 Tensor Core GPU" (1,979 with sparsity, so 989; 80 GB; 3.35 TB/s)
- A100 SXM 80 GB: "NVIDIA A100 Tensor Core GPU" (312; 80 GB; 2,039 GB/s)
- L40S: "NVIDIA L40S" (362; 48 GB; 864 GB/s)
- RTX 4090: "NVIDIA Ada GPU Architecture", appendix A (165.2; 24 GB; 1,008 GB/s)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from srlm_pipeline.config import EngineSettings, Settings, TrainingSettings
from srlm_pipeline.errors import SrlmError
from srlm_pipeline.planning.plan import BYTES, Basis, Memory
from srlm_pipeline.planning.workload import Kind

# Requests that a server works on at a time, unless `engine.concurrency` says otherwise.
_IN_FLIGHT = {"vllm": 256, "openai": 16}
# Of the memory on the label, what is left beside driver, context and fragmentation.
_USABLE = 0.92
# Of a device's speed, what a further one adds.
_SCALING = 0.85
# Shares of the stated figures that are likely to be reached: of the operations in reading and in training (recomputed
# ones counted), of the bandwidth in writing. All of them may be so much better or worse at once.
_READING, _TRAINING, _WRITING = 0.40, 0.30, 0.6
_FASTER, _SLOWER = 0.7, 1.6
# Seconds per layer and new token that the host needs to launch the work; vLLM records a step once and replays it.
_LAUNCHING = {"transformers": 0.6e-3, "vllm": 4e-5}
_DISK = 1e9
# Bytes that libraries and their kernels hold beside any model.
_LIBRARIES = 2**30


@dataclass(frozen=True)
class Gpu:
    """Figures of one device.

    Attributes:
        name: For people.
        tflops: Dense bfloat16, in 1e12 operations a second.
        memory: In GiB.
        bandwidth: Of the memory, in 1e9 bytes a second.
    """

    name: str
    tflops: float
    memory: float
    bandwidth: float


GPUS = {
    "h200": Gpu("NVIDIA H200", 989, 141, 4800),
    "h100": Gpu("NVIDIA H100 SXM", 989, 80, 3350),
    "a100": Gpu("NVIDIA A100 80 GB SXM", 312, 80, 2039),
    "l40s": Gpu("NVIDIA L40S", 362, 48, 864),
    "rtx4090": Gpu("NVIDIA RTX 4090", 165.2, 24, 1008),
}


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


def find_gpu(name: str) -> Gpu:
    """Return a GPU by its short name.

    Raises:
        SrlmError: Naming those that are known.
    """
    found = GPUS.get(re.sub(r"[^a-z0-9]", "", name.lower()))
    if found is None:
        raise SrlmError(f"no figures are known of the device {name!r}; known: {', '.join(GPUS)}")
    return found


def parse_size(text: str) -> int:
    """Turn ``8B``, ``1.5b`` or ``135M`` into a number of parameters.

    Raises:
        SrlmError: If it is not of that form.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([mb])\s*", text.lower())
    size = round(float(found[1]) * {"m": 1e6, "b": 1e9}[found[2]]) if found else 0
    if not size:
        raise SrlmError(f"{text!r} is no model size: write it as 8B or 135M")
    return size


def shape_of_size(parameters: int) -> ModelShape:
    """Return the usual shape of a decoder of a size: 128 of width a layer, eight key heads of 128, 128,000 tokens."""
    layers = max(1, round((parameters / (12 * 128**2)) ** (1 / 3)))
    hidden = 128 * layers
    return ModelShape(parameters, layers, hidden, min(1024, hidden), 128_000)


def stated_basis(gpu: Gpu, n_gpus: int, shape: ModelShape, settings: Settings) -> Basis:
    """Return what one or several GPUs should be able to do with a model of this shape.

    Args:
        gpu: The device.
        n_gpus: How many of them share the work.
        shape: Of the model.
        settings: Methods, types, engine.
    """
    n, engine = shape.parameters, "vllm" if settings.engine.kind == "vllm" else "transformers"
    together = n_gpus * (_SCALING if n_gpus > 1 else 1.0)
    operations, bandwidth = gpu.tflops * 1e12 * together, gpu.bandwidth * 1e9 * together * _WRITING
    forward, loading, launching = 2 * n / (operations * _READING), 2 * n / _DISK, shape.layers * _LAUNCHING[engine]
    sft, ranking, dpo = (
        training_operations(stage, n) / (operations * _TRAINING) for stage in (settings.sft, settings.eft, settings.dpo)
    )
    notes = [
        f"{gpu.name} as stated by its maker: {gpu.tflops:g} dense bfloat16 TFLOP/s, {gpu.memory:g} GiB, "
        f"{gpu.bandwidth:g} GB/s; nothing was measured",
        f"reached of that: {_READING:.0%} of the operations in reading, {_TRAINING:.0%} in training, {_WRITING:.0%} of "
        f"the bandwidth in writing, where the host adds {1e3 * launching:.2g} ms a step "
        f"(range: {1 - _FASTER:.0%} faster to {_SLOWER - 1:.0%} slower)",
        f"a model of {shape.layers} layers of width {shape.hidden}, {shape.kv_bytes / 1024:.0f} KiB of keys and values "
        f"per token; engine: {engine}"
        + (" (vLLM, with --set engine=vllm, writes faster)" if settings.engine.kind == "auto" else ""),
    ]
    if n_gpus > 1:
        notes.append(
            f"{n_gpus} devices give {together:.1f} times the speed of one and share weights and optimiser states; "
            "this version itself works on one device"
        )
    return Basis(
        source="stated",
        machine=f"{n_gpus} x {gpu.name}" if n_gpus > 1 else gpu.name,
        parameters=n,
        seconds={
            "opened": loading + (60.0 if engine == "vllm" else 3.0),
            "read": forward,
            "step": 2 * n / bandwidth + launching,
            # A new token looks back on its prompt and about half of its reply.
            "drawn": forward + settings.candidates.max_new_tokens * shape.kv_bytes / bandwidth,
            "sft": sft,
            "ranking": ranking,
            "dpo": dpo,
            # Weights are read for training, read again in float32 for merging, written, and read for the digest.
            "trainer": 15.0 + 3 * loading + 2 * n * BYTES[settings.model.save_dtype] / _DISK,
        },
        faster=_FASTER,
        slower=_SLOWER,
        memory=memory_of_model(shape, settings, n_gpus),
        available=gpu.memory * _USABLE * 2**30,
        host_memory=host_memory(n),
        in_flight=requests_in_flight(settings.engine, settings.engine.kind),
        notes=tuple(notes),
    )


def requests_in_flight(engine: EngineSettings, kind: str) -> int | None:
    """Return how many requests a server works on at a time; None for the engine that works in batches."""
    usual = _IN_FLIGHT.get(kind)
    return (engine.concurrency or usual) if usual else None


def host_memory(parameters: int) -> float:
    """Return the bytes of the host's memory that merging and saving a model trained on a GPU takes."""
    return 4.0 * parameters + 3 * _LIBRARIES


def training_operations(settings: TrainingSettings, parameters: float) -> float:
    """Return the operations of training on one token, with gradient checkpointing.

    Two per parameter forward; two backward for the activations, in the layers that are adapted and those above, and
    two for the forward pass again; two more for the weights' own gradients if all are trained.
    """
    return parameters * (8.0 if settings.method == "full" else 2.0 + 4.0 * settings.lora.top_layers)


def memory_of_model(
    shape: ModelShape, settings: Settings, n_gpus: int = 1, checkpointing: bool = True, dtype: str = "bfloat16"
) -> dict[Kind, Memory]:
    """Return the bytes that each kind of work holds on one device.

    Args:
        shape: Of the model.
        settings: Methods of training.
        n_gpus: How many devices share weights and optimiser states.
        checkpointing: Whether activations are computed again for the backward pass; on a CPU they are kept.
        dtype: In which models read and write.
    """
    n, width = float(shape.parameters), BYTES[dtype]
    # One state a layer is kept and one layer is computed again with all of its own, or all layers keep theirs;
    # logits, their float32 copy and their gradient.
    layers = 2 * shape.layers + 50 if checkpointing else 50 * shape.layers
    activations = layers * shape.hidden + 10 * shape.vocabulary

    def training(chosen: TrainingSettings) -> Memory:
        # Weights, gradients and both moments, in float32 what is trained. Seven linear modules a layer, in and out
        # together about 23 times the hidden width.
        adapters = shape.layers * chosen.lora.top_layers * chosen.lora.rank * 23 * shape.hidden
        states = 16 * n if chosen.method == "full" else width * n + 16 * adapters
        return Memory(fixed=states / n_gpus + _LIBRARIES, per_token=activations)

    return {
        "engine": Memory(fixed=width * n / n_gpus + _LIBRARIES, per_token=width / 2 * shape.kv_bytes / n_gpus),
        "sft": training(settings.sft),
        "ranking": training(settings.eft),
        "dpo": training(settings.dpo),
    }


def remedies(settings: Settings, n_gpus: int) -> list[tuple[str, Settings, int]]:
    """Return changes that need less memory, the least painful first: in words, as settings, and as devices."""

    def changed(sections: tuple[str, ...], **fields: Any) -> Settings:
        update = {name: getattr(settings, name).model_copy(update=fields) for name in sections}
        return settings.model_copy(update=update)

    training, writing = ("sft", "eft", "dpo"), ("prompt_generation", "candidates", "judge", "evaluation")
    return [
        ("micro_batch_size: 1 in training", changed(training, micro_batch_size=1), n_gpus),
        ("batch_size: 8 in writing and judging", changed(writing, batch_size=8), n_gpus),
        ("method: lora in training", changed(training, method="lora"), n_gpus),
        ("method: lora and micro_batch_size: 1", changed(training, method="lora", micro_batch_size=1), n_gpus),
        *((f"{more} devices", settings, more) for more in (2, 4, 8, 16) if more > n_gpus),
    ]
