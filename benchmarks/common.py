"""What all benchmarks share: options, the machine's limits, interleaved repetitions, results on disk."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks.work import Limits

if TYPE_CHECKING:
    from srlm_pipeline.generation.engine import TextEngine
    from srlm_pipeline.models.loading import LoadedModel

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SMOKE_RESULTS = ROOT / "build" / "benchmarks"
PACKAGES = ("srlm_pipeline", "torch", "transformers", "trl", "peft", "rapidfuzz", "dagster", "mlflow")
# Above this something else is running, and the figures are not worth keeping.
BUSY = 0.5
# Limits that differ by more between start and end mean that the machine changed its speed meanwhile.
DRIFT = 0.15

Result = TypeVar("Result")


@dataclass(frozen=True)
class Measurement:
    """One contender's repetitions.

    Attributes:
        name: Who did what.
        unit: Of the values.
        values: One per repetition.
        limit_share: How much of the machine's limit was reached, 0..1; None where that means nothing.
        note: Shown beside it.
    """

    name: str
    unit: str
    values: Sequence[float]
    limit_share: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a benchmark was to show.

    Attributes:
        what: The claim.
        values: One per repetition, e.g. ratios of neighbouring runs.
        target: What the median is held against.
        unit: ``x`` for ratios, ``%`` for shares in 0..100.
        at_least: Whether more is better.
    """

    what: str
    values: Sequence[float]
    target: float
    unit: str = "x"
    at_least: bool = True

    @property
    def met(self) -> bool:
        """Whether the median reaches the target."""
        value = statistics.median(self.values)
        return value >= self.target if self.at_least else value <= self.target


@dataclass(frozen=True)
class Series:
    """A table that belongs to a benchmark: times by size, losses by step, ..."""

    columns: list[str]
    rows: list[list[float | str]]


def options(description: str | None, repetitions: int = 3) -> argparse.ArgumentParser:
    """Return a parser with the arguments that all benchmarks take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    parser.add_argument("--model", help="folder or hub name; without it the embedded SmolLM2-135M")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--repetitions", type=int, default=repetitions, help="of each contender, taking turns")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="folder with oasst/ift_pairs.jsonl and others; where it is absent, the embedded texts are used",
    )
    return parser


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, smoke: Mapping[str, Any]
) -> argparse.Namespace:
    """Read the arguments; with ``--smoke`` the sizes are those given here."""
    args = parser.parse_args(arguments)
    if args.smoke:
        vars(args).update({"repetitions": 1, **smoke})
    return args


class Bench:
    """One run of one benchmark: looks at the machine first, keeps the result last.

    Args:
        name: Of the result's file and of the block in docs/performance.md.
        title: For people.
        args: What `parse` returned.
    """

    def __init__(self, name: str, title: str, args: argparse.Namespace) -> None:
        from srlm_pipeline.cli import quiet_libraries

        quiet_libraries()
        self.name, self.title, self.args = name, title, args
        self.load = os.getloadavg()[0]
        self.say(f"{title} (a trial: the figures mean nothing)" if args.smoke else title)
        if self.load > BUSY:
            self.say(f"WARNING: the load average is {self.load:.2f}; on a machine in use these figures mean little")
        self._looks: list[Limits] = []
        self.look_at_the_machine()
        self.say(f"the machine: {describe_limits(self.limits)}")

    def look_at_the_machine(self) -> None:
        """Measure the limits once more: on a shared machine they change from minute to minute."""
        self._looks.append(measure_limits(self.args.device))

    @property
    def limits(self) -> Limits:
        """The best of what was measured so far."""
        looks = self._looks
        return Limits(*(max(getattr(look, name) for look in looks) for name in asdict(looks[0])))

    def say(self, text: str) -> None:
        """Print a line at once."""
        print(f"[{self.name}] {text}", flush=True)

    def finish(
        self,
        measurements: Sequence[Measurement],
        verdicts: Sequence[Verdict],
        notes: Sequence[str] = (),
        series: Series | None = None,
    ) -> None:
        """Print what was found and write it to the results folder."""
        slowest = min(look.bf16_flops for look in self._looks)
        drift = 1 - slowest / self.limits.bf16_flops
        if drift > DRIFT:
            self.say(f"WARNING: the machine was at times {drift:.0%} slower than at others: measure again")
        for m in measurements:
            share = f", {m.limit_share:.0%} of the machine's limit" if m.limit_share is not None else ""
            self.say(f"{m.name}: {spread(m.values)} {m.unit}{share}{f' ({m.note})' if m.note else ''}")
        for v in verdicts:
            sign = "at least" if v.at_least else "at most"
            self.say(
                f"{v.what}: {spread(v.values)}{v.unit}, target {sign} {number(v.target)}{v.unit}: "
                f"{'met' if v.met else 'NOT met'}"
            )
        for note in notes:
            self.say(note)
        around = circumstances()
        result = {
            "name": self.name,
            "title": self.title,
            "smoke": self.args.smoke,
            **around,
            "machine": {**around["machine"], "device": describe_device(self.args.device), "load_average": self.load},
            "limits": asdict(self.limits),
            "slowest_bf16_flops": slowest,
            # Folders by their names: where they lie on this machine is nobody's business.
            "arguments": {k: v.name if isinstance(v, Path) else str(v) for k, v in vars(self.args).items()},
            "measurements": [asdict(m) for m in measurements],
            "verdicts": [{**asdict(v), "met": v.met} for v in verdicts],
            "notes": list(notes),
            "series": asdict(series) if series else None,
        }
        self.say(f"written to {write_result(result)}")


def write_result(result: Mapping[str, Any]) -> Path:
    """Write a result atomically; trials go where they are not taken for measurements."""
    target = (SMOKE_RESULTS if result["smoke"] else RESULTS) / f"{result['name']}.json"
    _write(target, result)
    return target


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write what was found so far atomically, below what it was found with."""
    _write(path, {**circumstances(), **content})


def circumstances() -> dict[str, Any]:
    """Return what stands at the head of every record: when, of which commit, on which machine, with which packages."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }


def _write(path: Path, content: Mapping[str, Any]) -> None:
    from srlm_pipeline.files import replacing_file

    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def interleave(bench: Bench, contenders: Mapping[str, Callable[[int], Any]], repetitions: int) -> dict[str, list[Any]]:
    """Let contenders take turns (A B A B ...), so that a machine that changes its speed is fair to all.

    Args:
        bench: For saying how far it is.
        contenders: Each takes the number of the repetition.
        repetitions: Of each.
    """
    results: dict[str, list[Any]] = {name: [] for name in contenders}
    for repetition in range(repetitions):
        for name, run in contenders.items():
            gc.collect()
            result, seconds = timed(partial(run, repetition), bench.args.device)
            results[name].append(result)
            bench.say(f"{name}, {repetition + 1} of {repetitions}: {seconds:.1f} s")
        bench.look_at_the_machine()
    return results


def in_own_process(prepare: Callable[[], object], work: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Return what a function of a module returns in a fresh process.

    One contender's settings for the whole process, such as what ours asks of the C library, then do not reach another.

    Args:
        prepare: Called there first; for imports that are not to be measured.
        work: Not a lambda: the other process imports it.
        args: Its arguments.
        kwargs: Its arguments by name.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=prepare) as pool:
        return pool.submit(work, *args, **kwargs).result()


def timed(work: Callable[[], Result], device: str = "cpu") -> tuple[Result, float]:
    """Return a result and the seconds that it took, what an accelerator still has to do included."""
    started = time.perf_counter()
    result = work()
    synchronise(device)
    return result, time.perf_counter() - started


def synchronise(device: str) -> None:
    """Wait for an accelerator."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the quotients of neighbouring repetitions."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float]) -> str:
    """Return the median and, of several values, the range."""
    middle = number(statistics.median(values))
    return middle if len(values) < 2 else f"{middle} ({number(min(values))} to {number(max(values))})"


def number(value: float) -> str:
    """Return three significant digits, large numbers whole with commas."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def measure_limits(device: str, seconds: float = 1.0) -> Limits:
    """Measure the machine's peak matrix product and memory bandwidth: the best of what fits into a second each."""
    import torch

    def best(work: Callable[[], object]) -> float:
        work()
        times: list[float] = []
        while sum(times) < seconds or len(times) < 3:
            times.append(timed(work, device)[1])
        return min(times)

    width = 2048

    def matmul_rate(dtype: torch.dtype) -> float:
        square = torch.randn(width, width, device=device, dtype=dtype)
        return 2 * width**3 / best(lambda: torch.mm(square, square))

    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() * source.element_size() / best(lambda: target.copy_(source))
    return Limits(matmul_rate(torch.bfloat16), matmul_rate(torch.float32), copied)


def describe_limits(limits: Limits) -> str:
    """Return the limits in words."""
    return (
        f"{limits.bf16_flops / 1e9:.0f} GFLOP/s in bfloat16, {limits.f32_flops / 1e9:.0f} in float32, "
        f"{limits.bandwidth / 1e9:.1f} GB/s"
    )


def machine() -> dict[str, Any]:
    """Return what is known of the machine."""
    import psutil
    import torch

    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def describe_device(device: str) -> str:
    """Return the accelerator's name, or the device as it was given."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return device


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def versions() -> dict[str, str]:
    """Return the versions of the packages that matter."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def commit() -> str:
    """Return the commit that is checked out, ``+`` where files were changed since; empty outside of a repository."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return described.stdout.strip()


def model_folder(args: argparse.Namespace) -> Path:
    """Return the model's folder; the embedded model is converted on first use, as the pipeline does it."""
    from srlm_pipeline.config import load_settings
    from srlm_pipeline.store import open_store

    settings = load_settings("quickstart", {"base_model": args.model} if args.model else None)
    return Path(open_store(settings).base_model(settings))


def load(folder: Path, args: argparse.Namespace) -> LoadedModel:
    """Load a model as the pipeline does for inference."""
    from srlm_pipeline.config import ModelSettings
    from srlm_pipeline.models.loading import load_model

    return load_model(folder, ModelSettings(device=args.device))


def fresh_engine(loaded: LoadedModel, batch_size: int) -> TextEngine:
    """Return an engine that has read nothing yet; a used one may have kept the beginning of its last prompts."""
    from srlm_pipeline.generation.transformers_engine import TransformersEngine

    return TransformersEngine(loaded.model, loaded.tokenizer, "benchmark", batch_size)


@dataclass
class StepClock:
    """Notes when each training step ends; a `ProgressReporter` for our training, filled by a callback for others'.

    Attributes:
        started: When the training function was called.
        ends: When each optimiser step ended.
        losses: One per step, where they were logged.
    """

    started: float = field(default_factory=time.perf_counter)
    ends: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @contextmanager
    def task(self, description: str, total: int, unit: str, done: int = 0) -> Iterator[StepClock]:
        """Take part in a training as its progress display."""
        yield self

    def advance(self, amount: int = 1, note: str = "", found: int = 0) -> None:
        """Note the end of a step."""
        self.ends += [time.perf_counter()] * amount

    def within(self, note: str) -> None:
        """Take no notice: steps alone count."""

    def step_seconds(self, warm_up: int) -> float:
        """Return the median duration of the steps after the first few."""
        durations = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]
        return statistics.median(durations[max(0, warm_up - 1) :])

    @property
    def whole_seconds(self) -> float:
        """Time from the call to the end of the last step, preparation included."""
        return self.ends[-1] - self.started


class PeakMemory:
    """Samples this process's resident size while a block runs.

    Attributes:
        peak: Largest size seen, in bytes.
    """

    def __init__(self, every: float = 0.02) -> None:
        self.peak = 0
        self._every = every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        import psutil

        process = psutil.Process()
        while True:
            self.peak = max(self.peak, process.memory_info().rss)
            if self._stop.wait(self._every):
                return


def run_python(*arguments: str, environment: Mapping[str, str] | None = None) -> tuple[str, float]:
    """Run this interpreter in a process of its own.

    Args:
        arguments: Of the interpreter.
        environment: Variables that are added.

    Returns:
        What it printed, and its seconds from start to end.
    """
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout, seconds
