"""About a minute of the real work on this machine: the configured model through the real engine and trainers.

Each kind of work is done on a little of the project's own data, and timed without its first repetition. Before there
is a seed model the base model stands for all models, which are of its size.
"""

from __future__ import annotations

import gc
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from srlm_pipeline.acceleration.allocation import give_back_freed_memory
from srlm_pipeline.config import Settings, TrainingSettings
from srlm_pipeline.data.loaders import load_instructions, load_ranked_replies
from srlm_pipeline.files import scratch_folder
from srlm_pipeline.generation.engine import GenerationRequest, Sampling, TextEngine, derive_seed
from srlm_pipeline.generation.journal import fingerprint
from srlm_pipeline.generation.opening import OpenEngine
from srlm_pipeline.judging.eft import eft_from_dataset
from srlm_pipeline.judging.rubric import SCORE_START, SCORES, judge_prompt
from srlm_pipeline.models.checkpoint import Checkpoint, save_checkpoint
from srlm_pipeline.planning.machines import host_memory, requests_in_flight
from srlm_pipeline.planning.plan import Basis, Memory, Range
from srlm_pipeline.planning.workload import Kind, TextMeasure, Unit, evenly, unshared
from srlm_pipeline.progress import Task
from srlm_pipeline.prompting.few_shot import few_shot_exchange
from srlm_pipeline.training.common import TrainingJob, TrainingRun
from srlm_pipeline.training.ranking_items import RankedExample
from srlm_pipeline.training.seed import judgement_examples, ranked_examples
from srlm_pipeline.training.sft import SftExample

Item = TypeVar("Item")
# A trainer: (job, examples, settings).
Train = Callable[[TrainingJob, list[Any], Any], TrainingRun]

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
_STAGE_SECONDS = 0.5
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
    open_engine: OpenEngine,
    folder: Path,
    announce: Callable[[str], None],
    start: float = 0.0,
) -> Basis:
    """Measure this machine.

    Args:
        base: The base model.
        settings: All settings.
        measure: Of the model's tokenizer.
        open_engine: Loads a checkpoint with a batch size.
        folder: Where training may work; what it leaves there is removed.
        announce: Called with a line before each measurement.
        start: Seconds that importing took.
    """
    from srlm_pipeline.generation.opening import choose_engine, release_engines
    from srlm_pipeline.models.loading import choose_device

    device = choose_device(settings.model.device)
    on_cpu = device == "cpu"
    in_flight = requests_in_flight(settings.engine, choose_engine(settings)[0])
    material = _Material(settings, measure)
    meter = _MemoryMeter(device)
    memory: dict[Kind, Memory] = {}
    announce("loading the model")
    engine, opening = _timed(lambda: open_engine(base, settings.candidates.batch_size))
    loaded = meter.now()
    announce("reading and writing")
    with meter.peak() as peak:
        seconds, held = _measure_writing(engine, material, settings, in_flight)
    memory["writing"] = _memory(loaded, peak[0], held)
    _free(device)
    announce("judging")
    with meter.peak() as peak:
        seconds["judged"], held = _measure_judging(engine, material, settings, in_flight)
    memory["judging"] = _memory(loaded, peak[0], held)
    del engine
    release_engines()
    _free(device)
    trainers = []
    with scratch_folder(folder / "probe") as scratch:
        for kind, lesson in _lessons(material, settings).items():
            announce(f"training: {kind}")
            work = scratch / kind
            timing = _measure_training(base, lesson, settings, work, meter)
            seconds[kind], memory[kind] = timing.per_token, timing.memory
            trainers.append(timing.set_up)
            # The models are of one size: writing the first of them tells of all.
            if "save" not in seconds:
                seconds["save"] = _measure_saving(timing.run, base, settings, scratch / "saved")
            parameters = sum(p.numel() for p in timing.run.loaded.model.parameters())
            del timing
            _free(device)
    seconds |= {
        "trainer": float(np.mean(trainers)),
        "engine": opening,
        "stage": _STAGE_SECONDS,
    }
    return Basis(
        source="probe",
        machine=machine_in_words(settings),
        parameters=parameters,
        seconds={unit: Range(low=FASTER * s, likely=s, high=SLOWER * s) for unit, s in seconds.items()},
        start=start,
        memory=memory,
        available=meter.total,
        host_memory=0.0 if on_cpu else host_memory(parameters),
        in_flight=in_flight,
        notes=(
            f"speed as measured here on {time.strftime('%Y-%m-%d %H:%M')} with the base model "
            f"(range: {1 - FASTER:.0%} faster to {SLOWER - 1:.0%} slower)",
            *([_PROCESS_NOTE] if on_cpu else []),
        ),
    )


class _MemoryMeter:
    """Bytes in use: of this process on a CPU, of the device elsewhere."""

    def __init__(self, device: str) -> None:
        self._device = device

    @property
    def total(self) -> float:
        """Bytes that there are."""
        return float(self._of_device()[1] if self._device.startswith("cuda") else psutil.virtual_memory().total)

    def now(self) -> float:
        """Bytes in use."""
        if not self._device.startswith("cuda"):
            return float(psutil.Process().memory_info().rss)
        free, total = self._of_device()
        return float(total - free)

    def _of_device(self) -> tuple[int, int]:
        import torch

        return torch.cuda.mem_get_info(self._device)

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
        eft = eft_from_dataset(ranked[ranked["split"] == "train"]).table
        prompts = ift["prompt"].tolist()
        self.messages = [(prompt, "") for prompt in prompts]
        shown = settings.prompt_generation.seed_examples + settings.prompt_generation.generated_examples
        self.few_shot = [few_shot_exchange(prompts[i : i + shown]) for i in range(0, len(prompts), shown)]
        rubric = settings.judge.rubric
        self.judging = [
            (judge_prompt(rubric, r.prompt, r.text, "direct"), SCORE_START) for r in evenly(list(ranked.itertuples()))
        ]
        self.sft = [SftExample(row.prompt, row.response) for row in ift.itertuples()]
        self.sft += judgement_examples(eft, rubric, 1, settings.seed) if settings.eft.enabled else []
        self.groups = ranked_examples(eft)


@dataclass(frozen=True)
class _Lesson:
    """A stage of training on a little of its data; `tokens` tells an example's, as `count_work` counts them."""

    train: Train
    settings: TrainingSettings
    examples: Sequence[Any]
    tokens: Callable[[Any], float]


def _lessons(material: _Material, settings: Settings) -> dict[Any, _Lesson]:
    from srlm_pipeline.training.dpo import PreferenceExample, train_dpo
    from srlm_pipeline.training.ranking import train_ranking
    from srlm_pipeline.training.sft import train_sft

    measure, rubric = material.measure, settings.judge.rubric

    def texts(limit: int, prompt: str, *replies: str) -> float:
        return sum(min(measure.exchange(prompt, reply), limit) for reply in replies)

    def group(example: RankedExample) -> float:
        asked = [judge_prompt(rubric, example.prompt, reply, "direct") for reply in example.replies]
        return sum(min(measure.prompt(text, SCORE_START), settings.eft.max_length) for text in asked)

    lessons = {
        "sft": _Lesson(
            train_sft,
            settings.sft,
            material.sft,
            lambda e: texts(settings.sft.max_length, e.prompt, e.response),
        ),
        "ranking": _Lesson(
            lambda job, some, chosen: train_ranking(job, some, chosen, rubric), settings.eft, material.groups, group
        ),
        "dpo": _Lesson(
            train_dpo,
            settings.dpo,
            [PreferenceExample(g.prompt, *_best_and_worst(g)) for g in material.groups],
            lambda e: texts(settings.dpo.max_length, e.prompt, e.chosen, e.rejected),
        ),
    }
    if not (settings.eft.enabled and settings.eft.ranking):
        del lessons["ranking"]
    return lessons


def _measure_writing(
    engine: TextEngine, material: _Material, settings: Settings, in_flight: int | None
) -> tuple[dict[Unit, float], float]:
    """Tell apart what a prompt token, a step, and a token drawn cost, from runs with more and less of each.

    Returns:
        Seconds per unit, and the most tokens that were in memory.
    """
    chosen = settings.candidates
    observed: list[tuple[float, float, float]] = []
    seconds: list[float] = []
    held = 0.0

    def write(begun: Sequence[tuple[str, str]], n_tokens: int) -> float:
        nonlocal held
        texts = [engine.render(*exchange) for exchange in begun]
        requests = [
            GenerationRequest(str(place), text, derive_seed(settings.seed, "probe", place))
            for place, text in enumerate(texts)
        ]
        sampling = Sampling(chosen.temperature, chosen.top_p, n_tokens)
        written, taken = _timed(lambda: engine.generate(requests, sampling))
        lengths = [completion.n_tokens for completion in written]
        prompted = [material.measure.tokens(text) for text in unshared(list(dict.fromkeys(texts)))]
        # The first token comes from reading.
        observed.append((sum(prompted), max(lengths) - 1, sum(lengths) - len(lengths)))
        seconds.append(taken)
        held = max(held, len(begun) * (max(map(material.measure.tokens, texts)) + n_tokens))
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
    prompted, step, drawn = _solve(observed, seconds)
    return {"prompted": prompted, "step": step, "drawn": drawn}, held


def _measure_judging(
    engine: TextEngine, material: _Material, settings: Settings, in_flight: int | None
) -> tuple[float, float]:
    """Return seconds per prompt token in judging, and the tokens of the largest forward pass."""
    rows = in_flight or settings.judge.batch_size
    prefixes = [engine.render(*exchange) for exchange in _repeated(material.judging, rows)]
    engine.next_token_distribution(prefixes[:2], SCORES)
    _, seconds = _timed(lambda: engine.next_token_distribution(prefixes, SCORES))
    tokens = material.measure.tokens
    return seconds / sum(map(tokens, unshared(prefixes))), rows * max(map(tokens, prefixes))


@dataclass(frozen=True)
class _TrainingTime:
    run: TrainingRun
    per_token: float
    set_up: float
    memory: Memory


def _measure_training(
    base: Checkpoint, lesson: _Lesson, settings: Settings, work: Path, meter: _MemoryMeter
) -> _TrainingTime:
    """Train a few steps on one batch of all lengths, the same in each step."""
    micro = lesson.settings.micro_batch_size
    n = micro * min(lesson.settings.batch_size // micro, _ACCUMULATED)
    short: dict[str, Any] = {"batch_size": n, "epochs": _TRAINING_STEPS, "save_every": 10**6}
    ordered = sorted(lesson.examples, key=lesson.tokens)
    # The middles of n equal parts: as long on average as all are.
    examples = [ordered[int((i + 0.5) / n * len(ordered))] for i in range(n)]
    tokens = sum(map(lesson.tokens, examples))
    clock = _Clock(meter)
    job = TrainingJob(base.path, settings.model, settings.seed, work, work.name, clock)
    with meter.peak() as peak:
        run, total = _timed(lambda: lesson.train(job, examples, lesson.settings.model_copy(update=short)))
    step = float(np.mean(np.diff(clock.steps)))
    held = micro * lesson.tokens(examples[-1])
    memory = _memory(clock.loaded, clock.peak, held).model_copy(update={"afterwards": peak[0]})
    return _TrainingTime(run, step / tokens, max(total - _TRAINING_STEPS * step, 0.0), memory)


def _measure_saving(run: TrainingRun, base: Checkpoint, settings: Settings, folder: Path) -> float:
    dtype = settings.model.save_dtype
    return _timed(lambda: save_checkpoint(run.loaded, folder, "probe", base.digest, {}, dtype))[1]


def _best_and_worst(group: RankedExample) -> tuple[str, str]:
    ordered = [text for _, text in sorted(zip(group.ranks, group.replies, strict=True))]
    return ordered[0], ordered[-1]


def _repeated(items: Sequence[Item], n: int) -> list[Item]:
    return [items[place % len(items)] for place in range(n)]


def _solve(observed: Sequence[tuple[float, float, float]], seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return seconds per unit of three kinds of work, none below zero, that explain the measurements best."""
    from scipy.optimize import nnls

    # Each measurement weighs alike, whether it took long or not.
    (first, second, third), _ = nnls(np.array(observed) / np.array(seconds)[:, None], np.ones(len(seconds)))
    return float(first), float(second), float(third)


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
