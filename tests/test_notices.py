"""Messages to people who are not watching."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from srlm_pipeline.assets.automation import WILL_RETRY_TAG, tell_of_failures
from srlm_pipeline.config import NoticeSettings, Settings
from srlm_pipeline.errors import NoticeError
from srlm_pipeline.notices import Notice, deliver, failure, service_names, tell
from srlm_pipeline.store import ProjectStore

VERDICT = Notice("promoted/M2/abc", "promoted", "nights: M2 is promoted", "- it loops less\n- it judges no worse")


class Webhook:
    """A server that takes messages, and refuses the first ones if it is told to."""

    def __init__(self) -> None:
        self.got: list[tuple[str, Any]] = []
        self.refusals = 0
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                refused, hook.refusals = hook.refusals > 0, hook.refusals - 1
                if not refused:
                    hook.got.append((self.path, body))
                self.send_response(503 if refused else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def address(self, path: str = "hook", options: str = "") -> str:
        return f"json://127.0.0.1:{self._server.server_port}/{path}{options}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    server = Webhook()
    yield server
    server.close()


@pytest.fixture
def store(tmp_path: Path) -> ProjectStore:
    return ProjectStore(tmp_path / "project", tmp_path / "shared")


def told(store: ProjectStore, notice: Notice = VERDICT, warned: list[str] | None = None, **chosen: Any) -> bool:
    warnings: list[str] = [] if warned is None else warned
    return tell(notice, Settings(notices=NoticeSettings(**chosen)), store, warnings.append)


def test_a_verdict_arrives_once(webhook: Webhook, store: ProjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRLM_NOTICE_URLS", webhook.address())
    assert told(store)
    assert not told(store), "it was told before"
    ((path, body),) = webhook.got
    assert path == "/hook"
    assert (body["title"], body["message"]) == (VERDICT.title, VERDICT.text)


def test_a_chat_gets_it_in_its_own_field(
    webhook: Webhook, store: ProjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRLM_NOTICE_URLS", webhook.address(options="?:message=text&:version=&:title=&:type="))
    assert told(store)
    assert VERDICT.text in webhook.got[0][1]["text"]


def test_nobody_is_told_what_nobody_asked_for(
    webhook: Webhook, store: ProjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not told(store)
    monkeypatch.setenv("SRLM_NOTICE_URLS", webhook.address())
    assert not told(store, about=("failed",))
    assert told(store, failure("nights", "run1", "iteration iter_001", ["it broke"]), about=("failed",))
    assert [body["title"] for _, body in webhook.got] == ["nights: the run `iteration iter_001` failed"]


def test_a_busy_server_is_tried_again_and_others_are_not_told_twice(webhook: Webhook) -> None:
    other, pauses = Webhook(), list[float]()
    webhook.refusals = 2
    deliver([webhook.address(), other.address()], "title", "text", NoticeSettings(max_retries=3), pauses.append)
    other.close()
    assert (len(webhook.got), len(other.got)) == (1, 1)
    assert pauses == sorted(pauses) and len(pauses) == 2


def test_what_does_not_arrive_is_a_warning_without_the_address(
    webhook: Webhook, store: ProjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRLM_NOTICE_URLS", webhook.address("secret-token"))
    webhook.refusals = 1
    warned: list[str] = []
    assert not told(store, warned=warned, max_retries=0)
    (warning,) = warned
    assert "address 1 in SRLM_NOTICE_URLS" in warning and "secret-token" not in warning
    assert told(store), "a later chance is taken"


def test_an_address_that_is_none_is_named_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRLM_NOTICE_URLS", "json://somewhere nonsense://user:password@x")
    with pytest.raises(NoticeError, match="address 2 in SRLM_NOTICE_URLS") as refused:
        service_names(NoticeSettings())
    assert "password" not in str(refused.value)
    monkeypatch.setenv("SRLM_NOTICE_URLS", "json://somewhere mailtos://me:secret@example.org")
    assert len(service_names(NoticeSettings())) == 2


def test_a_failed_run_is_told_by_the_sensor(webhook: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRLM_NOTICE_URLS", webhook.address())
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))

    @dg.asset
    def broken() -> None:
        raise ValueError("the disk is full of stars")

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([broken], instance=instance, raise_on_error=False)
        context = dg.build_run_status_sensor_context(
            "tell_of_failures", result.get_run_failure_event(), instance, result.dagster_run
        ).for_run_failure()
        tell_of_failures(context)
        tell_of_failures(context)
    ((_, body),) = webhook.got
    assert "failed" in body["title"]
    assert "the disk is full of stars" in body["message"]


@pytest.mark.parametrize(
    ("tags", "goes_on"), [({WILL_RETRY_TAG: "true"}, "Dagster starts it again"), ({}, "re-execution continues")]
)
def test_of_a_run_whose_process_was_killed_it_is_told_how_it_goes_on(
    webhook: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tags: dict[str, str], goes_on: str
) -> None:
    monkeypatch.setenv("SRLM_NOTICE_URLS", webhook.address())
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))

    @dg.job
    def iteration() -> None:
        pass

    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(iteration, tags=tags, status=dg.DagsterRunStatus.STARTED)
        event = instance.report_run_failed(run)
        context = dg.build_run_status_sensor_context("tell_of_failures", event, instance, run)
        tell_of_failures(context.for_run_failure())
    ((_, body),) = webhook.got
    assert "its process was killed" in body["message"] and goes_on in body["message"]
