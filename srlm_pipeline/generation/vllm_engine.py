"""vLLM as an engine: a server of our own, started when a model is first asked and ended when another one is.

Loading other weights into a running server would be quicker. But vLLM reports success where a part of the old model
stays in use (0.32 on a CPU keeps the old output layer where it shares its weights with the embedding), and nothing may
be computed on a wrong model. So each model gets a fresh server.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from srlm_pipeline.config import EngineSettings, Settings
from srlm_pipeline.data.chat import render_user_turn
from srlm_pipeline.errors import ServerError
from srlm_pipeline.generation.completion_client import CompletionClient
from srlm_pipeline.generation.engine import Completion, GenerationRequest, Sampling
from srlm_pipeline.generation.openai_engine import OpenAIEngine
from srlm_pipeline.models.checkpoint import Checkpoint

log = logging.getLogger(__name__)
Result = TypeVar("Result")

# vLLM schedules and queues by itself; with few requests in flight a GPU would wait for us.
IN_FLIGHT = 256
START_SECONDS = 1800
STOP_SECONDS = 30
_TAIL_LINES = 15
# An exception as a traceback ends, bare or behind the prefix of a log line.
_RAISED = re.compile(r"(?:^|[])] )([\w.]*(?:Error|Exception): .+)")

# Stands between us and the server and ends the server's process group when our end of the pipe closes. So a pipeline
# that is killed, and cannot clean up, leaves no server behind that holds the GPU.
_GUARD = """
import os, signal, subprocess, sys, threading

server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

def end(*_):
    server.terminate()
    threading.Timer(15, os.killpg, (0, signal.SIGKILL)).start()

def end_with_pipeline():
    sys.stdin.buffer.read()
    end()

signal.signal(signal.SIGTERM, end)
threading.Thread(target=end_with_pipeline, daemon=True).start()
print("vLLM ended with exit code", server.wait(), flush=True)
os.killpg(0, signal.SIGKILL)
"""


class VllmServer:
    """One `vllm serve` of one model, on a Unix socket in a folder that only this user can open.

    Args:
        checkpoint: The model.
        settings: `engine` and `model` are read.

    Raises:
        ServerError: If it does not start, with the end of its log.
    """

    def __init__(self, checkpoint: Checkpoint, settings: Settings) -> None:
        import httpx2

        self._checkpoint, self._settings = checkpoint, settings
        python = _interpreter(settings)
        self._folder = Path(tempfile.mkdtemp(prefix="srlm-vllm-"))
        self._log = self._folder / "server.log"
        socket = self._folder / "socket"
        log.info("starting vLLM for %s; log: %s", checkpoint.path, self._log)
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", _GUARD, *_command(python, checkpoint, settings, socket)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=_environment(settings.model.device),
                start_new_session=True,
            )
        # No limits: engine.concurrency is the one that counts.
        self._http = httpx2.Client(transport=httpx2.HTTPTransport(uds=str(socket), limits=httpx2.Limits()))
        try:
            self._wait_until_up()
        except BaseException:
            self._end_process()
            raise

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def serves(self, checkpoint: Checkpoint, settings: Settings) -> bool:
        """Whether it runs with this model and as these settings would start it."""

        def read(chosen: Settings) -> tuple[object, ...]:
            return chosen.model, chosen.engine.vllm_python, chosen.engine.vllm_arguments

        own = self._checkpoint
        same_model = (own.path, own.digest) == (checkpoint.path, checkpoint.digest)
        return self.alive and same_model and read(self._settings) == read(settings)

    def client(self, settings: EngineSettings) -> CompletionClient:
        """Return what its completions are asked with."""
        return CompletionClient(settings, "http://vllm/v1", self._http)

    def close(self) -> None:
        """End the server with all its processes; its log stays only if it had ended by itself."""
        ended_by_itself = not self.alive
        self._end_process()
        self._http.close()
        if not ended_by_itself:
            shutil.rmtree(self._folder, ignore_errors=True)

    def failure(self, what: str) -> ServerError:
        """Return an error with the end of the log."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        # Its last words are often "see root cause above", far above.
        causes = list(dict.fromkeys(found[1] for line in lines if (found := _RAISED.search(line))))
        tail = [f"  {line}" for line in lines[-_TAIL_LINES:]]
        named = [f"errors in it: {'; '.join(causes[-3:])}"] if causes else []
        return ServerError(
            f"vLLM for {self._checkpoint.path}",
            "\n".join([f"{what}; log: {self._log}", *named, "it ends with:", *tail]),
        )

    def _wait_until_up(self) -> None:
        import httpx2

        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if not self.alive:
                raise self.failure("it did not start")
            with contextlib.suppress(httpx2.HTTPError):
                if self._http.get("http://vllm/health").is_success:
                    return
            time.sleep(0.5)
        raise self.failure(f"it was not ready within {START_SECONDS} s")

    def _end_process(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        # Whoever is left, where the guard itself was killed.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class VllmEngine:
    """A `TextEngine` over vLLM. Its server starts with the first request, and again if another model came between.

    Args:
        checkpoint: The model.
        settings: `engine` and `model` are read.
    """

    def __init__(self, checkpoint: Checkpoint, settings: Settings) -> None:
        from srlm_pipeline.models.loading import load_tokenizer

        self._checkpoint, self._settings = checkpoint, settings
        self._tokenizer = load_tokenizer(checkpoint.path, settings.model)

    @property
    def digest(self) -> str:
        """Fingerprint of the weights and of how they think."""
        return self._checkpoint.digest + self._settings.model.thinking.manner

    def render(self, text: str, reply_start: str = "") -> str:
        """Return the string that the model continues in reply to one user message."""
        return render_user_turn(self._tokenizer, text, reply_start)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        on_finished: Callable[[list[Completion]], None] | None = None,
    ) -> list[Completion]:
        """Complete every request; see `OpenAIEngine.generate`."""
        if not requests:
            return []
        return self._ask(lambda engine: engine.generate(requests, sampling, on_finished))

    def next_token_distribution(
        self,
        prefixes: Sequence[str],
        options: Sequence[str],
        on_finished: Callable[[int], None] | None = None,
    ) -> NDArray[np.float64]:
        """Return option probabilities; see `OpenAIEngine.next_token_distribution`."""
        if not prefixes:
            return np.zeros((0, len(options)))
        return self._ask(lambda engine: engine.next_token_distribution(prefixes, options, on_finished))

    def _ask(self, work: Callable[[OpenAIEngine], Result]) -> Result:
        server = _serving(self._checkpoint, self._settings)
        engine = OpenAIEngine(
            self._checkpoint,
            self._tokenizer,
            server.client(self._settings.engine),
            str(self._checkpoint.path),
            self._settings.engine.concurrency or IN_FLIGHT,
            self._settings.model.trust_remote_code,
        )
        try:
            return work(engine)
        except ServerError as error:
            if server.alive:
                raise
            raise server.failure("it ended while it was working") from error


_running: VllmServer | None = None


def _serving(checkpoint: Checkpoint, settings: Settings) -> VllmServer:
    """Return the server of a model; at most one runs, since each takes most of the GPU's memory."""
    global _running
    if _running is None or not _running.serves(checkpoint, settings):
        stop_server()
        _running = VllmServer(checkpoint, settings)
    return _running


@atexit.register
def stop_server() -> None:
    """End the server, if one runs, and so give back the memory that it holds."""
    global _running
    if _running is not None:
        _running.close()
        _running = None


def _interpreter(settings: Settings) -> str:
    chosen = settings.engine.vllm_python or sys.executable
    found = shutil.which(Path(chosen).expanduser())
    if found is None:
        raise ServerError("vLLM", f"engine.vllm_python is {chosen}, and there is no such program")
    return found


def _command(python: str, checkpoint: Checkpoint, settings: Settings, socket: Path) -> list[str]:
    return [
        *(python, "-m", "vllm.entrypoints.cli.main", "serve", str(checkpoint.path)),
        *("--uds", str(socket), "--dtype", settings.model.dtype),
        # Otherwise the model's generation_config.json would change how tokens are drawn.
        *("--generation-config", "vllm"),
        *(["--trust-remote-code"] if settings.model.trust_remote_code else []),
        *settings.engine.vllm_arguments,
    ]


def _environment(device: str) -> dict[str, str]:
    """Return our environment without telemetry, and with the device that was chosen as the only one."""
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    # It would close the server to us; the socket is private anyway.
    environment.pop("VLLM_API_KEY", None)
    kind, _, number = device.partition(":")
    if kind == "cuda" and number:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(number)] if visible else number
    return environment
