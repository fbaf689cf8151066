"""Who may ask Dagster's web server for what."""

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from srlm_pipeline.commands.webserver import LOOPBACK, Guard
from srlm_pipeline.config import load_settings
from srlm_pipeline.errors import SettingsError

JSON = {"content-type": "application/json"}


async def answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse("done")


async def talk(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("done")
    await websocket.close()


@pytest.fixture
def client() -> TestClient:
    routes = [
        Route("/graphql", answer, methods=["GET", "POST"]),
        Route("/runs", answer),
        WebSocketRoute("/graphql", talk),
    ]
    app = Starlette(routes=routes, middleware=[Middleware(Guard, hosts=[*LOOPBACK, "lab.example.org"])])
    return TestClient(app, base_url="http://localhost:3000")


@pytest.mark.parametrize("host", ["localhost:3000", "127.0.0.1:3000", "[::1]:3000", "LAB.example.org", "localhost"])
def test_the_servers_own_pages_get_what_they_ask_for(client: TestClient, host: str) -> None:
    own = {"host": host, "origin": f"http://{host}", **JSON}
    assert client.post("/graphql", json={"query": "mutation { launch }"}, headers=own).status_code == 200
    assert client.get("/runs", headers={"host": host}).status_code == 200
    assert client.get("/graphql", headers={"host": host}).status_code == 200, "the page to try queries in"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://localhost:8080"},
        {"origin": "null"},
        {"host": "evil.example:3000"},
        {"host": ""},
        {"host": "localhost.evil.example"},
    ],
)
def test_pages_of_others_get_nothing(client: TestClient, headers: dict[str, str]) -> None:
    refused = client.post("/graphql", json={"query": "mutation { launch }"}, headers=JSON | headers)
    assert refused.status_code == 403
    assert "done" not in refused.text
    assert client.get("/runs", headers=headers).status_code == 403


def test_no_query_runs_by_following_a_link_or_sending_a_form(client: TestClient) -> None:
    assert client.get("/graphql", params={"query": "mutation { launch }"}).status_code == 403
    form = client.post("/graphql", data={"query": "mutation { launch }"})
    plain = client.post("/graphql", content="{}", headers={"content-type": "text/plain"})
    assert (form.status_code, plain.status_code) == (403, 403)


def test_a_websocket_is_for_the_servers_own_pages(client: TestClient) -> None:
    own = {"host": "localhost:3000", "origin": "http://localhost:3000"}
    with client.websocket_connect("ws://localhost:3000/graphql", headers=own) as socket:
        assert socket.receive_text() == "done"
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("ws://localhost:3000/graphql", headers=own | {"origin": "https://evil.example"}),
    ):
        pass


def test_code_of_strangers_is_switched_on_in_the_file_alone(
    tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match=r"model\.trust_remote_code.*configuration file alone"):
        load_settings("quickstart", {"model": {"trust_remote_code": True}})
    monkeypatch.setenv("SRLM_OVERRIDES", '{"model": {"trust_remote_code": true}}')
    with pytest.raises(SettingsError, match=r"model\.trust_remote_code"):
        load_settings("quickstart")
    monkeypatch.delenv("SRLM_OVERRIDES")
    file = tmp_path / "own.yaml"  # type: ignore[operator]
    file.write_text("model: {trust_remote_code: true}\n", encoding="utf-8")
    assert load_settings(str(file)).model.trust_remote_code
