"""What a model needs and what GPUs can do: memory by formula, speed from stated figures (a roofline).

Dense bfloat16 TFLOP/s with float32 accumulation, memory and its bandwidth, and the link to other devices in both
directions together, from NVIDIA's data sheets:

- H200 SXM: "NVIDIA H200 Tensor Core GPU" (1,979 with sparsity, so 989; 141 GB; 4.8 TB/s; NVLink 900 GB/s)
- H100 SXM: "NVIDIA H100 Tensor Core GPU" (1,979 with sparsity, so 989; 80 GB; 3.35 TB/s; NVLink 900 GB/s)
- A100 SXM 80 GB: "NVIDIA A100 Tensor Core GPU" (312; 80 GB; 2,039 GB/s; NVLink 600 GB/s)
- L40S: "NVIDIA L40S" (362; 48 GB; 864 GB/s; PCIe 64 GB/s)
- RTX 4090: "NVIDIA Ada GPU Architecture", appendix A (165.2; 24 GB; 1,008 GB/s; PCIe 64 GB/s)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from srlm_pipeline.config import EngineSettings, Settings, TrainingSettings
from srlm_pipeline.errors import SrlmError
from srlm_pipeline.planning.plan import BYTES, Basis, Memory, RankPlan
from srlm_pipeline.planning.sharding import (
    LIBRARIES,
    ModelShape,
    Strategy,
    choose_strategy,
    rank_memory,
    sent_bytes,
    training_ranks,
    writing_devices,
)
from srlm_pipeline.planning.workload import PASSES, Kind, Trainer, Unit

# Requests that a server works on at a time, unless `engine.concurrency` says otherwise.
_IN_FLIGHT = {"vllm": 256, "openai": 16}
# Of the memory on the label, what is left beside driver, context and fragmentation.
_USABLE = 0.92
# Of a device's speed, what a further one adds.
_SCALING = 0.85
# Shares of the stated figures that are likely to be reached: of the operations in reading and in training (recomputed
# ones counted), of the bandwidth in writing. All of them may be so much better or worse at once.
_READING, _TRAINING, _WRITING = 0.40, 0.40, 0.6
_FASTER, _SLOWER = 0.7, 1.6
# Seconds per layer and new token that the host needs to launch the work; vLLM records a step once and replays it.
_LAUNCHING = {"transformers": 0.6e-3, "vllm": 4e-5}
_DISK = 1e9
# Devices of a node, and what enters it from others, in 1e9 bytes a second: eight adapters of 400 Gbit/s, as in NVIDIA's
# DGX H100; a ring through all devices enters each node once. Of a stated link so much is reached.
_PER_NODE, _NETWORK, _LINKS = 8, 400.0, 0.7
_MOST_DEVICES = 4096
_SHARED: tuple[Strategy, ...] = ("ddp", "fsdp2")


@dataclass(frozen=True)
class Gpu:
    """Figures of one device.

    Attributes:
        name: For people.
        tflops: Dense bfloat16, in 1e12 operations a second.
        memory: In GiB.
        bandwidth: Of the memory, in 1e9 bytes a second.
        link: To the other devices of a node, in 1e9 bytes a second and direction.
    """

    name: str
    tflops: float
    memory: float
    bandwidth: float
    link: float


GPUS = {
    "h200": Gpu("NVIDIA H200", 989, 141, 4800, 450),
    "h100": Gpu("NVIDIA H100 SXM", 989, 80, 3350, 450),
    "a100": Gpu("NVIDIA A100 80 GB SXM", 312, 80, 2039, 300),
    "l40s": Gpu("NVIDIA L40S", 362, 48, 864, 32),
    "rtx4090": Gpu("NVIDIA RTX 4090", 165.2, 24, 1008, 32),
}


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


def parse_devices(text: str) -> tuple[str, int]:
    """Split ``8 x H100`` into the name and the number, which is 1 where none is given.

    Raises:
        SrlmError: If the number is none to plan with.
    """
    found = re.fullmatch(r"\s*(?:(\d+)\s*[x\u00d7*]\s*)?(\S.*?)\s*", text, re.IGNORECASE)
    number = int(found[1] or 1) if found else 0
    if not found or not 1 <= number <= _MOST_DEVICES:
        raise SrlmError(f"{text!r} names no devices: write it as h100, or as '8 x h100' for several")
    return found[2], number


def stated_basis(gpu: Gpu, n_gpus: int, shape: ModelShape, settings: Settings) -> Basis:
    """Return what one or several GPUs should be able to do with a model of this shape.

    Reading and writing: every copy of the model works by itself. Training: the devices share an optimiser step, and
    send each other weights or gradients meanwhile.

    Args:
        gpu: The device.
        n_gpus: How many of them share the work.
        shape: Of the model.
        settings: Methods, types, engine.
    """
    n, available = shape.parameters, gpu.memory * _USABLE * 2**30
    kind = settings.engine.kind
    engine = engine_for(kind, n_gpus)
    together = writing_devices(shape, n_gpus, available) if engine == "vllm" else 1
    copies = n_gpus // together if engine == "vllm" else 1
    speed = together * copies * (_SCALING if together * copies > 1 else 1.0)
    operations, bandwidth = gpu.tflops * 1e12 * speed, gpu.bandwidth * 1e9 * speed * _WRITING
    forward, loading, launching = 2 * n / (operations * _READING), 2 * n / _DISK, shape.layers * _LAUNCHING[engine]
    seconds: dict[Unit, float] = {
        "opened": loading + (60.0 if engine == "vllm" else 3.0),
        "read": forward,
        "step": 2 * n / bandwidth + launching / copies,
        # A new token looks back on its prompt and about half of its reply.
        "drawn": forward + settings.candidates.max_new_tokens * shape.kv_bytes / bandwidth,
        # Weights are read for training, read again in float32 for merging, written, and read for the digest.
        "trainer": 15.0 + 3 * loading + 2 * n * BYTES[settings.model.save_dtype] / _DISK,
    }
    placed: dict[Trainer, tuple[Strategy, int]] = {}
    for trainer, chosen in trainers(settings).items():
        strategy, ranks = placed[trainer] = choose_strategy(shape, chosen, n_gpus, available)
        reached = gpu.tflops * 1e12 * ranks * (_SCALING if ranks > 1 else 1.0) * _TRAINING
        seconds[trainer] = training_operations(chosen, n) / reached
        sent = sent_bytes(shape, chosen, strategy, ranks) / link_speed(gpu, ranks)
        # Gradients alone wait for the whole step; a pass counts the examples of one device.
        seconds[PASSES[trainer]] = sent * (
            chosen.micro_batches()[-1] / chosen.batch_size if strategy == "ddp" else 1 / ranks
        )
    notes = [
        f"{gpu.name} as stated by its maker: {gpu.tflops:g} dense bfloat16 TFLOP/s, {gpu.memory:g} GiB, "
        f"{gpu.bandwidth:g} GB/s; nothing was measured",
        f"reached of that: {_READING:.0%} of the operations in reading, {_TRAINING:.0%} in training, {_WRITING:.0%} of "
        f"the bandwidth in writing, where the host adds {1e3 * launching:.2g} ms a step "
        f"(range: {1 - _FASTER:.0%} faster to {_SLOWER - 1:.0%} slower)",
        f"a model of {shape.layers} layers of width {shape.hidden}, {shape.kv_bytes / 1024:.0f} KiB of keys and values "
        f"per token; engine: {engine}"
        + (" (vLLM, with --set engine=vllm, writes faster)" if (kind, engine) == ("auto", "transformers") else ""),
    ]
    if n_gpus > 1:
        notes += [_writing_in_words(engine, copies, together), *_training_in_words(placed, settings, n_gpus)]
        notes.append(
            f"of each device's speed {_SCALING:.0%} counts, and devices send each other "
            f"{link_speed(gpu, 2) / 1e9:.0f} GB/s within {_PER_NODE}, {link_speed(gpu, _PER_NODE + 1) / 1e9:.0f} "
            "beyond; see docs/scaling.md"
        )
    return Basis(
        source="stated",
        machine=f"{n_gpus} x {gpu.name}" if n_gpus > 1 else gpu.name,
        devices=n_gpus,
        parameters=n,
        seconds=seconds,
        faster=_FASTER,
        slower=_SLOWER,
        memory=memory_of_model(shape, settings, placed=placed, together=together),
        available=available,
        host_memory=host_memory(n),
        in_flight=requests_in_flight(settings.engine, engine if kind == "auto" else kind),
        ranks=tuple(_ranks(shape, settings, n_gpus, available)),
        notes=tuple(notes),
    )


def most_held(settings: Settings) -> dict[Kind, int]:
    """Return the tokens that each kind of work holds at a time at most: whole batches of the longest texts."""
    # A prompt is taken to have as many tokens as a reply at most.
    held: dict[Kind, int] = {"engine": 2 * settings.candidates.batch_size * settings.candidates.max_new_tokens}
    for trainer, chosen in trainers(settings).items():
        held[trainer] = chosen.micro_batches()[-1] * chosen.max_length
    return held


def trainers(settings: Settings) -> dict[Trainer, TrainingSettings]:
    """Return the settings of each trainer of the loop."""
    return {"sft": settings.sft, "ranking": settings.eft, "dpo": settings.dpo}


def engine_for(kind: str, n_gpus: int) -> Literal["transformers", "vllm"]:
    """Return the engine that is planned with; several devices are used by vLLM alone."""
    return "vllm" if kind == "vllm" or (kind == "auto" and n_gpus > 1) else "transformers"


def link_speed(gpu: Gpu, ranks: int) -> float:
    """Return the bytes a second that go round a ring of devices; beyond a node, over the network."""
    return _LINKS * 1e9 * (gpu.link if ranks <= _PER_NODE else min(gpu.link, _NETWORK))


def _writing_in_words(engine: str, copies: int, together: int) -> str:
    if engine != "vllm":
        return "the transformers engine reads and writes on one device; vLLM, with --set engine=vllm, on all"
    each = "one device" if together == 1 else f"{together} devices"
    return (
        f"reading and writing: {copies} {'copy' if copies == 1 else 'copies'} of the model, each on {each} "
        f"(engine.vllm_servers: {copies}, engine.tensor_parallel_size: {together})"
    )


def _training_in_words(
    placed: Mapping[Trainer, tuple[Strategy, int]], settings: Settings, n_gpus: int
) -> Iterator[str]:
    named = {trainer: trainers(settings)[trainer].key for trainer in placed}
    by_place: dict[tuple[Strategy, int], list[str]] = {}
    for trainer, place in placed.items():
        by_place.setdefault(place, []).append(named[trainer])
    for (strategy, ranks), names in by_place.items():
        how = {"one": "one device", "ddp": f"ddp on {ranks} devices", "fsdp2": f"fsdp2 on {ranks} devices"}[strategy]
        why = "" if ranks == n_gpus else ": a batch_size shared evenly gives no more of them an example of each step"
        beyond = "; on several machines, which this version does not train on" if ranks > _PER_NODE else ""
        yield f"strategy to take for {', '.join(names)}: {how}{why}{beyond}"


def _ranks(shape: ModelShape, settings: Settings, n_gpus: int, available: float) -> Iterator[RankPlan]:
    """Return what each device would hold while DPO is trained, by method, optimiser and strategy."""
    for method, optimizer in (("qlora", "adamw"), ("lora", "adamw"), ("full", "adamw_8bit"), ("full", "adamw")):
        chosen = settings.dpo.model_copy(update={"method": method, "optimizer": optimizer})
        ranks = training_ranks(chosen, n_gpus)
        tokens = chosen.micro_batches()[-1] * chosen.max_length
        strategies: tuple[Strategy, ...] = ("one",) if ranks == 1 else ("ddp",) if chosen.keeps_weights else _SHARED
        for strategy in strategies:
            again, kept = (rank_memory(shape, chosen, strategy, ranks, again) for again in (True, False))
            yield RankPlan(
                method=method,
                optimizer=optimizer,
                strategy=strategy,
                ranks=ranks,
                weights=again.weights + again.gathered,
                states=again.gradients + again.moments,
                checkpointed=again.total(tokens),
                kept=kept.total(tokens),
                fits=again.total(tokens) <= available,
            )


def requests_in_flight(engine: EngineSettings, kind: str) -> int | None:
    """Return how many requests a server works on at a time; None for the engine that works in batches."""
    usual = _IN_FLIGHT.get(kind)
    return (engine.concurrency or usual) if usual else None


def host_memory(parameters: int) -> float:
    """Return the bytes of the host's memory that merging and saving a model trained on a GPU takes."""
    return 4.0 * parameters + 3 * LIBRARIES


def training_operations(settings: TrainingSettings, parameters: float) -> float:
    """Return the operations of training on one token.

    Two per parameter forward; two backward for the activations, in the layers that are adapted and those above, and
    two for the forward pass again, unless the settings say that activations are kept; two more for the weights' own
    gradients if all are trained (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).
    """
    again = 2.0 if settings.gradient_checkpointing is not False else 0.0
    if settings.method == "full":
        return parameters * (6.0 + again)
    return parameters * (2.0 + (2.0 + again) * settings.lora.top_layers)


def memory_of_model(
    shape: ModelShape,
    settings: Settings,
    placed: Mapping[Trainer, tuple[Strategy, int]] | None = None,
    checkpointing: bool = True,
    dtype: str = "bfloat16",
    together: int = 1,
) -> dict[Kind, Memory]:
    """Return the bytes that each kind of work holds on one device.

    Args:
        shape: Of the model.
        settings: Methods of training.
        placed: How, and on how many devices, each trainer works; None: on one.
        checkpointing: Whether activations are computed again for the backward pass, unless the settings say; on a CPU
            they are kept.
        dtype: In which models read and write.
        together: How many devices share a model that reads and writes.
    """
    n, width = shape.parameters, BYTES[dtype]

    def training(trainer: Trainer, chosen: TrainingSettings) -> Memory:
        strategy, ranks = (placed or {}).get(trainer, ("one", 1))
        again = checkpointing if chosen.gradient_checkpointing is None else chosen.gradient_checkpointing
        memory = rank_memory(shape, chosen, strategy, ranks, again, width)
        return Memory(fixed=memory.fixed, per_token=memory.per_token)

    reading = Memory(fixed=width * n / together + LIBRARIES, per_token=width / 2 * shape.kv_bytes / together)
    return {"engine": reading, **{trainer: training(trainer, s) for trainer, s in trainers(settings).items()}}


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
        ("method: qlora in training", changed(training, method="qlora", micro_batch_size=1), n_gpus),
        *(
            [(f"batch_size: {n_gpus} in training", changed(training, batch_size=n_gpus, micro_batch_size=1), n_gpus)]
            if n_gpus > min(chosen.batch_size for chosen in trainers(settings).values())
            else []
        ),
        *((f"{more} devices", settings, more) for more in (2, 4, 8, 16, 32, 64) if more > n_gpus),
    ]
