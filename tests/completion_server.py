"""A small server of the completions protocol over a transformers model, which can be told to misbehave."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from srlm_pipeline.generation.engine import GenerationRequest, Sampling
from srlm_pipeline.generation.transformers_engine import TransformersEngine
from srlm_pipeline.models.loading import LoadedModel


@dataclass(frozen=True)
class Fault:
    """What is answered in place of a completion."""

    status: int = 200
    body: str = ""
    seconds: float = 0.0


@dataclass
class CompletionServer:
    """Attributes change its behaviour while it runs.

    Attributes:
        loaded: The model.
        name: Under which it is served.
        names_tokens: Whether it knows vLLM's `logprob_token_ids` and `return_token_ids`; otherwise it tells no tokens,
            and lists the likeliest by text.
        most_listed: How many of them at most.
        as_chats_do: Whether it lists them in the form of chat completions and with their ids, as llama.cpp does.
        faults: Answers to the next requests for a completion, one each.
        always: Answer to all of them.
        dies_after: So many requests for completions are answered, then all connections are dropped.
        requests: Bodies received, refused ones too.
        keys: Authorization headers received.
    """

    loaded: LoadedModel
    name: str
    names_tokens: bool = True
    most_listed: int = 20
    as_chats_do: bool = False
    faults: list[Fault] = field(default_factory=list)
    always: Fault | None = None
    dies_after: int | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    address: str = ""

    def __post_init__(self) -> None:
        self._engine = TransformersEngine(self.loaded.model, self.loaded.tokenizer, "served", 1)
        self._lock = threading.Lock()

    @property
    def dead(self) -> bool:
        return self.dies_after is not None and len(self.requests) > self.dies_after

    def next_fault(self) -> Fault | None:
        return self.faults.pop(0) if self.faults else self.always

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = self.loaded.tokenizer.decode(body["prompt"], skip_special_tokens=False)
        assert self.loaded.tokenizer(prompt, add_special_tokens=False).input_ids == body["prompt"]
        sampling = Sampling(
            body["temperature"], body.get("top_p", 1.0), body["max_tokens"], tuple(body.get("stop", ()))
        )
        with self._lock:
            written = self._engine.generate([GenerationRequest("", prompt, body.get("seed", 0))], sampling)[0]
            listed = self._listed(body) if "logprobs" in body else None
        choice = {"text": written.text, "finish_reason": written.finish_reason, "logprobs": listed}
        if self.names_tokens and body.get("return_token_ids") and written.token_ids is not None:
            # As vLLM does, with the token that ended it.
            end = [body["stop_token_ids"][0]] if written.finish_reason == "stop" else []
            choice["token_ids"] = [*written.token_ids, *end]
        return {
            "model": self.name,
            "choices": [choice],
            "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": written.n_tokens},
        }

    def _listed(self, body: dict[str, Any]) -> dict[str, Any]:
        with torch.inference_mode():
            values = self.loaded.model(torch.tensor([body["prompt"]])).logits[0, -1].float().log_softmax(-1)
        if self.names_tokens:
            listed = {f"token_id:{token}": float(values[token]) for token in body["logprob_token_ids"]}
        else:
            top = values.topk(min(self.most_listed, body["logprobs"]))
            if self.as_chats_do:
                pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
                told = [{"id": t, "token": "\ufffd", "bytes": [0], "logprob": value} for t, value in pairs]
                return {"content": [{**told[0], "top_logprobs": told}]}
            listed = {
                self.loaded.tokenizer.decode([token]): value
                for token, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            }
        return {"top_logprobs": [listed]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Otherwise a reply waits for the client's delayed acknowledgement.
    disable_nagle_algorithm = True

    @property
    def served(self) -> CompletionServer:
        return self.server.served  # type: ignore[attr-defined, no-any-return]

    def do_GET(self) -> None:
        if self.served.dead:
            self.close_connection = True
            return
        self._answer(200, json.dumps({"data": [{"id": self.served.name}]}))

    def do_POST(self) -> None:
        served = self.served
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        served.keys.append(self.headers.get("Authorization", ""))
        served.requests.append(body)
        if served.dead:
            self.close_connection = True
            return
        fault = served.next_fault()
        if fault:
            time.sleep(fault.seconds)
            self._answer(fault.status, fault.body)
        else:
            self._answer(200, json.dumps(served.complete(body)))

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that no longer waits is no news."""


@contextmanager
def serving(loaded: LoadedModel, name: str) -> Iterator[CompletionServer]:
    """Serve a model on a free port until the block ends."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.served = CompletionServer(loaded, name, address=f"http://127.0.0.1:{server.server_port}/v1")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.served  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
