"""Several servers behind one engine: who gets what, what becomes of the work of one that fails, what is refused."""

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from completion_server import CompletionServer, Fault, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_pipeline.commands import launch
from srlm_pipeline.commands.diagnosis import _engine
from srlm_pipeline.config import EngineSettings, ModelSettings, Settings
from srlm_pipeline.errors import ModelError, ServerError
from srlm_pipeline.generation.completion_client import Answer
from srlm_pipeline.generation.engine import Completion, GenerationRequest, Sampling
from srlm_pipeline.generation.journal import Journal
from srlm_pipeline.generation.openai_engine import OpenAIEngine, open_openai_engine
from srlm_pipeline.generation.parallel import in_parallel
from srlm_pipeline.generation.server_pool import ServerPool, ServerShares
from srlm_pipeline.generation.stage import Ask, generate_all
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.models.loading import load_model
from srlm_pipeline.progress import NullProgress

BROKEN = Fault(500, '{"error": "out of memory"}')
SAMPLING = Sampling(1.0, 0.9, 4)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srlm_pipeline.generation.completion_client._LONGEST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


@pytest.fixture
def servers(tiny_model: Path) -> Iterator[list[CompletionServer]]:
    loaded = load_model(tiny_model, ModelSettings(device="cpu", dtype="float32"))
    with serving(loaded, "tiny") as first, serving(loaded, "tiny") as second:
        yield [first, second]


def settings_for(servers: Sequence[CompletionServer], **more: Any) -> Settings:
    chosen = {"kind": "openai", "base_url": [s.address for s in servers], "model": "{name}", "max_retries": 2}
    return Settings(engine=EngineSettings.model_validate({**chosen, "concurrency": 2, **more}))


def open_for(model: Path, servers: Sequence[CompletionServer], **more: Any) -> OpenAIEngine:
    return open_openai_engine(Checkpoint(model, "tiny", "digest", None), settings_for(servers, **more))


def requests_for(engine: OpenAIEngine, count: int) -> list[GenerationRequest]:
    return [GenerationRequest(str(n), engine.render("hi"), n) for n in range(count)]


def test_servers_share_the_work_and_write_what_one_would(tiny_model: Path, servers: list[CompletionServer]) -> None:
    alone, both = open_for(tiny_model, servers[:1]), open_for(tiny_model, servers)
    expected = alone.generate(requests_for(alone, 20), SAMPLING)
    asked_before = len(servers[0].requests)
    shares = ServerShares()
    assert both.generate(requests_for(both, 20), SAMPLING) == expected
    asked = [len(servers[0].requests) - asked_before, len(servers[1].requests)]
    assert sum(asked) == 20
    assert min(asked) > 3, "neither waits while the other works"
    tokens = sum(completion.n_tokens for completion in expected)
    told = shares.told()["servers"]
    assert sorted(share["answers"] for share in told.values()) == sorted(asked)
    assert sum(share["tokens"] for share in told.values()) == tokens
    assert set(told) == {server.address.removeprefix("http://").removesuffix("/v1") for server in servers}


def test_probabilities_are_asked_of_all_servers_too(tiny_model: Path, servers: list[CompletionServer]) -> None:
    prefixes = [f"{n} Score: " for n in range(12)]
    alone = open_for(tiny_model, servers[:1]).next_token_distribution(prefixes, ["0", "1"])
    both = open_for(tiny_model, servers).next_token_distribution(prefixes, ["0", "1"])
    assert np.array_equal(alone, both)
    assert servers[1].requests


def test_of_a_server_that_dies_half_way_every_item_is_done_once(
    tiny_model: Path, servers: list[CompletionServer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    servers[0].dies_after = 7
    engine, shares = open_for(tiny_model, servers), ServerShares()
    asks = [Ask(str(n), "hi", n) for n in range(30)]
    with caplog.at_level(logging.WARNING):
        written = generate_all(engine, asks, SAMPLING, "", NullProgress(), Journal(tmp_path))
    assert [completion.key for completion in written] == [ask.key for ask in asks]
    lines = [json.loads(line)["key"] for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert len(lines) == len(set(lines)) == 30
    told = list(shares.told()["servers"].values())
    assert sorted(share["answers"] for share in told) == [7, 23]
    assert sum(share["failures"] for share in told) > 0
    assert "no server answers" in caplog.text
    assert "the other servers do its work" in caplog.text
    # A rerun finds everything in the journal.
    asked = len(servers[1].requests)
    assert generate_all(engine, asks, SAMPLING, "", NullProgress(), Journal(tmp_path)) == written
    assert len(servers[1].requests) == asked


def test_a_server_that_is_back_is_given_work_again(tiny_model: Path, servers: list[CompletionServer]) -> None:
    engine = open_for(tiny_model, servers)
    servers[0].dies_after = 3
    finished: list[Completion] = []

    def restart(batch: list[Completion]) -> None:
        finished.extend(batch)
        if len(finished) > 15:
            servers[0].dies_after = None

    engine.generate(requests_for(engine, 60), SAMPLING, restart)
    assert len({completion.key for completion in finished}) == len(finished) == 60
    assert len(servers[0].requests) > 3 + 3


def test_a_server_that_is_back_with_another_model_gets_nothing(
    tiny_model: Path, servers: list[CompletionServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_for(tiny_model, servers)
    next_fault = servers[0].next_fault

    def started_anew() -> Fault | None:
        servers[0].name = "M7"
        return BROKEN if len(servers[0].requests) <= 4 else next_fault()

    monkeypatch.setattr(servers[0], "next_fault", started_anew)
    assert len(engine.generate(requests_for(engine, 30), SAMPLING)) == 30
    assert len(servers[0].requests) <= 2, "what was in progress when it failed"


@pytest.mark.parametrize("which", [0, 1])
def test_nothing_is_computed_where_a_server_has_another_model(
    tiny_model: Path, servers: list[CompletionServer], which: int
) -> None:
    servers[which].name = "M7"
    address = servers[which].address.removeprefix("http://").removesuffix("/v1")
    with pytest.raises(ModelError, match=f"the server {address} does not serve it under the name 'tiny'"):
        open_for(tiny_model, servers).generate(requests_for(open_for(tiny_model, servers), 3), SAMPLING)
    assert not [*servers[0].requests, *servers[1].requests]
    with pytest.raises(ServerError, match=r"no model is served by all of them: .* serves (tiny|M7); .* serves"):
        _engine(settings_for(servers))


def test_a_server_that_does_not_answer_at_the_start_is_told_and_its_work_done(
    tiny_model: Path, servers: list[CompletionServer], caplog: pytest.LogCaptureFixture
) -> None:
    gone = CompletionServer(servers[0].loaded, "tiny", address="http://127.0.0.1:9/v1")
    with caplog.at_level(logging.WARNING):
        engine = open_for(tiny_model, [servers[0], gone])
        assert len(engine.generate(requests_for(engine, 5), SAMPLING)) == 5
    assert "server http://127.0.0.1:9/v1: no server answers" in caplog.text
    with pytest.raises(ServerError, match=r"127.0.0.1:9/v1: no server answers"):
        _engine(settings_for([servers[0], gone]))
    with pytest.raises(ServerError, match=r"no server answers .* 1 try.: is it running"):
        alone = open_for(tiny_model, [gone, CompletionServer(gone.loaded, "tiny", address="http://127.0.0.1:19/v1")])
        alone.generate(requests_for(alone, 1), SAMPLING)


def test_a_run_that_somebody_starts_computes_nothing_while_a_server_does_not_answer(
    servers: list[CompletionServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = CompletionServer(servers[0].loaded, "tiny", address="http://127.0.0.1:9/v1")
    chosen = settings_for([servers[0], gone])
    monkeypatch.setattr(launch, "load_settings", lambda *_: chosen)
    nothing: Any = None
    with pytest.raises(ServerError, match=r"127.0.0.1:9/v1: no server answers"):
        launch._run_assets(nothing, nothing, "seed", "seed", None, [], {}, launch.StageTimes())


def test_the_doctor_says_what_each_serves(servers: list[CompletionServer]) -> None:
    said = _engine(settings_for(servers))
    assert said.endswith(f"; {servers[0].address} serves tiny; {servers[1].address} serves tiny")


def test_when_all_have_died_the_finished_items_are_kept(tiny_model: Path, servers: list[CompletionServer]) -> None:
    for server in servers:
        server.dies_after = 5
    engine = open_for(tiny_model, servers)
    finished: list[Completion] = []
    with pytest.raises(ServerError, match="no server answers"):
        engine.generate(requests_for(engine, 40), SAMPLING, finished.extend)
    assert len({completion.key for completion in finished}) == len(finished) == 10


def test_a_request_at_fault_is_sent_nowhere_else(tiny_model: Path, servers: list[CompletionServer]) -> None:
    for server in servers:
        server.always = Fault(400, '{"error": "top_p must be positive"}')
    engine = open_for(tiny_model, servers)
    with pytest.raises(ServerError, match="top_p must be positive"):
        engine.generate(requests_for(engine, 1), SAMPLING)
    assert len(servers[0].requests) + len(servers[1].requests) == 1


@pytest.mark.parametrize(
    ("base_url", "said"),
    [
        (["http://a/v1", "http://a/v1/"], "engine.base_url names http://a/v1 twice"),
        ([], "engine.kind openai needs engine.base_url"),
        (["http://a/v1", ""], "engine.kind openai needs engine.base_url"),
    ],
)
def test_addresses_that_cannot_be_meant_are_refused(base_url: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EngineSettings.model_validate({"kind": "openai", "base_url": base_url})


class ScriptedClient:
    """A server that follows a script of outcomes and listings; what it does after the script, it does well."""

    def __init__(self, name: str, script: list[bool], listed: list[bool]) -> None:
        self.name, self._script, self._listed = name, iter(script), iter(listed)
        self._lock, self.done, self.right = threading.Lock(), Counter[int](), True

    def served(self) -> dict[str, int | None]:
        with self._lock:
            self.right = next(self._listed, True)
        return {"M1" if self.right else "M2": None}

    def complete(self, model: str, prompt: Sequence[int], **_: Any) -> Answer:
        with self._lock:
            if not next(self._script, True):
                raise ServerError(self.name, "broken", 500)
            assert self.right, "asked while it serves another model"
            self.done[prompt[0]] += 1
        return Answer(f"{prompt[0]}", "stop", 1, 1, {})


@settings(max_examples=60, deadline=None)
@given(
    scripts=st.lists(st.tuples(st.lists(st.booleans()), st.lists(st.booleans(), max_size=5)), min_size=2, max_size=4),
    items=st.integers(1, 30),
    in_flight=st.integers(1, 4),
)
def test_whatever_fails_an_item_is_answered_once_or_the_error_is_told(
    scripts: list[tuple[list[bool], list[bool]]], items: int, in_flight: int
) -> None:
    clients = [ScriptedClient(f"s{n}", script, [True, *listed]) for n, (script, listed) in enumerate(scripts)]
    pool = ServerPool(clients, "M1", Path("M1"), in_flight, 3)  # type: ignore[arg-type]
    pool.require()
    finished: list[str] = []
    try:
        in_parallel(items, lambda n: pool.complete([n]).text, pool.in_flight, finished.extend)
    except (ServerError, ModelError):
        assert any(not all(script) for script, _ in scripts)
    else:
        assert sorted(map(int, finished)) == list(range(items))
    done = sum((client.done for client in clients), Counter[int]())
    assert Counter(map(int, finished)) == done
    assert set(done.values()) <= {1}
