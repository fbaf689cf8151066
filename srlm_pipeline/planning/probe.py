"""About a minute of the real work on this machine: the configured model through the real engine and trainers.

Each kind of work is done on a little of the project's own data, and timed without its first repetition. Before there
is a seed model the base model stands for all models, which are of its size.
"""

from __future__ import annotations

import gc
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from srlm_pipeline.acceleration.allocation import give_back_freed_memory
from srlm_pipeline.config import DpoSettings, EftSettings, EngineSettings, Settings, TrainingSettings
from srlm_pipeline.data.loaders import load_instructions, load_ranked_replies
from srlm_pipeline.generation.engine import GenerationRequest, Sampling, TextEngine, derive_seed
from srlm_pipeline.generation.journal import fingerprint
from srlm_pipeline.generation.opening import OpenEngine
from srlm_pipeline.judging.eft import eft_from_dataset
from srlm_pipeline.judging.rubric import SCORE_START, SCORES, judge_prompt
from srlm_pipeline.models.checkpoint import Checkpoint, save_checkpoint
from srlm_pipeline.planning.basis import Basis, Memory, PartKind, Rates
from srlm_pipeline.planning.machines import training_operations
from srlm_pipeline.planning.workload import (
    Assumptions,
    DataFacts,
    TextMeasure,
    Training,
    TrainingKind,
    common_beginning,
    count_work,
    group_tokens,
)
from srlm_pipeline.progress import Task
from srlm_pipeline.prompting.few_shot import few_shot_exchange
from srlm_pipeline.training.common import TrainingRun
from srlm_pipeline.training.ranking import RankedExample
from srlm_pipeline.training.seed import judgement_examples, ranked_examples
from srlm_pipeline.training.sft import SftExample

Item = TypeVar("Item")

# Seconds that the longest of the measurements of writing may take.
_WRITING_SECONDS = 6.0
_TRAINING_STEPS = 3
# Forward passes per optimiser step, at most: with one the optimiser would weigh too much, with more it would take long.
_ACCUMULATED = 2
# Messages that ask for a new prompt, read to learn what reading costs.
_MESSAGES = 8
_MEMORY_INTERVAL = 0.02
# A machine that others use too is faster or slower at another hour.
FASTER, SLOWER = 0.8, 1.3
_PROCESS_NOTE = (
    "memory is what a stage needs by itself; one process that runs all of them, as `srlm run` does, was seen to hold "
    "twice as much"
)
# Settings on which the speed of a unit of work depends; how many units there are does not matter.
_PROBED_SETTINGS = (
    "base_model",
    "model",
    "engine",
    "data",
    "eft.enabled",
    "eft.ranking",
    "judge.batch_size",
    "judge.rubric",
    "candidates.batch_size",
    "candidates.max_new_tokens",
    "prompt_generation.batch_size",
    *(
        f"{stage}.{name}"
        for stage in ("sft", "eft", "dpo")
        for name in ("method", "lora", "micro_batch_size", "max_length")
    ),
)


def probe_path(root: Path, settings: Settings, digest: str) -> Path:
    """Return where the measurements for this model, machine and these settings are kept in a project's folder.

    Args:
        root: The project's folder.
        settings: All settings.
        digest: Of the base model.
    """
    key = fingerprint(digest, machine_in_words(settings), settings.fingerprint(*_PROBED_SETTINGS))
    return root / "plans" / f"probe-{key}.json"


def machine_in_words(settings: Settings) -> str:
    """Return what computes: the device, its cores or memory, the type it computes in, and whether in the plain way."""
    import torch

    from srlm_pipeline.acceleration.switch import is_switched_off
    from srlm_pipeline.models.loading import choose_device, choose_dtype

    device = choose_device(settings.model.device)
    dtype = str(choose_dtype(settings.model.dtype, device)).removeprefix("torch.")
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{device}, {_processor()}"
    return f"{name}, {dtype}{', without acceleration' if is_switched_off() else ''}"


def import_libraries() -> float:
    """Import what stages import when they are first needed; returns the seconds it took."""
    started = time.perf_counter()
    import datasets  # noqa: F401
    import peft  # noqa: F401
    from trl import DPOTrainer, SFTTrainer  # noqa: F401

    return time.perf_counter() - started


def run_probe(
    base: Checkpoint,
    settings: Settings,
    measure: TextMeasure,
    facts: DataFacts,
    open_engine: OpenEngine,
    folder: Path,
    announce: Callable[[str], None],
    start: float = 0.0,
) -> Basis:
    """Measure this machine.

    Args:
        base: The base model.
        settings: All settings.
        measure: The model's tokenizer.
        facts: Of the data.
        open_engine: Loads a checkpoint with a batch size.
        folder: Where training may work; what it leaves there is removed.
        announce: Called with a line before each measurement.
        start: Seconds that importing took.
    """
    from srlm_pipeline.generation.opening import choose_engine, release_engines
    from srlm_pipeline.models.loading import choose_device

    device = choose_device(settings.model.device)
    on_cpu = device == "cpu"
    kind, _ = choose_engine(settings)
    in_flight = requests_in_flight(settings.engine, kind)
    material = _Material(settings, measure)
    meter = _MemoryMeter(device)
    announce("loading the model")
    engine, opening = _timed(lambda: open_engine(base, settings.candidates.batch_size))
    loaded = meter.now()
    announce("reading and writing")
    with meter.peak() as peak:
        writing = _measure_writing(engine, material, settings, in_flight)
    memory: dict[PartKind, Memory] = {"writing": _memory(loaded, peak[0], writing.held)}
    _free(device)
    announce("judging")
    with meter.peak() as peak:
        judged, held = _measure_judging(engine, material, settings, in_flight)
    memory["judging"] = _memory(loaded, peak[0], held)
    del engine
    release_engines()
    _free(device)
    works = count_work(settings, facts, Assumptions(), on_cpu, in_flight)
    planned = {part.kind: part for work in works for part in work.parts if isinstance(part, Training)}
    trained: dict[TrainingKind, float] = {}
    trainer: dict[TrainingKind, float] = {}
    save = 0.0
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="probe-") as scratch:
        for name, part in planned.items():
            announce(f"training: {name}")
            timing = _measure_training(base, part, material, settings, Path(scratch), meter)
            trained[name], trainer[name] = timing.per_token, timing.set_up
            memory[name] = timing.memory
            if name == "sft":
                save = _measure_saving(timing.run, base, settings, Path(scratch))
            parameters = sum(p.numel() for p in timing.run.loaded.model.parameters())
            del timing
            _free(device)
    likely = Rates(
        read=writing.read,
        judged=judged,
        step=writing.step,
        written=writing.token,
        trained=trained,
        # The reference reads as the judge does; a server's judge is another program, so there operations are compared.
        reference=judged
        if kind == "transformers"
        else trained["dpo"] * 2 / training_operations(settings.dpo, 1, not on_cpu),
        trainer=trainer,
        engine=opening,
        save=save,
        start=start,
    )
    return Basis(
        source="probe",
        machine=machine_in_words(settings),
        parameters=parameters,
        fast=likely.scaled(FASTER),
        likely=likely,
        slow=likely.scaled(SLOWER),
        memory=memory,
        available=meter.total,
        host_memory=0.0 if on_cpu else 4.0 * parameters + 3 * 2**30,
        shares_prefix=on_cpu,
        in_flight=in_flight,
        notes=(
            f"speed as measured here on {time.strftime('%Y-%m-%d %H:%M')} with the base model "
            f"(range: {1 - FASTER:.0%} faster to {SLOWER - 1:.0%} slower)",
            *([_PROCESS_NOTE] if on_cpu else []),
        ),
    )


def requests_in_flight(engine: EngineSettings, kind: str) -> int | None:
    """Return how many requests a server works on at a time; None for the engine that works in batches."""
    usual = {"vllm": 256, "openai": 16}.get(kind)
    return (engine.concurrency or usual) if usual else None


@dataclass(frozen=True)
class _WritingRates:
    read: float
    step: float
    token: float
    held: float


@dataclass(frozen=True)
class _TrainingTime:
    run: TrainingRun
    per_token: float
    set_up: float
    memory: Memory


class _MemoryMeter:
    """Bytes in use: of this process on a CPU, of the device elsewhere."""

    def __init__(self, device: str) -> None:
        self.device = device

    @property
    def total(self) -> float:
        """Bytes that there are."""
        if not self.device.startswith("cuda"):
            return float(psutil.virtual_memory().total)
        import torch

        return float(torch.cuda.mem_get_info(self.device)[1])

    def now(self) -> float:
        """Bytes in use."""
        if not self.device.startswith("cuda"):
            return float(psutil.Process().memory_info().rss)
        import torch

        free, total = torch.cuda.mem_get_info(self.device)
        return float(total - free)

    @contextmanager
    def peak(self) -> Iterator[list[float]]:
        """Give a list whose one element is the most that was in use within the block, once it has ended."""
        most, ended = [self.now()], threading.Event()

        def watch() -> None:
            while not ended.wait(_MEMORY_INTERVAL):
                most[0] = max(most[0], self.now())

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield most
        finally:
            ended.set()
            watcher.join()
            most[0] = max(most[0], self.now())


class _Clock:
    """A progress reporter that notes when each step ended, and what memory the steps took."""

    def __init__(self, meter: _MemoryMeter) -> None:
        self._meter = meter
        self.steps: list[float] = []
        self.loaded = self.peak = 0.0

    @contextmanager
    def task(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        """See `ProgressReporter.task`."""
        self.loaded = self._meter.now()
        with self._meter.peak() as peak:
            yield self
        self.peak = peak[0]

    def advance(self, amount: int = 1, note: str = "") -> None:
        """See `Task.advance`."""
        self.steps.append(time.perf_counter())


class _Material:
    """Texts of the project to work on."""

    def __init__(self, settings: Settings, measure: TextMeasure) -> None:
        self.measure = measure
        ift = load_instructions(settings.data).table
        ranked = load_ranked_replies(settings.data).table
        train = ranked[ranked["split"] == "train"]
        self.prompts: list[str] = ift["prompt"].tolist()
        self.messages = [(prompt, "") for prompt in self.prompts]
        shown = settings.prompt_generation.seed_examples + settings.prompt_generation.generated_examples
        self.few_shot = [
            few_shot_exchange(self.prompts[i : i + shown]) for i in range(0, max(1, len(ift) - shown), shown)
        ]
        self.replies = list(zip(ranked["prompt"], ranked["text"], strict=True))
        self.sft = [SftExample(row.prompt, row.response) for row in ift.itertuples()]
        eft = eft_from_dataset(train).table
        self.sft += judgement_examples(eft, settings.judge.rubric, 1, settings.seed) if settings.eft.enabled else []
        self.groups = ranked_examples(eft)


def _measure_writing(
    engine: TextEngine, material: _Material, settings: Settings, in_flight: int | None
) -> _WritingRates:
    """Tell apart what a prompt token, a step, and a token drawn cost, from runs with more and less of each."""
    chosen = settings.candidates
    observed: list[tuple[float, float, float]] = []
    seconds: list[float] = []
    held = 0.0

    def write(begun: Sequence[tuple[str, str]], n_tokens: int) -> float:
        nonlocal held
        requests = [
            GenerationRequest(str(place), engine.render(*exchange), derive_seed(settings.seed, "probe", place))
            for place, exchange in enumerate(begun)
        ]
        prompts = [material.measure.prompt(*exchange) for exchange in begun]
        sampling = Sampling(chosen.temperature, chosen.top_p, n_tokens)
        written, taken = _timed(lambda: engine.generate(requests, sampling))
        lengths = [completion.n_tokens for completion in written]
        # The first token comes from reading.
        observed.append((_read_once(prompts), max(lengths) - 1, sum(lengths) - len(lengths)))
        seconds.append(taken)
        held = max(held, len(begun) * (max(map(len, prompts)) + n_tokens))
        return taken

    write(material.messages[:2], 2)
    observed.clear()
    seconds.clear()
    write(_repeated(material.few_shot, min(settings.prompt_generation.batch_size, _MESSAGES)), 1)
    rows = in_flight or chosen.batch_size
    for size, budget in ((rows, _WRITING_SECONDS), (max(1, rows // 8), _WRITING_SECONDS / 2)):
        messages = _repeated(material.messages, size)
        reading = write(messages, 1)
        few = min(8, chosen.max_new_tokens)
        step = max(write(messages, few) - reading, 1e-6) / max(few - 1, 1)
        write(messages, int(min(max(budget / step, few), chosen.max_new_tokens)))
    read, step, token = _solve(observed, seconds)
    return _WritingRates(read, step, token, held)


def _measure_judging(
    engine: TextEngine, material: _Material, settings: Settings, in_flight: int | None
) -> tuple[float, float]:
    """Return seconds per prompt token in judging, and the tokens of the largest forward pass."""
    rows = in_flight or settings.judge.batch_size
    texts = [
        judge_prompt(settings.judge.rubric, prompt, reply, "direct")
        for prompt, reply in _repeated(material.replies, rows)
    ]
    tokens = [material.measure.prompt(text, SCORE_START) for text in texts]
    prefixes = [engine.render(text, SCORE_START) for text in texts]
    engine.next_token_distribution(prefixes[:2], SCORES)
    _, seconds = _timed(lambda: engine.next_token_distribution(prefixes, SCORES))
    return seconds / _read_once(tokens), rows * max(map(len, tokens))


def _measure_training(
    base: Checkpoint, part: Training, material: _Material, settings: Settings, folder: Path, meter: _MemoryMeter
) -> _TrainingTime:
    """Train a few steps on one batch, the same in each step, of middling length."""
    micro = part.settings.micro_batch_size
    accumulated = min(part.settings.batch_size // micro, _ACCUMULATED)
    short: dict[str, Any] = {
        "batch_size": micro * accumulated,
        "epochs": _TRAINING_STEPS,
        "save_every": 10**6,
    }
    chosen = part.settings.model_copy(update=short)
    examples, tokens = _middling(part, micro * accumulated, material, settings, meter.device == "cpu")
    clock = _Clock(meter)
    work = folder / part.kind
    with meter.peak() as peak:
        run, total = _timed(lambda: _train(base, part, examples, chosen, settings, work, clock))
    step = float(np.mean(np.diff(clock.steps)))
    memory = _memory(clock.loaded, clock.peak, tokens / accumulated).model_copy(update={"afterwards": peak[0]})
    return _TrainingTime(run, step / tokens, max(total - _TRAINING_STEPS * step, 0.0), memory)


def _train(
    base: Checkpoint,
    part: Training,
    examples: list[Any],
    chosen: TrainingSettings,
    settings: Settings,
    work: Path,
    clock: _Clock,
) -> TrainingRun:
    common: dict[str, Any] = {
        "model": settings.model,
        "seed": settings.seed,
        "work": work,
        "description": part.kind,
        "progress": clock,
    }
    if isinstance(chosen, DpoSettings):
        from srlm_pipeline.training.dpo import train_dpo

        return train_dpo(base.path, examples, chosen, **common)
    if isinstance(chosen, EftSettings):
        from srlm_pipeline.training.ranking import train_ranking

        return train_ranking(base.path, examples, chosen, settings.judge.rubric, **common)
    from srlm_pipeline.training.sft import train_sft

    return train_sft(base.path, examples, chosen, **common)


def _middling(
    part: Training, n: int, material: _Material, settings: Settings, shares_prefix: bool
) -> tuple[list[Any], float]:
    """Return examples whose batch is as large as a middling one of the stage, and the tokens of that batch."""
    limit, measure = part.settings.max_length, material.measure
    if part.kind == "sft":
        sizes = [min(sum(measure.exchange(e.prompt, e.response)), limit) for e in material.sft]
        chosen = _nearest(sizes, part.micro_tokens / part.settings.micro_batch_size, n)
        return [material.sft[i] for i in chosen], n * max(sizes[i] for i in chosen)
    if part.kind == "dpo":
        from srlm_pipeline.training.dpo import PreferenceExample

        pairs = [PreferenceExample(g.prompt, *_best_and_worst(g)) for g in material.groups]
        sizes = [
            max(min(sum(measure.exchange(p.prompt, text)), limit) for text in (p.chosen, p.rejected)) for p in pairs
        ]
        chosen = _nearest(sizes, part.micro_tokens / part.settings.micro_batch_size / 2, n)
        return [pairs[i] for i in chosen], 2 * n * max(sizes[i] for i in chosen)
    sizes = [group_tokens(g.prompt, g.replies, settings, measure)[0 if shares_prefix else 1] for g in material.groups]
    chosen = _nearest(sizes, part.micro_tokens / part.settings.micro_batch_size, n)
    return [material.groups[i] for i in chosen], sum(sizes[i] for i in chosen)


def _measure_saving(run: TrainingRun, base: Checkpoint, settings: Settings, folder: Path) -> float:
    _, seconds = _timed(
        lambda: save_checkpoint(run.loaded, folder / "saved", "probe", base.digest, {}, settings.model.save_dtype)
    )
    shutil.rmtree(folder / "saved")
    return seconds


def _best_and_worst(group: RankedExample) -> tuple[str, str]:
    ordered = [text for _, text in sorted(zip(group.ranks, group.replies, strict=True))]
    return ordered[0], ordered[-1]


def _nearest(sizes: Sequence[float], target: float, n: int) -> list[int]:
    """Return the places of the n sizes that are nearest to the target; some twice where there are too few."""
    ordered = sorted(range(len(sizes)), key=lambda place: abs(sizes[place] - target))
    return _repeated(ordered, n)


def _repeated(items: Sequence[Item], n: int) -> list[Item]:
    return [items[place % len(items)] for place in range(n)]


def _solve(observed: Sequence[tuple[float, float, float]], seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return seconds per unit of three kinds of work, none below zero, that explain the measurements best."""
    from scipy.optimize import nnls

    # Each measurement weighs alike, whether it took long or not.
    (first, second, third), _ = nnls(np.array(observed) / np.array(seconds)[:, None], np.ones(len(seconds)))
    return float(first), float(second), float(third)


def _read_once(sequences: Sequence[Sequence[Hashable]]) -> int:
    """Return the tokens that the engine reads: a common beginning once, equal prompts once."""
    distinct = list(dict.fromkeys(map(tuple, sequences)))
    return sum(map(len, distinct)) - common_beginning(sequences) * (len(distinct) - 1)


def _memory(loaded: float, peak: float, held: float) -> Memory:
    return Memory(fixed=loaded, per_token=max(peak - loaded, 0.0) / max(held, 1.0))


def _timed(action: Callable[[], Item]) -> tuple[Item, float]:
    started = time.perf_counter()
    result = action()
    return result, time.perf_counter() - started


def _free(device: str) -> None:
    gc.collect()
    give_back_freed_memory()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


def _processor() -> str:
    """Return number and kind of the cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{os.cpu_count()} cores of {next(named, platform.machine())}"
