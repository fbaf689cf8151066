"""`srlm` as a process of its own, on a model small enough for a test; what is done to it is done with signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from test_loop import OVERRIDES

# Of waiting for what must come; a test that is right never waits so long.
PATIENCE = 240.0


@dataclass
class Process:
    """A running `srlm`, whose output goes to a file.

    Attributes:
        process: Its handle.
        output: The file.
    """

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait_until(self, happened: Callable[[], object]) -> None:
        """Wait until something has happened."""
        end = time.monotonic() + PATIENCE
        while not happened():
            assert self.process.poll() is None, f"ended too early:\n{self.said}"
            assert time.monotonic() < end, f"it never happened:\n{self.said}"
            time.sleep(0.02)

    def wait_for(self, words: str) -> None:
        """Wait until it has printed something."""
        self.wait_until(lambda: words in self.said)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def ends(self) -> int:
        """Return its exit status once it has ended."""
        return self.process.wait(PATIENCE)


def write_configuration(folder: Path, model: Path, **sections: dict[str, object]) -> Path:
    """Write a configuration for the tiny model; `sections` are laid over it."""
    settings = {**OVERRIDES, "base_model": str(model)}
    settings |= {name: {**settings.get(name, {}), **section} for name, section in sections.items()}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


@contextmanager
def started(home: Path, configuration: Path, *words: str) -> Iterator[Process]:
    """Start `srlm` in a Dagster home; it does not outlive the block."""
    home.mkdir(parents=True, exist_ok=True)
    output = home.parent / f"{home.name}-{time.monotonic_ns()}.txt"
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("SRLM_", "MLFLOW_TRACKING", "DAGSTER_"))},
        "DAGSTER_HOME": str(home),
        "SRLM_CONFIG": str(configuration),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "COLUMNS": "200",
    }
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "srlm_pipeline.cli", *words],
            cwd=home.parent,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Process(process, output)
    finally:
        process.kill()
        process.wait()
