"""How fast this machine is: reading, writing and training with the configured model.

Each is done on a little of the project's own data, and timed without its first repetition. Before there is a seed
model the base model stands for all models, which are of its size.

There are two probes. The quick one reads and writes for a few seconds, and takes training's share from the operations
that it is; the thorough one trains too, and takes about a minute where nothing else runs.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from srlm_pipeline.config import Settings, TrainingSettings
from srlm_pipeline.files import scratch_folder
from srlm_pipeline.generation.engine import GenerationRequest, Sampling, TextEngine
from srlm_pipeline.generation.journal import fingerprint
from srlm_pipeline.generation.opening import OpenEngine
from srlm_pipeline.judging.rubric import SCORE_START, SCORES, judge_prompt
from srlm_pipeline.models.checkpoint import Checkpoint, save_checkpoint
from srlm_pipeline.models.memory import free_memory
from srlm_pipeline.planning.machines import (
    host_memory,
    memory_of_model,
    requests_in_flight,
    trainers,
    training_operations,
)
from srlm_pipeline.planning.plan import Basis, Memory, Record
from srlm_pipeline.planning.sharding import ModelShape
from srlm_pipeline.planning.texts import ProjectData, TextMeasure, group_tokens, unshared
from srlm_pipeline.planning.workload import Kind, Trainer, Unit
from srlm_pipeline.progress import Task
from srlm_pipeline.training.common import TrainingJob, TrainingRun
from srlm_pipeline.training.fitting import MOST_ON_CPU
from srlm_pipeline.training.sft import SftExample

Result = TypeVar("Result")

_WRITING_STEPS = 24
_TRAINING_STEPS = 3
# Forward passes per optimiser step, at most: with one the optimiser would weigh too much, with more it would take long.
_ACCUMULATED = 2
# A machine that others use too is faster or slower at another hour; training that was not tried is a guess besides.
_FASTER, _SLOWER = 0.8, 1.3
_QUICK_FASTER, _QUICK_SLOWER = 0.6, 1.8
# Texts read, rows written and steps taken by the quick probe.
_FEW_TEXTS, _FEW_ROWS, _FEW_STEPS = 4, 16, 4
# What a training takes beside its steps, in times that opening the model takes: it is loaded, loaded again to be
# merged, written and read for its digest.
_SETTING_UP = 6
# Per parameter and token.
_READING_OPERATIONS = 2.0
# Settings on which the speed of a unit of work depends; how many units there are does not matter.
_PROBED_SETTINGS = (
    "base_model", "model", "engine", "data", "eft.enabled", "eft.targets", "eft.ranking", "judge.batch_size",
    "judge.taught_rubric", "candidates.batch_size", "candidates.max_new_tokens",
    *(f"{stage}.{name}" for stage in ("sft", "eft", "dpo")
      for name in ("method", "lora", "micro_batch_size", "max_length")),
)  # fmt: skip
_RATED_SETTINGS = ("base_model", "model", "engine")


class Rates(Record):
    """What the quick probe measured; the same for all settings of training and all numbers of prompts.

    Attributes:
        seconds: Per unit of reading and writing.
        measured: When, for people.
    """

    seconds: dict[Unit, float]
    measured: str


def rates_path(root: Path, settings: Settings, digest: str) -> Path:
    """Return where the quick probe's figures for this model and machine are kept in a project's folder."""
    key = fingerprint(digest, machine_in_words(settings), settings.fingerprint(*_RATED_SETTINGS))
    return root / "plans" / f"rates-{key}.json"


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


def measure_rates(
    base: Checkpoint,
    settings: Settings,
    data: ProjectData,
    measure: TextMeasure,
    open_engine: OpenEngine,
    announce: Callable[[str], None],
) -> Rates:
    """Measure for a few seconds how fast this machine opens a model, reads and writes.

    Args:
        base: The base model.
        settings: All settings.
        data: To read and answer.
        measure: Of the model's tokenizer.
        open_engine: Loads a checkpoint with a batch size.
        announce: Called with a line before each measurement.
    """
    from srlm_pipeline.generation.opening import release_engines

    announce("loading the model")
    engine, opened = _timed(lambda: open_engine(base, _FEW_ROWS))
    announce("reading")
    replies = _repeated(list(data.train.itertuples()), _FEW_TEXTS)
    questions = [judge_prompt(settings.judge.taught_rubric, r.prompt, r.text, "direct") for r in replies]
    seconds: dict[Unit, float] = {"opened": opened, "read": _measure_reading(engine, questions, measure)}
    announce("writing")
    seconds |= _measure_writing(engine, _repeated(data.ift["prompt"].tolist(), _FEW_ROWS), settings, _FEW_STEPS)
    del engine
    release_engines()
    free_memory()
    return Rates(seconds=seconds, measured=time.strftime("%Y-%m-%d %H:%M"))


def quick_basis(rates: Rates, shape: ModelShape, settings: Settings) -> Basis:
    """Return what an estimate rests on where training was not tried: it takes as long as reading as many operations.

    Args:
        rates: As measured.
        shape: Of the base model.
        settings: All settings.
    """
    device = _device(settings)
    seconds = dict(rates.seconds)
    for trainer, chosen in trainers(settings).items():
        kept = device == "cpu" and chosen.gradient_checkpointing is None
        counted = chosen.model_copy(update={"gradient_checkpointing": False}) if kept else chosen
        seconds[trainer] = seconds["read"] * training_operations(counted, 1.0) / _READING_OPERATIONS
    seconds["trainer"] = _SETTING_UP * seconds["opened"]
    note = (
        f"reading and writing as measured here on {rates.measured} with the base model, training by its operations "
        f"(range: {1 - _QUICK_FASTER:.0%} faster to {_QUICK_SLOWER - 1:.0%} slower); `srlm plan --fresh` measures that "
        "too, in a minute or more"
    )
    return _basis(seconds, shape, settings, (_QUICK_FASTER, _QUICK_SLOWER), note)


def run_probe(
    base: Checkpoint,
    shape: ModelShape,
    settings: Settings,
    data: ProjectData,
    measure: TextMeasure,
    open_engine: OpenEngine,
    folder: Path,
    announce: Callable[[str], None],
) -> Basis:
    """Measure this machine's speed; memory follows from the model's shape.

    Args:
        base: The base model.
        shape: Of the base model.
        settings: All settings.
        data: To read, answer and learn.
        measure: Of the model's tokenizer.
        open_engine: Loads a checkpoint with a batch size.
        folder: Where training may work; what it leaves there is removed.
        announce: Called with a line before each measurement.
    """
    from srlm_pipeline.generation.opening import release_engines

    in_flight = _in_flight(settings)
    lessons = _lessons(data, settings, measure)
    announce("loading the model")
    engine, opened = _timed(lambda: open_engine(base, settings.candidates.batch_size))
    announce("reading")
    replies = _repeated(list(data.train.itertuples()), in_flight or settings.judge.batch_size)
    questions = [judge_prompt(settings.judge.taught_rubric, r.prompt, r.text, "direct") for r in replies]
    seconds: dict[Unit, float] = {"opened": opened, "read": _measure_reading(engine, questions, measure)}
    announce("writing")
    messages = _repeated(data.ift["prompt"].tolist(), in_flight or settings.candidates.batch_size)
    seconds |= _measure_writing(engine, messages, settings, _WRITING_STEPS)
    del engine
    release_engines()
    free_memory()
    setting_up: list[float] = []
    with scratch_folder(folder / "probe") as scratch:
        for trainer, lesson in lessons.items():
            announce(f"training: {trainer}")
            run, seconds[trainer], beside = _measure_training(base, lesson, settings, scratch / trainer)
            setting_up.append(beside)
            if len(setting_up) == len(lessons):
                announce("saving")
                save = partial(save_checkpoint, run.loaded, scratch / "saved", "probe", base.digest, {})
                _, saving = _timed(partial(save, settings.model.save_dtype))
                seconds["trainer"] = float(np.mean(setting_up)) + saving
                del save
            del run
            free_memory()
    note = (
        f"speed as measured here on {time.strftime('%Y-%m-%d %H:%M')} with the base model "
        f"(range: {1 - _FASTER:.0%} faster to {_SLOWER - 1:.0%} slower)"
    )
    return _basis(seconds, shape, settings, (_FASTER, _SLOWER), note)


def memory_here(shape: ModelShape, settings: Settings) -> tuple[dict[Kind, Memory], float]:
    """Return what each kind of work holds on this machine's device, and the bytes that the device has.

    Args:
        shape: Of the model.
        settings: All settings.
    """
    import psutil
    import torch

    from srlm_pipeline.models.loading import choose_dtype

    device = _device(settings)
    dtype = str(choose_dtype(settings.model.dtype, device)).removeprefix("torch.")
    on_gpu = device.startswith("cuda")
    available = float(torch.cuda.mem_get_info(device)[1] if on_gpu else psutil.virtual_memory().total)
    return memory_of_model(shape, settings, checkpointing=device != "cpu", dtype=dtype), available


def devices_here(settings: Settings) -> int:
    """Return how many devices there are of the kind that is computed on."""
    import torch

    return torch.cuda.device_count() if _device(settings) == "cuda" else 1


def _basis(
    seconds: dict[Unit, float], shape: ModelShape, settings: Settings, ends: tuple[float, float], note: str
) -> Basis:
    memory, available = memory_here(shape, settings)
    device, notes = _device(settings), [note]
    if device == "cpu":
        notes.append(
            "memory is what a stage needs by itself; one process that runs all of them, as `srlm run` does, holds more "
            "(4.9 GiB instead of 3.8 in the quickstart)"
        )
    return Basis(
        source="probe",
        machine=machine_in_words(settings),
        parameters=shape.parameters,
        seconds=seconds,
        faster=ends[0],
        slower=ends[1],
        memory=memory,
        available=available,
        host_memory=0.0 if device == "cpu" else host_memory(shape.parameters),
        in_flight=_in_flight(settings),
        notes=tuple(notes),
    )


def _device(settings: Settings) -> str:
    from srlm_pipeline.models.loading import choose_device

    return choose_device(settings.model.device)


def _in_flight(settings: Settings) -> int | None:
    from srlm_pipeline.generation.opening import choose_engine

    return requests_in_flight(settings.engine, choose_engine(settings)[0])


class Lesson(NamedTuple):
    """A trainer, its settings, examples, and how many tokens one of these has."""

    train: Callable[[TrainingJob, list[Any], Any], TrainingRun]
    settings: TrainingSettings
    examples: Sequence[Any]
    tokens: Callable[[Any], float]


class _Clock:
    """A progress reporter that notes when each step ended."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    @contextmanager
    def task(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        """See `ProgressReporter.task`."""
        yield self

    def advance(self, amount: int = 1, note: str = "", found: int = 0) -> None:
        """See `Task.advance`."""
        self.steps.append(time.perf_counter())

    def within(self, note: str) -> None:
        """See `Task.within`; steps alone count."""


def _lessons(data: ProjectData, settings: Settings, measure: TextMeasure) -> dict[Trainer, Lesson]:
    """Return what the trainers are to learn; tokens are those that `count_work` counts."""
    # What stages import when they are first needed is none of their time.
    import datasets  # noqa: F401
    import peft  # noqa: F401
    from trl import DPOTrainer, SFTTrainer  # noqa: F401

    from srlm_pipeline.training.dpo import PreferenceExample, train_dpo
    from srlm_pipeline.training.ranking import train_ranking
    from srlm_pipeline.training.sft import train_sft

    def tokens(chosen: TrainingSettings, prompt: str, *replies: str) -> float:
        return sum(min(measure.conversation(prompt, reply), chosen.max_length) for reply in replies)

    sft, dpo, rubric = settings.sft, settings.dpo, settings.judge.taught_rubric
    # Of steps that a budget would spare nothing is measured.
    whole = dpo.model_copy(update={"kl_budget": None})
    ranking_alone = settings.eft.model_copy(update={"retention": 0.0})
    texts = [*(SftExample(row.prompt, row.response) for row in data.ift.itertuples()), *data.judgements]
    # Best and worst as people see them: replies made up for the judge are of other lengths.
    ranked = [group for _, group in data.train.sort_values("rank", kind="stable").groupby("group_id")]
    pairs = [PreferenceExample(g["prompt"].iloc[0], g["text"].iloc[0], g["text"].iloc[-1]) for g in ranked]
    lessons: dict[Trainer, Lesson] = {
        "sft": Lesson(train_sft, sft, texts, lambda e: tokens(sft, e.prompt, e.response)),
        "dpo": Lesson(train_dpo, whole, pairs, lambda e: tokens(dpo, e.prompt, e.chosen, e.rejected)),
    }
    if settings.eft.enabled and settings.eft.ranking:
        lessons["ranking"] = Lesson(
            lambda job, groups, chosen: train_ranking(job, groups, chosen, rubric),
            ranking_alone,
            data.groups,
            lambda e: group_tokens(e, settings, measure),
        )
    return lessons


def _measure_reading(engine: TextEngine, messages: Sequence[str], measure: TextMeasure) -> float:
    """Return seconds per prompt token, from judging replies in one batch."""
    texts = [engine.render(message, SCORE_START) for message in messages]
    engine.next_token_distribution(texts[:2], SCORES)
    _, seconds = _timed(lambda: engine.next_token_distribution(texts, SCORES))
    return seconds / sum(map(measure.tokens, unshared(messages)))


def _measure_writing(
    engine: TextEngine, messages: Sequence[str], settings: Settings, most_steps: int
) -> dict[Unit, float]:
    """Tell apart what a step and a token drawn in it cost, from steps of a full batch and of a small one."""

    def seconds_per_step(rows: int) -> float:
        requests = [GenerationRequest(str(n), engine.render(text), n) for n, text in enumerate(messages[:rows])]
        chosen, steps = settings.candidates, min(most_steps, settings.candidates.max_new_tokens)
        # The first token comes from reading.
        some, one = (Sampling(chosen.temperature, chosen.top_p, n_tokens) for n_tokens in (steps + 1, 1))
        _, writing = _timed(lambda: engine.generate(requests, some))
        _, reading = _timed(lambda: engine.generate(requests, one))
        return max(writing - reading, 0.0) / steps

    many, few = len(messages), max(1, len(messages) // 8)
    seconds_per_step(1)
    large, small = seconds_per_step(many), seconds_per_step(few)
    drawn = max(large - small, 0.0) / max(many - few, 1)
    return {"step": max(small - few * drawn, 0.0), "drawn": drawn}


def _measure_training(
    base: Checkpoint, lesson: Lesson, settings: Settings, work: Path
) -> tuple[TrainingRun, float, float]:
    """Train a few steps on one batch of all lengths, the same in each step.

    Returns:
        The run, seconds per token, and seconds beside the steps.
    """
    micro, batch = lesson.settings.micro_batches(MOST_ON_CPU)[0], lesson.settings.batch_size
    n = micro * min(batch // micro, _ACCUMULATED)
    short = lesson.settings.model_copy(update={"batch_size": n, "epochs": _TRAINING_STEPS, "save_every": 10**6})
    ordered = sorted(lesson.examples, key=lesson.tokens)
    # The middles of n equal parts: as long on average as all are.
    examples = [ordered[int((i + 0.5) / n * len(ordered))] for i in range(n)]
    clock = _Clock()
    job = TrainingJob(base.path, settings.model, settings.seed, work, work.name, clock)
    run, total = _timed(lambda: lesson.train(job, examples, short))
    step = float(np.mean(np.diff(clock.steps)))
    return run, step / sum(map(lesson.tokens, examples)), max(total - _TRAINING_STEPS * step, 0.0)


def _repeated(items: Sequence[Result], n: int) -> list[Result]:
    return [items[place % len(items)] for place in range(n)]


def _timed(action: Callable[[], Result]) -> tuple[Result, float]:
    started = time.perf_counter()
    result = action()
    return result, time.perf_counter() - started


def _processor() -> str:
    """Return number and kind of the cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{os.cpu_count()} cores of {next(named, platform.machine())}"
