"""The engine over a server that is wrong, slow, broken or full; what it can do is in the conformance suite."""

import json
import logging
import math
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from completion_server import CompletionServer, Fault, serving

from srlm_pipeline.config import EngineSettings, ModelSettings, Settings
from srlm_pipeline.errors import ModelError, ServerError
from srlm_pipeline.generation.completion_client import CompletionClient
from srlm_pipeline.generation.engine import Completion, GenerationRequest, Sampling
from srlm_pipeline.generation.openai_engine import OpenAIEngine, open_openai_engine, served_name
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.models.loading import load_model

KEY = "sk-very-secret"
BUSY = Fault(429, '{"error": "too many requests"}')
BROKEN = Fault(500, '{"error": "out of memory"}')


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's pause between tries, and ours."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("srlm_pipeline.generation.completion_client._LONGEST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def server(tiny_model: Path) -> Iterator[CompletionServer]:
    with serving(load_model(tiny_model, ModelSettings(device="cpu", dtype="float32")), "tiny") as running:
        yield running


def open_for(model: Path, address: str, **settings: Any) -> OpenAIEngine:
    engine = EngineSettings.model_validate(
        {"kind": "openai", "base_url": address, "model": "{name}", "max_retries": 2, **settings}
    )
    return open_openai_engine(Checkpoint(model, "tiny", "digest", None), Settings(engine=engine))


def write(engine: OpenAIEngine, count: int = 1, finished: list[Completion] | None = None) -> list[Completion]:
    requests = [GenerationRequest(str(n), engine.render("hi"), 2**62 + n) for n in range(count)]
    return engine.generate(requests, Sampling(1.0, 0.9, 4), None if finished is None else finished.extend)


def test_requests_carry_everything_that_decides_what_is_drawn(server: CompletionServer, tiny_model: Path) -> None:
    engine = open_for(tiny_model, server.address)
    prompt = engine.render("hi")
    engine.generate([GenerationRequest("k", prompt, 2**62 + 5)], Sampling(0.7, 0.9, 4, stop=("x",)))
    assert server.requests == [
        {
            "model": "tiny",
            "prompt": server.loaded.tokenizer(prompt, add_special_tokens=False).input_ids,
            "temperature": 0.7,
            "top_p": 0.9,
            "max_tokens": 4,
            "stop": ["x"],
            "seed": 5,
            "stop_token_ids": [server.loaded.tokenizer.eos_token_id],
            "skip_special_tokens": True,
            "return_token_ids": True,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
    ]


def test_drawn_tokens_are_known_where_the_server_tells_them(server: CompletionServer, tiny_model: Path) -> None:
    engine = open_for(tiny_model, server.address)
    requests = [GenerationRequest(str(seed), engine.render("hi"), seed) for seed in range(4)]
    for completion in engine.generate(requests, Sampling(1.0, 1.0, 30)):
        assert completion.token_ids is not None
        assert server.loaded.tokenizer.decode(completion.token_ids) == completion.text, "without the end token"
        assert len(completion.token_ids) == completion.n_tokens - (completion.finish_reason == "stop")
    server.names_tokens = False
    assert [c.token_ids for c in engine.generate(requests, Sampling(1.0, 1.0, 30))] == [None] * 4


@pytest.mark.parametrize("fault", [BUSY, BROKEN, Fault(200, "{]"), Fault(200, '{"choices": []}'), Fault(200, "[1]")])
def test_a_passing_failure_is_tried_again(server: CompletionServer, tiny_model: Path, fault: Fault) -> None:
    server.faults = [fault, fault]
    assert [c.key for c in write(open_for(tiny_model, server.address))] == ["0"]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (BROKEN, "it answered 500.*out of memory"),
        (BUSY, "it answered 429.*too many requests"),
        (Fault(400, '{"error": "top_p must be positive"}'), "it answered 400.*top_p must be positive"),
        (Fault(200, "<html>proxy</html>"), "its answer is not a completion: <html>proxy"),
    ],
)
def test_a_lasting_failure_is_told_in_the_server_s_words(
    server: CompletionServer, tiny_model: Path, fault: Fault, said: str
) -> None:
    server.always = fault
    with pytest.raises(ServerError, match=said) as raised:
        write(open_for(tiny_model, server.address))
    assert raised.value.address == server.address
    assert len(server.requests) == (1 if fault.status == 400 else 3)


def test_a_slow_server_is_named_with_the_time_it_had(server: CompletionServer, tiny_model: Path) -> None:
    server.always = Fault(200, "{}", seconds=1.0)
    with pytest.raises(ServerError, match=r"did not answer within engine.timeout_seconds \(0.2 s; 2 tries\)"):
        write(open_for(tiny_model, server.address, timeout_seconds=0.2, max_retries=1))


def test_nothing_is_computed_on_another_model(server: CompletionServer, tiny_model: Path) -> None:
    server.name = "M7"
    with pytest.raises(ModelError, match=r"not serve it under the name 'tiny'; it serves: M7. Start the server with"):
        write(open_for(tiny_model, server.address))
    with pytest.raises(ModelError, match="not serve it"):
        open_for(tiny_model, server.address).next_token_distribution(["a"], ["0", "1"])
    assert not server.requests


def test_a_server_that_is_not_there_is_named(tiny_model: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ServerError, match=rf"server {address}: no server answers .*refused.* is it running\?"):
        write(open_for(tiny_model, address))


def test_what_is_finished_is_kept_when_the_server_dies(server: CompletionServer, tiny_model: Path) -> None:
    server.dies_after = 5
    finished: list[Completion] = []
    with pytest.raises(ServerError, match="no server answers"):
        write(open_for(tiny_model, server.address, concurrency=2), 12, finished)
    assert len({c.key for c in finished}) == len(finished) == 5


def test_no_more_is_asked_of_a_server_that_has_failed(server: CompletionServer, tiny_model: Path) -> None:
    server.always = BROKEN
    with pytest.raises(ServerError):
        write(open_for(tiny_model, server.address, concurrency=2, max_retries=0), 50)
    assert len(server.requests) <= 4


def test_the_key_is_sent_and_never_told(
    server: CompletionServer, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OUR_KEY", KEY)
    server.faults = [Fault(401, f'{{"error": "wrong key {KEY}"}}')]
    engine = open_for(tiny_model, server.address, api_key_variable="OUR_KEY")
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(ServerError, match="OUR_KEY holds a key that it refuses") as raised,
    ):
        write(engine)
    assert server.keys == [f"Bearer {KEY}"]
    assert KEY not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__
    assert KEY not in caplog.text


def test_a_missing_key_is_named_by_its_variable(server: CompletionServer, tiny_model: Path) -> None:
    server.always = Fault(401, '{"error": "key needed"}')
    with pytest.raises(ServerError, match="environment variable NO_SUCH_KEY is not set"):
        write(open_for(tiny_model, server.address, api_key_variable="NO_SUCH_KEY"))


def answer_of(**changes: Any) -> Fault:
    choice = {"text": "a", "finish_reason": "stop", **changes.pop("choice", {})}
    return Fault(200, json.dumps({"choices": [choice], "usage": {"completion_tokens": 1, **changes}}))


def answers(server: CompletionServer, tiny_model: Path, **choice: Any) -> tuple[OpenAIEngine, Fault]:
    """Return an engine, and an answer to the prompt that `write` sends."""
    engine = open_for(tiny_model, server.address)
    n_prompt = len(server.loaded.tokenizer(engine.render("hi"), add_special_tokens=False).input_ids)
    return engine, answer_of(choice=choice, prompt_tokens=n_prompt)


@pytest.mark.parametrize("reason", ["content_filter", "repetition", None, "something new"])
def test_an_unknown_end_is_a_cut(server: CompletionServer, tiny_model: Path, reason: str | None) -> None:
    engine, server.always = answers(server, tiny_model, finish_reason=reason)
    assert [(c.text, c.finish_reason) for c in write(engine)] == [("a", "length")]


@pytest.mark.parametrize("choice", [{"finish_reason": "abort"}, {"text": None}, {"text": ["a"]}])
def test_what_is_no_reply_is_asked_for_again(
    server: CompletionServer, tiny_model: Path, choice: dict[str, Any]
) -> None:
    engine, broken = answers(server, tiny_model, **choice)
    server.faults = [broken]
    write(engine)
    assert len(server.requests) == 2
    server.always = broken
    with pytest.raises(ServerError, match="its answer is not a completion"):
        write(engine)


def test_half_a_character_is_replaced(server: CompletionServer, tiny_model: Path) -> None:
    engine, server.always = answers(server, tiny_model, text="a \ud83d")
    assert [c.text for c in write(engine)] == ["a \ufffd"]


def test_a_server_that_changes_prompts_is_refused(server: CompletionServer, tiny_model: Path) -> None:
    server.always = answer_of(prompt_tokens=1000)
    with pytest.raises(ModelError, match="read 1000 tokens where"):
        write(open_for(tiny_model, server.address))


def test_the_server_s_window_counts_where_it_is_smaller(
    server: CompletionServer, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CompletionClient, "served", lambda _: {"tiny": 100})
    with pytest.raises(ModelError, match="window of 100"):
        open_for(tiny_model, server.address).generate([GenerationRequest("k", "a" * 99, 1)], Sampling(max_new_tokens=2))


@pytest.mark.parametrize("as_chats_do", [False, True])
def test_options_that_are_listed_among_others_are_found(
    server: CompletionServer, tiny_model: Path, as_chats_do: bool
) -> None:
    server.names_tokens, server.as_chats_do = False, as_chats_do
    tokenizer = server.loaded.tokenizer
    ids = tokenizer("Score: ", add_special_tokens=False, return_tensors="pt").input_ids
    with torch.inference_mode():
        exact = server.loaded.model(ids).logits[0, -1].softmax(-1)
    likeliest = [t for t in exact.argsort(descending=True).tolist() if tokenizer.decode([t]).isalnum()][:5]
    options = [tokenizer.decode([token]) for token in likeliest]
    probabilities = open_for(tiny_model, server.address).next_token_distribution(["Score: "], options)
    assert probabilities[0].tolist() == pytest.approx(exact[likeliest].tolist(), rel=1e-3)


def test_an_unlisted_option_is_at_most_as_likely_as_the_least_one_listed(
    server: CompletionServer, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_for(tiny_model, server.address)
    # The tiny model is unsure; one with a clear favourite lists its rest with little probability.
    monkeypatch.setattr(server, "_listed", lambda _: {"top_logprobs": [{"a": math.log(0.99), "b": math.log(0.006)}]})
    probabilities = engine.next_token_distribution(["Score: "], ["a", "x", "y"])[0]
    assert probabilities.tolist() == pytest.approx([0.99, 0.002, 0.002])


def test_too_short_a_list_is_refused(server: CompletionServer, tiny_model: Path) -> None:
    server.names_tokens, server.most_listed = False, 2
    with pytest.raises(ModelError, match=r"2 tokens, the least likely .* too few to judge by"):
        open_for(tiny_model, server.address).next_token_distribution(["Score: "], [*"012345"])


def test_a_model_s_name_can_tell_its_weights() -> None:
    checkpoint = Checkpoint(Path("/models/M2"), "M2", "0123abcd", None)
    assert served_name(checkpoint, "{name}@{digest}") == "M2@0123abcd"
    assert served_name(checkpoint, "{path}") == "/models/M2"
