"""vLLM as an engine: servers of our own, started when a model is first asked and ended when another one is.

Loading other weights into a running server would be quicker. But vLLM reports success where a part of the old model
stays in use (0.32 on a CPU keeps the old output layer where it shares its weights with the embedding), and nothing may
be computed on a wrong model. So each model gets fresh servers, which start side by side.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
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
from srlm_pipeline.generation.server_pool import ServerPool, for_each_of
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.models.loading import cuda_device_name

log = logging.getLogger(__name__)
Result = TypeVar("Result")

# vLLM schedules and queues by itself; with few requests in flight a GPU would wait for us.
IN_FLIGHT = 256
START_SECONDS = 1800
STOP_SECONDS = 30
_END_SECONDS = 5
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

    It has been started, and may be asked after `wait_until_up`.

    Args:
        checkpoint: The model.
        settings: `engine` and `model` are read.
        place: Among the servers of the model.
        devices: What it sees as CUDA_VISIBLE_DEVICES; None: what we see.
    """

    def __init__(self, checkpoint: Checkpoint, settings: Settings, place: int = 0, devices: str | None = None) -> None:
        import httpx2

        self._checkpoint, self._settings, self.place = checkpoint, settings, place
        self._name = "vllm" if settings.engine.vllm_servers == 1 else f"vllm-{place + 1}"
        self._keep_log = False
        python = _interpreter(settings)
        self._folder = Path(tempfile.mkdtemp(prefix="srlm-vllm-"))
        self._log = self._folder / "server.log"
        socket = self._folder / "socket"
        log.info("starting %s for %s; log: %s", self._name, checkpoint.path, self._log)
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", _GUARD, *_command(python, checkpoint, settings, socket)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=_environment(devices),
                start_new_session=True,
            )
        # No limits: engine.concurrency is the one that counts.
        self._http = httpx2.Client(transport=httpx2.HTTPTransport(uds=str(socket), limits=httpx2.Limits()))

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def has_ended(self) -> bool:
        """Whether the process has ended, or is about to: its requests fail a little before it has."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        return not self.alive

    def serves(self, checkpoint: Checkpoint, settings: Settings) -> bool:
        """Whether it runs with this model and as these settings would start it."""

        def read(chosen: Settings) -> tuple[object, ...]:
            engine = chosen.engine
            sizes = engine.vllm_servers, engine.data_parallel_size, engine.tensor_parallel_size
            return chosen.model, engine.vllm_python, engine.vllm_arguments, sizes

        own = self._checkpoint
        same_model = (own.path, own.digest) == (checkpoint.path, checkpoint.digest)
        return self.alive and same_model and read(self._settings) == read(settings)

    def client(self, settings: EngineSettings) -> CompletionClient:
        """Return what its completions are asked with."""
        return CompletionClient(settings, f"http://{self._name}/v1", self._http)

    def begin_to_end(self) -> None:
        """Tell the server to end; its log stays if it had ended by itself, or an error names it."""
        self._keep_log |= not self.alive
        assert self._process.stdin is not None
        self._process.stdin.close()

    def end(self) -> None:
        """Wait until the server, which has been told to, has ended with all its processes."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        # Whoever is left, where the guard itself was killed.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._http.close()
        if not self._keep_log:
            shutil.rmtree(self._folder, ignore_errors=True)

    def failure(self, what: str) -> ServerError:
        """Return an error with the end of the log."""
        self._keep_log = True
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        # Its last words are often "see root cause above", far above.
        causes = list(dict.fromkeys(found[1] for line in lines if (found := _RAISED.search(line))))
        tail = [f"  {line}" for line in lines[-_TAIL_LINES:]]
        named = [f"errors in it: {'; '.join(causes[-3:])}"] if causes else []
        return ServerError(
            f"vLLM for {self._checkpoint.path}",
            "\n".join([f"{what}; log: {self._log}", *named, "it ends with:", *tail]),
        )

    def wait_until_up(self) -> None:
        """Wait until it has loaded the model.

        Raises:
            ServerError: If it does not start, with the end of its log.
        """
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


class VllmEngine:
    """A `TextEngine` over vLLM. Its servers start with the first request, and again if another model came between.

    Args:
        checkpoint: The model.
        settings: `engine` and `model` are read.

    Raises:
        ServerError: If the settings need more devices than there are.
    """

    def __init__(self, checkpoint: Checkpoint, settings: Settings) -> None:
        from srlm_pipeline.models.loading import load_tokenizer

        server_devices(settings)
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
        servers = _serving(self._checkpoint, self._settings)
        settings = self._settings.engine
        chosen = for_each_of(len(servers), settings)
        pool = ServerPool(
            [server.client(chosen) for server in servers],
            str(self._checkpoint.path),
            self._checkpoint.path,
            settings.concurrency or IN_FLIGHT * settings.data_parallel_size,
            settings.max_retries + 1,
        )
        engine = OpenAIEngine(self._checkpoint, self._tokenizer, pool, self._settings.model.trust_remote_code)
        try:
            result = work(engine)
        except ServerError as error:
            ended = None if error.status else next((server for server in servers if server.has_ended()), None)
            if ended is None:
                raise
            raise ended.failure("it ended while it was working") from error
        for server, rests in zip(servers, pool.resting, strict=True):
            if rests and server.has_ended():
                log.warning("%s", server.failure("it ended while it was working, and the others did its work"))
        return result


_running: list[VllmServer] = []


def _serving(checkpoint: Checkpoint, settings: Settings) -> list[VllmServer]:
    """Return the servers of a model, all up; those of another end first, since each takes most of a GPU's memory."""
    up = {server.place: server for server in _running if server.serves(checkpoint, settings)}
    _end([server for server in _running if server not in up.values()])
    try:
        missing = [(place, devices) for place, devices in enumerate(server_devices(settings)) if place not in up]
        _running.extend(VllmServer(checkpoint, settings, *where) for where in missing)
        for server in _running:
            if server.place not in up:
                server.wait_until_up()
    except BaseException:
        stop_servers()
        raise
    return sorted(_running, key=lambda server: server.place)


@atexit.register
def stop_servers() -> None:
    """End the servers, if any run, and so give back the memory that they hold."""
    _end(_running)


def _end(servers: Sequence[VllmServer]) -> None:
    ending = list(servers)
    for server in ending:
        server.begin_to_end()
    for server in ending:
        _running.remove(server)
        server.end()


def server_devices(settings: Settings) -> list[str | None]:
    """Return for each vLLM server what it is to see as CUDA_VISIBLE_DEVICES; None where that is what we see.

    Args:
        settings: `engine` and `model.device` are read.

    Raises:
        ServerError: If there are not as many devices as the settings need.
    """
    engine = settings.engine
    each = engine.data_parallel_size * engine.tensor_parallel_size
    needed = each * engine.vllm_servers
    kind, _, number = settings.model.device.partition(":")
    if kind == "cuda" and number:
        if needed > 1:
            raise ServerError("vLLM", f"{_needs(settings)}, and model.device is {settings.model.device}: make it cuda")
        return [cuda_device_name(int(number))]
    if needed == 1 or not _computes_on_cuda(settings):
        return [None] * engine.vllm_servers
    n_found = _count_devices()
    if needed > n_found:
        raise ServerError("vLLM", f"{_needs(settings)}, and there are {n_found} (CUDA_VISIBLE_DEVICES counts)")
    if engine.vllm_servers == 1:
        return [None]
    shares = [range(start, start + each) for start in range(0, needed, each)]
    return [",".join(map(cuda_device_name, share)) for share in shares]


def _needs(settings: Settings) -> str:
    names = ("vllm_servers", "data_parallel_size", "tensor_parallel_size")
    sizes = {name: getattr(settings.engine, name) for name in names}
    told = " times ".join(f"engine.{name} {size}" for name, size in sizes.items() if size > 1)
    return f"{told} takes {math.prod(sizes.values())} devices"


def _computes_on_cuda(settings: Settings) -> bool:
    from srlm_pipeline.models.loading import choose_device

    return choose_device(settings.model.device).startswith("cuda")


def _count_devices() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return len(visible.split(","))
    import torch

    return torch.cuda.device_count()


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
        *_sizes(settings.engine),
        *settings.engine.vllm_arguments,
    ]


def _sizes(engine: EngineSettings) -> list[str]:
    sizes = {"--data-parallel-size": engine.data_parallel_size, "--tensor-parallel-size": engine.tensor_parallel_size}
    return [word for name, size in sizes.items() if size > 1 for word in (name, str(size))]


def _environment(devices: str | None) -> dict[str, str]:
    """Return our environment without telemetry, and with the devices that were chosen as the only ones."""
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    # It would close the server to us; the socket is private anyway.
    environment.pop("VLLM_API_KEY", None)
    if devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = devices
    return environment
