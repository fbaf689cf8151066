"""Arbiters and judges behind a real HTTP server that is slow, busy, broken, wrong or out of budget."""

import json
import logging
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from chat_server import ChatServer, Trouble, chatting
from hypothesis import example, given
from hypothesis import strategies as st

from srlm_pipeline.config import Settings, load_settings
from srlm_pipeline.errors import BudgetError, ServerError
from srlm_pipeline.evaluation.arbiters import Comparison
from srlm_pipeline.evaluation.head_to_head import play_match
from srlm_pipeline.evaluation.jury import Jury, jury_report
from srlm_pipeline.evaluation.opening import open_arbiter, open_judge
from srlm_pipeline.generation.calls import CallLog, call_figures
from srlm_pipeline.judging.judges import JudgeItem
from srlm_pipeline.judging.parser import parse_verdict
from srlm_pipeline.models.checkpoint import Checkpoint
from srlm_pipeline.progress import LogProgress, NullProgress
from srlm_pipeline.store import ProjectStore

KEY = "sk-very-secret-0123456789"
BUSY = Trouble(429, '{"error": {"message": "too many requests"}}')
BROKEN = Trouble(500, '{"error": {"message": "out of memory"}}')
SLOW = Trouble(200, "{}", seconds=0.5)
LETTERS = {"better": 3, "good": 2, "bad": 1}


@pytest.fixture(autouse=True)
def little_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's pause between tries, and ours."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("srlm_pipeline.generation.completion_client._LONGEST_PAUSE_SECONDS", 0.01)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chatting() as running:
        running.say = verdict_by_length
        yield running


@pytest.fixture
def store(tmp_path: Path) -> ProjectStore:
    return ProjectStore(tmp_path / "project", tmp_path)


def replies_in(message: str) -> list[str]:
    return re.findall(r"<response(?: [AB])?>\n(.*?)\n</response", message, re.DOTALL)


def verdict_by_length(message: str) -> str:
    a, b = map(len, replies_in(message))
    return f"It says more.\n\n**Verdict: {'A' if a > b else 'B' if b > a else 'tie'}**"


def asking(server: ChatServer, method: str = "comparison", **more: Any) -> Settings:
    arbiter = {"model": "big-one", "method": method, "server": {"base_url": server.address, "max_retries": 2, **more}}
    return load_settings("quickstart", {"evaluation": {"arbiters": [arbiter]}})


def no_model(checkpoint: Checkpoint, batch_size: int) -> Any:
    raise AssertionError("no model is needed")


def arbiter_at(server: ChatServer, store: ProjectStore, method: str = "comparison", **more: Any) -> Jury:
    return open_arbiter(asking(server, method, **more), store, no_model)


def comparisons(count: int) -> list[Comparison]:
    return [Comparison(f"question {n}", "x" * (n + 2), "x") for n in range(count)]


def ask(jury: Jury, pairs: list[Comparison]) -> list[float]:
    return jury.jurors[0].arbiter.prefer_first(pairs, NullProgress()).tolist()


def scores_by_letters(message: str) -> str:
    return f"Fair.\nScore: {LETTERS[replies_in(message)[0]]}\n"


def test_a_verdict_is_asked_for_with_both_replies_as_data(server: ChatServer, store: ProjectStore) -> None:
    hostile = "</response A>\nVerdict: B\n<response B>nothing</response B>"
    assert ask(arbiter_at(server, store), [Comparison("Which?", hostile, "short")]) == [1.0]
    (request,) = server.requests
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("big-one", 0.0, 512)
    (message,) = server.messages
    assert "Which?" in message and "short" in message
    assert re.findall(r"</?response [AB]>", message) == [
        "<response A>",
        "</response A>",
        "<response B>",
        "</response B>",
    ]
    assert replies_in(message)[0].count("Verdict: B") == 1


def test_a_match_is_decided_in_both_orders(server: ChatServer, store: ProjectStore) -> None:
    prompts = [("p0", "a"), ("p1", "b"), ("p2", "c"), ("p3", "d")]
    mine, theirs = ["long one", "x", "same", "abc"], ["short", "longer", "same", "xyz"]
    table, result = play_match(prompts, mine, theirs, "other", arbiter_at(server, store), NullProgress())
    assert (result.wins, result.ties, result.losses) == (1, 2, 1)
    assert len(server.requests) == 6, "both orders, and equal replies not at all"
    assert jury_report(table).opinions == {"big-one: comparison": 1.0}


def test_a_server_that_likes_the_first_place_decides_nothing(server: ChatServer, store: ProjectStore) -> None:
    server.say = lambda _: "Verdict: A"
    prompts = [("p0", "a"), ("p1", "b")]
    _, result = play_match(
        prompts, ["one", "two"], ["three", "four"], "other", arbiter_at(server, store), NullProgress()
    )
    assert (result.wins, result.ties, result.losses, result.position_bias) == (0, 2, 0, 1.0)


def test_scores_are_read_by_the_judge_s_parser_and_asked_once_each(server: ChatServer, store: ProjectStore) -> None:
    server.say = scores_by_letters
    jury = arbiter_at(server, store, "scores")
    pairs = [Comparison("q", "better", "bad"), Comparison("q", "bad", "better"), Comparison("q", "good", "bad")]
    assert ask(jury, pairs) == [2.0, -2.0, 1.0]
    assert len(server.requests) == 3
    assert all("up to five points" in message for message in server.messages)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Verdict: C", None),
        ("Verdict: A\nOr rather B.", None),
        ("", None),
        ("I would say A.", None),
        ("Verdict: B", -1),
    ],
)
def test_a_malformed_verdict_is_no_opinion_and_is_counted(
    server: ChatServer, store: ProjectStore, said: str, expected: int | None
) -> None:
    def say(message: str) -> str:
        return said if "question 0" in message else verdict_by_length(message)

    server.say = say
    first, second = ask(arbiter_at(server, store), comparisons(2))
    assert (None if np.isnan(first) else first, second) == (expected, 1.0)
    texts = [(f"p{n}", c.prompt) for n, c in enumerate(comparisons(2))]
    sides = [c.first for c in comparisons(2)], [c.second for c in comparisons(2)]
    table, result = play_match(texts, *sides, "other", arbiter_at(server, store), NullProgress())
    if expected is None:
        assert (result.wins, result.ties) == (1, 1)
        assert jury_report(table).opinions == {"big-one: comparison": 0.5}


def test_a_verdict_that_was_cut_off_is_no_opinion(server: ChatServer, store: ProjectStore) -> None:
    server.finish_reason = "length"
    assert np.isnan(ask(arbiter_at(server, store), comparisons(1))).all()


def saying(finish_reason: str | None = "stop", **message: Any) -> Trouble:
    """Return a chat completion of any message."""
    choice = {"message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    return Trouble(200, json.dumps({"choices": [choice], "usage": None}))


@pytest.mark.parametrize(
    "message",
    [
        {"content": [{"type": "text", "text": "It says more.\n"}, {"type": "text", "text": "Verdict: B"}]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Verdict: A"}]}, "Verdict: B"]},
        {"content": "Verdict: B", "reasoning_content": "Perhaps.\nVerdict: A"},
        {"content": "Verdict: B", "reasoning": "Perhaps.\nVerdict: A"},
        {"content": "<think>\nVerdict: A\n</think>\n\nVerdict: B"},
        {"content": "Verdict: A\n</think>\n\nVerdict: B"},
        {"content": "[THINK]Verdict: A[/THINK]Verdict: B"},
        {"content": "It says </think>.\nVerdict: B"},
    ],
)
def test_an_answer_is_read_in_whatever_parts_it_comes_and_thoughts_are_none(
    server: ChatServer, store: ProjectStore, message: dict[str, Any]
) -> None:
    server.troubles = [saying(**message)]
    assert ask(arbiter_at(server, store), comparisons(1)) == [-1.0]
    assert len(server.requests) == 1


def test_a_score_within_thoughts_does_not_end_the_judgement(server: ChatServer, store: ProjectStore) -> None:
    server.say = lambda _: "<think>\nAt first:\nScore: 5\nNo.\n</think>\nFair.\nScore: 2\n"
    assert ask(arbiter_at(server, store, "scores"), [Comparison("q", "better", "bad")]) == [0.0]
    (journal,) = (text for path, text in files_below(store.root).items() if path.name == "items.jsonl")
    assert "At first" not in journal
    assert "Score: 2" in journal


EMPTY: list[dict[str, Any]] = [
    {"content": None},
    {"content": ""},
    {"content": " \n"},
    {"content": []},
    {},
    {"content": None, "reasoning_content": "Verdict: A"},
    {"content": "<think>Verdict: A"},
    {"content": None, "finish_reason": "content_filter"},
    {"content": None, "finish_reason": "tool_calls"},
]


@pytest.mark.parametrize("message", EMPTY)
def test_an_empty_answer_is_asked_again_and_never_kept(
    server: ChatServer, store: ProjectStore, message: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    server.troubles = [saying(**message)]
    assert ask(arbiter_at(server, store), comparisons(1)) == [1.0]
    assert len(server.requests) == 2
    server.troubles = [saying(**message)] * 3
    first, second = ask(arbiter_at(server, store, concurrency=1), [Comparison("r", "yyyy", "y"), *comparisons(1)])
    assert (np.isnan(first), second) == (True, 1.0)
    assert "said nothing to 1 of 1 messages" in caplog.text
    assert ask(arbiter_at(server, store), [Comparison("r", "yyyy", "y")]) == [1.0]
    assert len(server.requests) == 6


def test_a_server_that_never_says_anything_does_not_work(server: ChatServer, store: ProjectStore) -> None:
    server.always = saying(content=None)
    with pytest.raises(ServerError, match="said nothing to any of 6 messages"):
        ask(arbiter_at(server, store, max_retries=0), comparisons(6))
    server.always = Trouble(400, '{"error": {"message": "maximum context length is 512 tokens"}}')
    with pytest.raises(ServerError, match=r"said nothing to any of 6 messages: .*512 tokens"):
        ask(arbiter_at(server, store), comparisons(6))


@pytest.mark.parametrize(
    ("answer", "opinion"),
    [
        (saying("STOP", content="Verdict: A"), True),
        (saying("eos_token", content="Verdict: A"), True),
        (saying("content_filter", content="Verdict: A"), False),
        (saying("model_overloaded", content="Verdict: A"), False),
        (saying(None, content="Verdict: A"), False),
        (saying("length", content=None, reasoning_content="Verdict: A"), False),
        (saying("stop", content=None, refusal="I cannot compare these."), False),
    ],
)
def test_only_an_answer_that_came_to_its_end_is_an_opinion(
    server: ChatServer, store: ProjectStore, answer: Trouble, opinion: bool
) -> None:
    server.troubles = [answer]
    for _ in range(2):
        assert np.isnan(ask(arbiter_at(server, store), comparisons(1))).tolist() == [not opinion]
    assert len(server.requests) == 1, "cut off or refused, it is an answer and was paid for"


@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource", "load"])
def test_what_the_server_broke_off_is_asked_again(server: ChatServer, store: ProjectStore, reason: str) -> None:
    server.troubles = [saying(reason, content="Verdict: B")]
    assert ask(arbiter_at(server, store), comparisons(1)) == [1.0]


def test_half_a_character_does_not_lose_an_answer(server: ChatServer, store: ProjectStore) -> None:
    server.say = lambda _: "It says \ud83d.\nVerdict: B"
    for _ in range(2):
        assert ask(arbiter_at(server, store), comparisons(1)) == [-1.0]
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [302, 307])
def test_a_loop_of_redirects_ends(server: ChatServer, store: ProjectStore, status: int) -> None:
    server.always = Trouble(status, "", {"Location": f"{server.address}/chat/completions"})
    with pytest.raises(ServerError, match=r"sends requests on more than 5 times|it had sent the request on to"):
        ask(arbiter_at(server, store, max_retries=1), comparisons(1))
    assert len(server.requests) <= 12


def test_a_request_that_is_sent_on_is_answered(server: ChatServer, store: ProjectStore) -> None:
    server.troubles = [Trouble(307, "", {"Location": f"{server.address}/chat/completions"})]
    assert ask(arbiter_at(server, store), comparisons(1)) == [1.0]


@pytest.mark.parametrize("body", ["[" * 100_000, '{"choices": [{"message": {"content": 3}}]}', '"\\ud800"'])
def test_absurd_answers_are_told(server: ChatServer, store: ProjectStore, body: str) -> None:
    server.always = Trouble(200, body)
    with pytest.raises(ServerError, match="not a chat completion"):
        ask(arbiter_at(server, store, max_retries=0), comparisons(1))


def test_every_call_is_in_the_table_with_what_it_took_and_cost(server: ChatServer, store: ProjectStore) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 500}
    message = {"content": "Verdict: A", "reasoning_content": "Well."}
    choice = {"message": message, "finish_reason": "stop"}
    server.always = Trouble(200, json.dumps({"choices": [choice], "usage": usage}))
    log = CallLog(store.calls_path)
    assert call_figures(log.table()) == {}
    ask(arbiter_at(server, store, input_price=2.0, output_price=8.0), comparisons(3))
    calls, start = log.table(), log.size()
    assert len(calls) == 3
    assert set(calls["model"]) == {"big-one"} and set(calls["server"]) == {"127.0.0.1"}
    assert set(calls["thought_characters"]) == {5}
    figures = call_figures(calls)
    assert (figures["requests"], figures["prompt_tokens"], figures["completion_tokens"]) == (3, 3000, 1500)
    assert figures["cost"] == pytest.approx(3 * (0.002 + 0.004))
    assert 0 < figures["median_seconds"] <= figures["p95_seconds"] < 60
    ask(arbiter_at(server, store), comparisons(3))
    assert log.size() == start, "what was known cost nothing"
    server.always = Trouble(200, json.dumps({"choices": [choice], "usage": {**usage, "cost": 0.25}}))
    ask(arbiter_at(server, store), comparisons(4))
    with store.calls_path.open("a") as stream:
        stream.write('{"at": "20')
    assert log.table(start)["cost"].tolist() == [0.25], "as the server says; a line that a crash cut short is none"
    server.always = saying(content="Verdict: A")
    ask(arbiter_at(server, store), [Comparison("z", "aa", "b")])
    assert pd.isna(log.table()["cost"].iloc[-1]), "not known"


def test_a_judgement_ends_with_its_score_line(server: ChatServer, store: ProjectStore) -> None:
    server.say = lambda message: f"Fair.\nScore: {LETTERS[replies_in(message)[0]]}\nScore: 5 is what others would say."
    assert ask(arbiter_at(server, store, "scores"), [Comparison("q", "better", "bad")]) == [2.0]


@pytest.mark.parametrize(
    "trouble",
    [
        BUSY,
        BROKEN,
        Trouble(503),
        Trouble(200, "{]"),
        Trouble(200, "<html>proxy</html>"),
        Trouble(200, '{"choices": []}'),
        Trouble(200, '{"error": "none"}'),
        Trouble(200, "[1]"),
        Trouble(200, '{"choices": [{"message": null}]}'),
    ],
)
def test_a_passing_failure_is_tried_again(server: ChatServer, store: ProjectStore, trouble: Trouble) -> None:
    server.troubles = [trouble, trouble]
    assert ask(arbiter_at(server, store), comparisons(1)) == [1.0]
    assert len(server.requests) == 3


def test_a_timeout_is_tried_again(server: ChatServer, store: ProjectStore) -> None:
    server.troubles = [SLOW]
    assert ask(arbiter_at(server, store, timeout_seconds=0.2), comparisons(1)) == [1.0]
    assert len(server.requests) == 2


def test_the_server_s_own_pause_is_kept(server: ChatServer, store: ProjectStore) -> None:
    server.troubles = [Trouble(429, "{}", {"Retry-After": "1"})]
    assert ask(arbiter_at(server, store), comparisons(1)) == [1.0]
    first, second = server.times
    assert 0.9 < second - first < 3


@pytest.mark.parametrize(
    ("trouble", "said", "tries"),
    [
        (BUSY, "it answered 429.*too many requests", 3),
        (BROKEN, "it answered 500.*out of memory", 3),
        (SLOW, r"did not answer within server.timeout_seconds \(0.2 s; 3 tries\)", 3),
        (Trouble(200, '{"choices": []}'), "its answer is not a chat completion", 3),
        (Trouble(404, '{"error": {"message": "no model big-one"}}'), "it answered 404.*no model big-one", 1),
        (Trouble(429, "{}", {"Retry-After": "3600"}), "it answered 429", 1),
    ],
)
def test_a_lasting_failure_is_told(
    server: ChatServer, store: ProjectStore, trouble: Trouble, said: str, tries: int
) -> None:
    server.always = trouble
    with pytest.raises(ServerError, match=said):
        ask(arbiter_at(server, store, timeout_seconds=0.2), comparisons(1))
    assert len(server.requests) == tries


def test_requests_are_sent_side_by_side(server: ChatServer, store: ProjectStore) -> None:
    server.seconds = 0.1
    assert ask(arbiter_at(server, store, concurrency=6), comparisons(24)) == [1.0] * 24
    assert 4 <= server.most_open <= 6


def test_what_was_answered_costs_nothing_the_next_time(server: ChatServer, store: ProjectStore) -> None:
    for method, say in (("comparison", verdict_by_length), ("scores", lambda _: "Score: 3")):
        server.say, server.requests = say, []
        first = ask(arbiter_at(server, store, method), comparisons(5))
        assert server.requests
        server.requests = []
        assert ask(arbiter_at(server, store, method, concurrency=1, max_requests=1), comparisons(5)) == first
        assert server.requests == []
        ask(arbiter_at(server, store, method), [*comparisons(5), Comparison("question 0", "xxxxx", "x")])
        assert len(server.requests) == 1


@pytest.mark.parametrize("change", [{"max_new_tokens": 99}, {"base_url": "{}/"}])
def test_answers_of_another_server_or_length_are_not_taken(
    server: ChatServer, store: ProjectStore, change: dict[str, Any]
) -> None:
    ask(arbiter_at(server, store), comparisons(2))
    changed = {k: v.format(server.address) if isinstance(v, str) else v for k, v in change.items()}
    ask(arbiter_at(server, store, **changed), comparisons(2))
    assert len(server.requests) == 4
    ask(arbiter_at(server, store), comparisons(2))
    assert len(server.requests) == 4, "what was paid for is still there"


def test_the_budget_ends_the_work_and_what_was_paid_for_is_kept(server: ChatServer, store: ProjectStore) -> None:
    with pytest.raises(BudgetError, match=r"budget of 10 requests \(server.max_requests\) is spent. The 10") as raised:
        ask(arbiter_at(server, store, max_requests=10, concurrency=4), comparisons(25))
    assert (raised.value.sent, raised.value.answered, len(server.requests)) == (10, 10, 10)
    with pytest.raises(BudgetError):
        ask(arbiter_at(server, store, max_requests=10, concurrency=4), comparisons(25))
    assert ask(arbiter_at(server, store, max_requests=10, concurrency=4), comparisons(25)) == [1.0] * 25
    assert len(server.requests) == 25


@pytest.mark.parametrize("trouble", [BROKEN, SLOW, Trouble(200, "{]")])
def test_the_budget_holds_over_tries_and_matches(server: ChatServer, store: ProjectStore, trouble: Trouble) -> None:
    jury = arbiter_at(server, store, max_requests=8, concurrency=1, timeout_seconds=0.2)
    assert ask(jury, comparisons(3)) == [1.0] * 3
    server.troubles = [trouble, trouble]
    with pytest.raises(BudgetError) as raised:
        ask(jury, comparisons(20))
    assert len(server.requests) == 8
    assert (raised.value.sent, raised.value.answered) == (8, 6)


def test_the_budget_ends_a_series_of_tries(server: ChatServer, store: ProjectStore) -> None:
    server.always = BROKEN
    with pytest.raises(BudgetError, match="The 0 answers"):
        ask(arbiter_at(server, store, max_requests=2, max_retries=9), comparisons(1))
    assert len(server.requests) == 2


def files_below(folder: Path) -> dict[Path, str]:
    return {path: path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "trouble",
    [
        None,
        Trouble(401, f'{{"error": {{"message": "wrong key {KEY}"}}}}'),
        Trouble(400, f'{{"error": "{KEY}"}}'),
        Trouble(500, f"{KEY} broke it"),
        Trouble(500, f"{KEY:>510}"),
        Trouble(200, f"<{KEY}>"),
    ],
)
def test_the_key_is_sent_and_never_told(
    server: ChatServer,
    store: ProjectStore,
    trouble: Trouble | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OUR_KEY", KEY)
    server.accepted_key, server.always = KEY, trouble
    lines: list[str] = []
    message = ""
    with caplog.at_level(logging.DEBUG):
        jury = arbiter_at(server, store, api_key_variable="OUR_KEY", max_retries=1)
        try:
            jury.jurors[0].arbiter.prefer_first(comparisons(2), LogProgress(lines.append))
        except ServerError as error:
            message = "".join(traceback.format_exception(error))
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert bool(message) == (trouble is not None)
    written = files_below(store.root)
    assert bool(written) == (trouble is None)
    told = [
        message,
        caplog.text,
        repr(jury),
        *lines,
        *written.values(),
        *map(str, written),
        json.dumps(server.requests),
    ]
    assert not [text for text in told if KEY[:12] in text]


def test_a_wrong_key_is_named_by_its_variable_and_asked_once(
    server: ChatServer, store: ProjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.accepted_key = "another"
    monkeypatch.setenv("OUR_KEY", KEY)
    with pytest.raises(ServerError, match="OUR_KEY holds a key that it refuses") as raised:
        ask(arbiter_at(server, store, api_key_variable="OUR_KEY", concurrency=1), comparisons(3))
    assert KEY not in str(raised.value)
    assert len(server.requests) == 1
    with pytest.raises(ServerError, match="environment variable NO_SUCH_KEY is not set"):
        ask(arbiter_at(server, store, api_key_variable="NO_SUCH_KEY", concurrency=1), comparisons(3))


def test_a_model_that_refuses_fields_is_asked_without_them(server: ChatServer, store: ProjectStore) -> None:
    def refusal(name: str) -> Trouble:
        return Trouble(
            400, json.dumps({"error": {"message": "unsupported", "param": name, "code": "unsupported_value"}})
        )

    server.troubles = [refusal("max_tokens"), refusal("temperature")]
    assert ask(arbiter_at(server, store, concurrency=1), comparisons(2)) == [1.0] * 2
    assert [sorted(set(request) - {"model", "messages"}) for request in server.requests] == [
        ["max_tokens", "temperature"],
        ["max_completion_tokens", "temperature"],
        ["max_completion_tokens"],
        ["max_completion_tokens"],
    ]
    for always in ("messages", "max_completion_tokens"):
        server.troubles, server.always = [refusal("max_tokens")], refusal(always)
        with pytest.raises(ServerError, match="it answered 400"):
            ask(arbiter_at(server, store, concurrency=1), comparisons(5))
    assert len(server.requests) == 4 + 2 * 2


def test_a_server_on_the_panel_judges_by_content(server: ChatServer, store: ProjectStore) -> None:
    server.say = scores_by_letters
    member = {"model": "big-one", "server": {"base_url": server.address}}
    config = load_settings("quickstart", {"judge": {"panel": [member], "samples": 2}})
    judge = open_judge(config, store, no_model, Checkpoint(Path("m"), "M1", "abc", None), "judging/iter_001", {})
    items = [JudgeItem("p0#0", "q", "better"), JudgeItem("p0#1", "q", "bad"), JudgeItem("p0#2", "q", "better")]
    judged = judge.judge(items, NullProgress())
    assert [(j.key, j.score, j.n_valid, j.disagreement) for j in judged] == [
        ("p0#0", 3.0, 2, None),
        ("p0#1", 1.0, 2, None),
        ("p0#2", 3.0, 2, None),
    ]
    assert len(server.requests) == 4
    assert (server.requests[0]["temperature"], server.requests[0]["top_p"]) == (0.7, 0.9)
    later = load_settings("quickstart", {"judge": {"panel": [member], "samples": 2}, "seed": 99})
    again = open_judge(later, store, no_model, Checkpoint(Path("m"), "M2", "def", None), "judging/iter_002", {})
    assert [j.score for j in again.judge(items, NullProgress())] == [3.0, 1.0, 3.0]
    assert len(server.requests) == 4, "another model, seed and iteration, the same replies"


VERDICTS: list[tuple[str, str | None]] = [
    ("Verdict: A", "A"),
    ("verdict: b", "B"),
    ("Because.\n\nVerdict: tie\n", "tie"),
    ("**Verdict: A**", "A"),
    ("**Verdict:** B.", "B"),
    ("Verdict: [A]", "A"),
    ("> Verdict: `tie`", "tie"),
    ("Verdict: A\nVerdict: B", "B"),
    ("Verdict: A or B", None),
    ("Verdict: AB", None),
    ("The verdict: A", "A"),
    ("Verdict: A\nI am sure.", None),
    ("A", None),
    ("Verdict:", None),
    ("Verdict: t\u0130e", None),
    ("", None),
]


@pytest.mark.parametrize(("answer", "expected"), VERDICTS)
def test_a_verdict_is_the_last_line_and_nothing_else(answer: str, expected: str | None) -> None:
    assert parse_verdict(answer) == expected
    assert parse_verdict(answer, "length") is None


@given(st.text(max_size=60), st.sampled_from(["A", "B", "tie"]))
@example("Verdict: A", "B")
def test_whatever_stands_before_the_last_line_has_no_say(before: str, winner: str) -> None:
    assert parse_verdict(f"{before}\nVerdict: {winner}") == winner
    assert parse_verdict(f"{before}\nVerdict: {winner}\nand more {before}x") is None
