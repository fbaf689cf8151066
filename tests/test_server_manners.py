"""Judging by servers that answer in the manner of those that people run: the rows of docs/compatibility.md."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import ChatServer, Trouble, chatting
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srlm_pipeline.config import ServerSettings, load_settings
from srlm_pipeline.errors import ServerError
from srlm_pipeline.evaluation.arbiters import Comparison
from srlm_pipeline.evaluation.head_to_head import play_match
from srlm_pipeline.evaluation.jury import Jury
from srlm_pipeline.evaluation.opening import open_arbiter, open_judge
from srlm_pipeline.generation.chat_engine import ChatClient
from srlm_pipeline.generation.engine import Sampling
from srlm_pipeline.judging.judges import JudgeItem
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.progress import NullProgress
from srlm_pipeline.store import ProjectStore

Body = dict[str, Any]
DOCUMENT = Path(__file__).parent.parent / "docs" / "compatibility.md"


def opinion(body: Body) -> str:
    """What any of these models thinks: the longer reply is the better one, five characters are worth a point."""
    message = body["messages"][0]["content"]
    replies = re.findall(r"<response(?: [AB])?>\n(.*?)\n</response", message, re.DOTALL)
    if len(replies) == 2:
        a, b = map(len, replies)
        return f"One says more.\n\nVerdict: {'A' if a > b else 'B'}"
    return f"It says something.\nScore: {min(len(replies[0]) // 5, 5)}"


def chat(body: Body, message: Body, finish_reason: str | None = "stop", **more: Any) -> Body:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 90, "completion_tokens": 30, "total_tokens": 120}
    return {"object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage, **more}


def openai(body: Body) -> Body:
    return chat(body, {"content": opinion(body), "refusal": None, "annotations": []}, service_tier="default")


def vllm(body: Body) -> Body:
    message = {"content": f"\n\n{opinion(body)}", "reasoning": "Verdict: tie\nScore: 0", "reasoning_content": None}
    return chat(body, {**message, "tool_calls": []}, stop_reason=None, prompt_logprobs=None)


def llama_cpp(body: Body) -> Body:
    message = {"content": opinion(body), "reasoning_content": "Score: 5\nVerdict: tie"}
    return chat(body, message, timings={"predicted_ms": 3.5}, __verbose={})


def ollama(body: Body) -> Body:
    thoughts = "<think>\nScore: 0\n\nVerdict: tie\n</think>\n\n"
    return chat(body, {"content": thoughts + opinion(body)}, system_fingerprint="fp_ollama")


def reasoning(body: Body) -> Body:
    """A model whose template opens the thoughts, behind a server that knows nothing of them."""
    return chat(body, {"content": f"Let me see.\nScore: 1\n</think>\n{opinion(body)}"})


def mistral(body: Body) -> Body:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Score: 1"}]}, {"type": "text"}]
    return chat(body, {"content": [parts[0], {**parts[1], "text": opinion(body)}]})


def text_generation_inference(body: Body) -> Body:
    return chat(body, {"content": opinion(body)}, "eos_token", usage=None)


MANNERS: dict[str, Callable[[Body], Body]] = {
    "OpenAI": openai,
    "vLLM": vllm,
    "llama.cpp server": llama_cpp,
    "Ollama": ollama,
    "a reasoning model": reasoning,
    "Mistral": mistral,
    "TGI": text_generation_inference,
}


def stream(body: Body) -> str:
    """A server that streams whatever it is asked."""
    pieces = re.findall(r".{1,5}", opinion(body), re.DOTALL)
    deltas: list[tuple[Body, str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": piece}, None) for piece in pieces] + [({}, "stop")]
    events = [{"choices": [{"index": 0, "delta": delta, "finish_reason": end}]} for delta, end in deltas]
    return ": ping\n\n" + "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


@pytest.fixture(autouse=True)
def little_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("srlm_pipeline.generation.completion_client._LONGEST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chatting() as running:
        running.reply = openai
        yield running


@pytest.fixture
def store(tmp_path: Path) -> ProjectStore:
    return ProjectStore(tmp_path / "project", tmp_path)


def no_model(checkpoint: Checkpoint, batch_size: int) -> Any:
    raise AssertionError("no model is needed")


def arbiter(server: ChatServer, store: ProjectStore, **more: Any) -> Jury:
    chosen = {"model": "judge", "server": {"base_url": server.address, "max_retries": 2, "concurrency": 1, **more}}
    return open_arbiter(load_settings("quickstart", {"evaluation": {"arbiters": [chosen]}}), store, no_model)


def prefers(server: ChatServer, store: ProjectStore, *pairs: Comparison, **more: Any) -> list[float]:
    return arbiter(server, store, **more).jurors[0].arbiter.prefer_first(pairs, NullProgress()).tolist()


def check_judging(server: ChatServer, store: ProjectStore) -> None:
    """Play a match and score candidates."""
    prompts = [("p0", "a"), ("p1", "b")]
    mine, theirs = ["a long reply", "short"], ["short", "a long reply"]
    _, result = play_match(prompts, mine, theirs, "other", arbiter(server, store), NullProgress())
    assert (result.wins, result.ties, result.losses) == (1, 0, 1)
    member = {"model": "judge", "server": {"base_url": server.address}}
    judged = load_settings("quickstart", {"judge": {"panel": [member], "samples": 1}})
    judge = open_judge(judged, store, no_model, Checkpoint(Path("m"), "M1", "abc", None), "judging/iter_001", {})
    items = [JudgeItem("p0#0", "q", "x" * 20), JudgeItem("p0#1", "q", "x" * 7)]
    assert [(j.score, j.n_invalid) for j in judge.judge(items, NullProgress())] == [(4.0, 0), (1.0, 0)]


@pytest.mark.parametrize("manner", MANNERS)
def test_judging_works_in_each_manner(server: ChatServer, store: ProjectStore, manner: str) -> None:
    server.reply = MANNERS[manner]
    check_judging(server, store)
    assert f"| {manner} |" in DOCUMENT.read_text(encoding="utf-8")


def test_a_server_that_streams_unasked_is_read(server: ChatServer, store: ProjectStore) -> None:
    server.raw = stream
    check_judging(server, store)


FILTERED = {"message": "The response was filtered", "param": "prompt", "code": "content_filter", "status": 400}
TOO_LONG = {"message": "This model's maximum context length is 4096 tokens.", "code": 400, "param": None}
PAIRS = [Comparison(f"question {n}", "longer", "short") for n in range(3)]


@pytest.mark.parametrize("error", [FILTERED, TOO_LONG], ids=["filtered", "too long"])
def test_a_message_that_the_server_declines_stops_no_other(
    server: ChatServer, store: ProjectStore, error: Body
) -> None:
    server.troubles = [Trouble(400, json.dumps({"error": error}))]
    first, *others = prefers(server, store, *PAIRS)
    assert np.isnan(first)
    assert others == [1.0, 1.0]
    assert len(server.requests) == 3, "asked once, for it is of no use to ask again"
    assert prefers(server, store, *PAIRS) == [1.0] * 3, "another time it may be answered"


@pytest.mark.parametrize(
    "message",
    [
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "litellm.BadRequestError: unrecognized request argument supplied: max_tokens",
    ],
)
def test_a_proxy_that_names_the_field_in_words_alone_is_understood(
    server: ChatServer, store: ProjectStore, message: str
) -> None:
    server.troubles = [Trouble(400, json.dumps({"error": {"message": message, "param": None, "code": "400"}}))]
    assert prefers(server, store, PAIRS[0]) == [1.0]
    assert "max_completion_tokens" in server.requests[1]
    assert "max_tokens" not in server.requests[1]


def test_an_error_with_status_200_is_tried_again_and_told(server: ChatServer, store: ProjectStore) -> None:
    error = {"message": "Provider returned error", "code": 429}
    server.troubles = [Trouble(200, json.dumps({"choices": None, "usage": None, "error": error}))]
    assert prefers(server, store, PAIRS[0]) == [1.0]
    server.always = Trouble(200, json.dumps({"choices": None, "usage": None, "error": error}))
    with pytest.raises(ServerError, match="Provider returned error"):
        prefers(server, store, PAIRS[1])


def test_a_server_that_is_still_loading_is_waited_for(server: ChatServer, store: ProjectStore) -> None:
    loading = Trouble(
        503, json.dumps({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}})
    )
    server.troubles = [loading, loading]
    assert prefers(server, store, PAIRS[0]) == [1.0]


@pytest.mark.parametrize(
    ("message", "finish_reason", "n_tokens"),
    [
        ({"content": ""}, "length", 1),
        ({"content": "Verdict: A"}, "stop", 512),
        ({"content": "Verdict: A"}, None, 30),
        ({"content": "Verdict: A"}, "length", 30),
    ],
    ids=["the prompt filled the window", "every end is called stop", "a time-out of the server", "every end is a cut"],
)
def test_a_cut_answer_is_no_opinion_by_whatever_it_is_known(
    server: ChatServer, store: ProjectStore, message: Body, finish_reason: str | None, n_tokens: int
) -> None:
    usage = {"prompt_tokens": 4095, "completion_tokens": n_tokens}
    server.reply = lambda body: {**chat(body, message, finish_reason), "usage": usage}
    for _ in range(2):
        assert np.isnan(prefers(server, store, PAIRS[0])).all()
    assert len(server.requests) == 1, "the same again would be cut again"


@pytest.mark.parametrize("content", [None, ""])
def test_a_verdict_in_the_thoughts_is_none(server: ChatServer, store: ProjectStore, content: str | None) -> None:
    """As servers with another model's reasoning parser answer, and GPT-OSS that broke off in its analysis."""
    misplaced = {"content": content, "reasoning_content": "Verdict: A", "reasoning": "Verdict: A"}
    server.reply = lambda body: chat(body, misplaced)
    assert np.isnan(prefers(server, store, PAIRS[0])).all()
    assert len(server.requests) == 3, "asked again twice, as max_retries allows"
    server.reply = openai
    assert prefers(server, store, PAIRS[0]) == [1.0], "and another time"


def _either(*values: Any) -> st.SearchStrategy[Any]:
    """One of these shapes, or something that nobody expects there."""
    odd = st.sampled_from([None, [], {}, "", 0, -1, 1e400, True, [None], {"x": []}, "\ud800"])
    return st.one_of(odd, *(value if isinstance(value, st.SearchStrategy) else st.just(value) for value in values))


_PART = st.fixed_dictionaries({"type": _either("text", "thinking", "image_url"), "text": _either("Verdict: A")})
_MESSAGE = st.fixed_dictionaries(
    {"role": _either("assistant"), "content": _either("Verdict: B", st.lists(_PART, max_size=2))},
    optional={"refusal": _either("No."), "reasoning": _either("Hm."), "tool_calls": _either()},
)
_CHOICE = st.fixed_dictionaries({"message": _either(_MESSAGE), "finish_reason": _either("stop", "length", "load")})
_USAGE = st.fixed_dictionaries(
    {}, optional={"completion_tokens": _either(7), "prompt_tokens": _either(9), "cost": _either(0.1)}
)
_BODY = _either(
    st.fixed_dictionaries(
        {"choices": _either(st.lists(_either(_CHOICE), max_size=2))},
        optional={"usage": _either(_USAGE), "error": _either({"message": "no"}), "model": _either("m")},
    )
)


@given(_BODY, st.sampled_from(["{}", "data: {}\n\ndata: [DONE]\n", "<html>{}", ": ping\n\n{}", "{} {}"]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_a_server_says_is_read_or_named(server: ChatServer, body: Any, around: str) -> None:
    server.raw = lambda _: around.replace("{}", json.dumps(body))
    client = ChatClient(ServerSettings(base_url=server.address, max_retries=0))
    try:
        answer = client.chat("judge", "Which?", Sampling(max_new_tokens=9))
    except ServerError as error:
        assert server.address in str(error)
    else:
        answer.text.encode()
        assert answer.finish_reason in ("stop", "length", "none")
        assert answer.n_tokens >= 0
