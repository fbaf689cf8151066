"""The vLLM engine's own server: started, exchanged and ended, with a stand-in for vLLM; what it writes is held by the
conformance suite."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from srlm_pipeline.commands.diagnosis import _engine
from srlm_pipeline.config import EngineSettings, ModelSettings, Settings
from srlm_pipeline.errors import ServerError
from srlm_pipeline.generation import vllm_engine
from srlm_pipeline.generation.engine import Completion, GenerationRequest, Sampling
from srlm_pipeline.generation.opening import release_engines
from srlm_pipeline.generation.server_pool import ServerShares
from srlm_pipeline.generation.vllm_engine import VllmEngine
from srlm_pipeline.models.checkpoint import Checkpoint

FAKE = Path(__file__).parent / "fake_vllm"


@pytest.fixture(autouse=True)
def fake_vllm(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    # Not the test's own folder: a socket's path must be short.
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("v")))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("PYTHONPATH", str(FAKE))
    monkeypatch.setenv("FAKE_VLLM_NOTES", str(tmp_path / "notes"))
    monkeypatch.setattr("srlm_pipeline.generation.completion_client._LONGEST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    yield
    release_engines()


def starts(tmp_path: Path) -> list[dict[str, Any]]:
    notes = tmp_path / "notes"
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def engine_of(model: Path, digest: str = "digest", device: str = "auto", **settings: Any) -> VllmEngine:
    engine = EngineSettings(kind="vllm", max_retries=1, **settings)
    return VllmEngine(
        Checkpoint(model, "tiny", digest, None), Settings(engine=engine, model=ModelSettings(device=device))
    )


def write(engine: VllmEngine) -> list[Completion]:
    return engine.generate([GenerationRequest("key", engine.render("hi"), 1)], Sampling(max_new_tokens=8))


def runs(process: int) -> bool:
    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE


def wait_until_ended(processes: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(runs(process) for process in processes):
        assert time.monotonic() < deadline, "still running"
        time.sleep(0.05)


def test_the_server_starts_with_the_first_request_and_stays_for_the_next(tiny_model: Path, tmp_path: Path) -> None:
    engine = engine_of(tiny_model, vllm_arguments=("--max-model-len", "1024"))
    assert engine.generate([], Sampling()) == []
    assert not starts(tmp_path)
    assert write(engine) == [Completion("key", "always the same", 4, "stop")]
    assert write(engine_of(tiny_model, vllm_arguments=("--max-model-len", "1024"), concurrency=3))
    (start,) = starts(tmp_path)
    assert start["arguments"][:2] == ["serve", str(tiny_model)]
    assert start["arguments"][4:] == ["--dtype", "auto", "--generation-config", "vllm", "--max-model-len", "1024"]


def test_each_model_gets_a_fresh_server_and_the_old_one_ends(tiny_model: Path, tmp_path: Path) -> None:
    first, retrained = engine_of(tiny_model), engine_of(tiny_model, "another digest")
    write(first)
    write(retrained)
    write(first)
    assert len(starts(tmp_path)) == 3
    wait_until_ended([process for start in starts(tmp_path)[:2] for process in start["processes"]])
    assert all(runs(process) for process in starts(tmp_path)[2]["processes"])


def test_releasing_ends_the_server_with_its_helpers_and_files(tiny_model: Path, tmp_path: Path) -> None:
    write(engine_of(tiny_model))
    (start,) = starts(tmp_path)
    folder = Path(start["arguments"][3]).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    release_engines()
    wait_until_ended(start["processes"])
    assert not folder.exists()


def test_a_killed_pipeline_leaves_no_server(tiny_model: Path, tmp_path: Path) -> None:
    code = f"""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_vllm_engine import engine_of, write
        write(engine_of(Path({str(tiny_model)!r})))
        print("written", flush=True)
        time.sleep(600)
    """
    pipeline = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert pipeline.stdout is not None
    assert pipeline.stdout.readline() == "written\n"
    (start,) = starts(tmp_path)
    assert all(runs(process) for process in start["processes"])
    pipeline.send_signal(signal.SIGKILL)
    pipeline.wait()
    wait_until_ended(start["processes"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_guard_leaves_no_server_behind_the_next_one(tiny_model: Path, tmp_path: Path, number: int) -> None:
    engine = engine_of(tiny_model)
    write(engine)
    (start,) = starts(tmp_path)
    guard = psutil.Process(start["processes"][0]).ppid()
    (server,) = vllm_engine._running
    os.kill(guard, number)
    # Not `wait_until_ended`: a dead process with a thread that is not yet gone has not ended for its parent.
    while server.alive:
        time.sleep(0.05)
    assert write(engine)
    wait_until_ended(start["processes"])


def test_a_server_that_does_not_start_says_why(tiny_model: Path) -> None:
    with pytest.raises(ServerError) as raised:
        write(engine_of(tiny_model, vllm_arguments=("--fails",)))
    said = str(raised.value)
    assert f"vLLM for {tiny_model}: it did not start; log: " in said
    assert "ValueError: Head size 8 is not supported" in said
    assert said.endswith("  vLLM ended with exit code 1")


def test_a_server_that_dies_says_why_and_the_next_request_starts_another(tiny_model: Path, tmp_path: Path) -> None:
    engine = engine_of(tiny_model, vllm_arguments=("--dies",))
    for _ in range(2):
        with pytest.raises(ServerError, match=r"ended while it was working(.|\n)*illegal memory access"):
            write(engine)
    assert len(starts(tmp_path)) == 2


def test_an_interpreter_that_is_not_there_is_named(tiny_model: Path) -> None:
    with pytest.raises(ServerError, match=r"engine.vllm_python is /nowhere/python, and there is no such program"):
        write(engine_of(tiny_model, vllm_python="/nowhere/python"))


@pytest.mark.parametrize(("visible", "expected"), [(None, "1"), ("4,7", "7")])
def test_the_server_gets_the_chosen_device_and_no_telemetry(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: str
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    write(engine_of(tiny_model, device="cuda:1"))
    (start,) = starts(tmp_path)
    assert start["environment"] == {"CUDA_VISIBLE_DEVICES": expected, "DO_NOT_TRACK": "1", "VLLM_API_KEY": None}
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


def test_several_servers_start_side_by_side_each_on_devices_of_its_own(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srlm_pipeline.models.loading.choose_device", lambda _: "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4,6,7")
    monkeypatch.setattr(vllm_engine, "START_SECONDS", 60)
    sizes = {"vllm_servers": 2, "tensor_parallel_size": 2, "vllm_arguments": ("--meets", "2")}
    # Each is up once both have been started: one after the other they would never be.
    engine = engine_of(tiny_model, device="cuda", **sizes)
    shares = ServerShares()
    requests = [GenerationRequest(str(n), engine.render("hi"), n) for n in range(40)]
    assert len(engine.generate(requests, Sampling(max_new_tokens=8))) == 40
    started = starts(tmp_path)
    assert sorted(start["environment"]["CUDA_VISIBLE_DEVICES"] for start in started) == ["3,4", "6,7"]
    assert all(start["arguments"][8:10] == ["--tensor-parallel-size", "2"] for start in started)
    told = shares.told()["servers"]
    assert set(told) == {"vllm-1", "vllm-2"}
    assert sum(share["answers"] for share in told.values()) == 40
    write(engine)
    assert len(starts(tmp_path)) == 2, "they stay for the next"
    write(engine_of(tiny_model, "another digest", "cuda", **sizes))
    assert len(starts(tmp_path)) == 4
    wait_until_ended([process for start in started for process in start["processes"]])


def test_of_a_server_that_is_killed_half_way_every_item_is_done_once_and_the_next_batch_starts_it_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kill = tmp_path / "kill"
    monkeypatch.setenv("FAKE_VLLM_KILL", str(kill))
    engine = engine_of(tiny_model, vllm_servers=2, concurrency=2)
    requests = [GenerationRequest(str(n), engine.render("hi"), n) for n in range(60)]
    finished: list[str] = []

    def keep(batch: list[Completion]) -> None:
        if len(finished) < 20 <= len(finished) + len(batch):
            kill.touch()
        finished.extend(completion.key for completion in batch)

    written = engine.generate(requests, Sampling(max_new_tokens=8), keep)
    assert not kill.exists(), "one has died"
    assert [completion.key for completion in written] == [request.key for request in requests]
    assert sorted(finished, key=int) == [request.key for request in requests]
    assert "ended while it was working, and the others did its work" in caplog.text
    assert write(engine)
    assert len(starts(tmp_path)) == 3
    assert all(server.alive for server in vllm_engine._running)


def test_when_one_of_several_does_not_start_none_is_left(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="it did not start"):
        write(engine_of(tiny_model, vllm_servers=2, vllm_arguments=("--fails",)))
    assert not vllm_engine._running


@pytest.mark.parametrize(
    ("device", "sizes", "said"),
    [
        (
            "cuda",
            {"vllm_servers": 2, "data_parallel_size": 2},
            "engine.vllm_servers 2 times engine.data_parallel_size 2 takes 4 devices, and there are 2",
        ),
        ("cuda:1", {"tensor_parallel_size": 2}, "takes 2 devices, and model.device is cuda:1: make it cuda"),
    ],
)
def test_more_devices_than_there_are_are_refused_before_anything_starts(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, device: str, sizes: dict[str, int], said: str
) -> None:
    monkeypatch.setattr("srlm_pipeline.models.loading.choose_device", lambda _: "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ServerError, match=said):
        engine_of(tiny_model, device=device, **sizes)
    with pytest.raises(ServerError, match=said):
        _engine(Settings(engine=EngineSettings(kind="vllm", **sizes), model=ModelSettings(device=device)))


def test_one_server_takes_the_sizes_and_sees_all_devices(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srlm_pipeline.models.loading.choose_device", lambda _: "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    write(engine_of(tiny_model, device="cuda", data_parallel_size=4, vllm_arguments=("--max-model-len", "1024")))
    (start,) = starts(tmp_path)
    assert start["arguments"][8:] == ["--data-parallel-size", "4", "--max-model-len", "1024"]
    assert start["environment"]["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
