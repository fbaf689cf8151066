"""Training in processes of its own, one per device, started by torchrun and ended with whoever started them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from srlm_pipeline.config import Settings, TrainingSettings
from srlm_pipeline.errors import SrlmError
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.training.agent import PARENT
from srlm_pipeline.training.common import Launch, Load, TrainingJob, TrainingRun
from srlm_pipeline.training.devices import Division, divide
from srlm_pipeline.training.early_stopping import EarlyStopping
from srlm_pipeline.training.exchange import Exchange, Listener, Order, give_back_memory

# Under a training's work folder.
_FOLDER, _OUTPUT = "processes", "output.log"
# Seconds between two looks at what the processes tell.
_PAUSE = 0.1
# Seconds for killed processes to be gone.
_GONE = 30.0
_TAIL_LINES = 20
# In torchrun's report: SIGKILL. It ends the others by another signal.
_KILLED = re.compile(r"exitcode\s*: -9\b")


class TrainingProcessError(RuntimeError):
    """A process that trained has ended for no reason that a person could mend in the settings; worth another try."""


def launch_for(settings: Settings) -> Launch | None:
    """Return what trains in processes of their own; None where this one can train by itself.

    Args:
        settings: `training.launcher` and `model.device` are read.

    Raises:
        DivisionError: If the devices are too few, or none that the strategy takes.
        ModelError: If the device that the settings name is not available.
    """
    division = divide(settings.training.launcher, settings.model)
    return Launcher(division) if division.apart else None


class Launcher:
    """Trains stages in processes of their own.

    Args:
        division: Among which devices, and how.
    """

    def __init__(self, division: Division) -> None:
        self._division = division

    def __call__(self, stage: Callable[..., TrainingRun], load: Load, job: TrainingJob, *rest: Any) -> TrainingRun:
        """Train; see `Launch`.

        Raises:
            DivisionError: If the stage cannot be divided so.
            SrlmError: What a process said that a person can mend.
            TrainingProcessError: If one ended otherwise.
        """
        for settings in rest:
            if isinstance(settings, TrainingSettings):
                self._division.require(settings)
        give_back_memory()
        folder = job.work / _FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        exchange = Exchange(folder)
        exchange.give(Order(stage, (self._there(job), *(_without_comparison(argument) for argument in rest))))
        early_stopping = next((argument for argument in rest if isinstance(argument, EarlyStopping)), None)
        self._run(exchange, Listener(exchange, job.progress, early_stopping))
        told = exchange.result()
        if told is None:
            raise _failure(exchange)
        run = TrainingRun(load(exchange.model, job), **told)
        shutil.rmtree(folder, ignore_errors=True)
        return run

    def _there(self, job: TrainingJob) -> TrainingJob:
        """Return the job as the processes have it."""
        device = "cuda" if self._division.on_cuda else self._division.devices[0]
        model = job.model.model_copy(update={"device": device})
        return replace(job, model=model, progress=NullProgress(), launch=None, strategy=self._division.strategy)

    def _run(self, exchange: Exchange, listener: Listener) -> None:
        """Start the processes, listen until they have ended, and leave none behind."""
        number = str(self._division.processes)
        options = ["--standalone", "--nproc-per-node", number, "--max-restarts", "0"]
        worker = ["-m", "srlm_pipeline.training.worker", str(exchange.folder)]
        with (exchange.folder / _OUTPUT).open("wb") as output, exchange.listening() as stream:
            agent = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "srlm_pipeline.training.agent", *options, *worker],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment(),
                # Ctrl-C is for the stage, which ends them.
                start_new_session=True,
            )
            try:
                ended = False
                while not ended:
                    ended = agent.poll() is not None
                    for event in exchange.events(stream):
                        listener.hear(event)
                    if not ended:
                        time.sleep(_PAUSE)
            finally:
                _end(agent, exchange.folder)
                listener.close()

    def _environment(self) -> dict[str, str]:
        import torch

        division = self._division
        threads = max(1, torch.get_num_threads() // division.processes)
        on_cpu = {} if division.on_cuda else {"ACCELERATE_USE_CPU": "true"}
        own = {PARENT: str(os.getpid()), "OMP_NUM_THREADS": str(threads), **on_cpu, **division.visible()}
        return {**os.environ, **own}


def _without_comparison(argument: Any) -> Any:
    """Return what can be written in a file: an early stopping compares models here, where the stage is."""
    return replace(argument, compare=_nobody) if isinstance(argument, EarlyStopping) else argument


def _nobody(*_: Any) -> Any:
    raise AssertionError("the stage is asked")


def _failure(exchange: Exchange) -> Exception:
    failures = exchange.failures()
    if failures and failures[0]["sentence"] is not None:
        return SrlmError(failures[0]["sentence"])
    output = exchange.folder / _OUTPUT
    said = output.read_text(encoding="utf-8", errors="replace")
    killed = _KILLED.search(said)
    if failures and not killed:
        detail = failures[0]["detail"]
        return TrainingProcessError(f"a process that trained has failed; all output is in {output}:\n{detail}")
    how = "was killed, as for lack of memory" if killed else "has ended"
    tail = "\n".join(f"  {line}" for line in said.splitlines()[-_TAIL_LINES:])
    return TrainingProcessError(f"a process that trained {how}; all output is in {output}, which ends so:\n{tail}")


def _end(agent: subprocess.Popen[bytes], folder: Path) -> None:
    """Kill torchrun and the processes that it has started, and wait until they are gone: another try uses their files.

    They are killed with it by the operating system; those that had no time to ask for that, by their parent's number.
    """
    family = {int(path.read_text() or 0) for path in folder.glob("process-*")}
    with suppress(psutil.NoSuchProcess):
        family |= {child.pid for child in psutil.Process(agent.pid).children(recursive=True)}
    agent.kill()
    agent.wait()
    alive = [process for number in family if (process := _still(number, folder))]
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_GONE)


def _still(number: int, folder: Path) -> psutil.Process | None:
    """Return a process that trains in a folder, unless it has ended; its number may be another one's by now."""
    try:
        process = psutil.Process(number)
        return process if str(folder) in process.cmdline() else None
    except psutil.NoSuchProcess:
        return None
