"""A small server of the chat completions protocol that answers by a rule, and can be told to misbehave."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Trouble:
    """What is answered in place of a chat completion."""

    status: int = 200
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class ChatServer:
    """Attributes change its behaviour while it runs.

    Attributes:
        say: Makes the answer to a user's message.
        troubles: Answers to the next requests, one each.
        always: Answer to all of them.
        seconds: How long every answer takes.
        accepted_key: The only key that it knows; None: it asks for none.
        requests: Bodies received, refused ones too.
        reply: Makes the body of an answer out of the request's body; None: as OpenAI does, around what `say` says.
        raw: Makes it as text.
        keys: Authorization headers received.
        times: When requests came.
        most_open: How many requests were open at a time.
    """

    say: Callable[[str], str] = lambda _: "Verdict: tie"
    reply: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    raw: Callable[[dict[str, Any]], str] | None = None
    troubles: list[Trouble] = field(default_factory=list)
    always: Trouble | None = None
    seconds: float = 0.0
    accepted_key: str | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    most_open: int = 0
    address: str = ""
    finish_reason: str = "stop"

    def __post_init__(self) -> None:
        self.lock, self.open = threading.Lock(), 0

    @property
    def messages(self) -> list[str]:
        return [request["messages"][0]["content"] for request in self.requests]

    def next_trouble(self, key: str) -> Trouble | None:
        if self.accepted_key is not None and key != f"Bearer {self.accepted_key}":
            return Trouble(401, json.dumps({"error": {"message": f"wrong key: {key}"}}))
        return self.troubles.pop(0) if self.troubles else self.always

    def completion(self, body: dict[str, Any]) -> str:
        if self.raw is not None:
            return self.raw(body)
        if self.reply is not None:
            return json.dumps(self.reply(body))
        text = self.say(body["messages"][0]["content"])
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": self.finish_reason}
        return json.dumps({"model": body["model"], "choices": [choice], "usage": {"completion_tokens": 7}})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        served: ChatServer = self.server.served  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers.get("Authorization", "")
        with served.lock:
            served.requests.append(body)
            served.keys.append(key)
            served.times.append(time.monotonic())
            served.open += 1
            served.most_open = max(served.most_open, served.open)
            trouble = served.next_trouble(key)
        time.sleep(served.seconds + (trouble.seconds if trouble else 0.0))
        with served.lock:
            served.open -= 1
        text = trouble.body if trouble else served.completion(body)
        self.send_response(trouble.status if trouble else 200)
        for name, value in (trouble.headers if trouble else {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that no longer waits is no news."""


@contextmanager
def chatting() -> Iterator[ChatServer]:
    """Serve on a free port until the block ends."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.served = ChatServer(address=f"http://127.0.0.1:{server.server_port}/v1")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.served  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
