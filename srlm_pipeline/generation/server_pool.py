"""Several servers of one model, asked as if they were one.

Each request goes to the server that has the fewest in progress. What fails at one is asked of another, and the server
rests meanwhile, longer from one failure to the next. Before it is given anything again it must list the model: who
starts a server anew may start it with another one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Condition, Lock
from typing import Any

from srlm_pipeline.config import EngineSettings
from srlm_pipeline.errors import ModelError, ServerError
from srlm_pipeline.generation.completion_client import Answer, CompletionClient, pause_before

log = logging.getLogger(__name__)

# The request itself is at fault, wherever it is sent: bad, too large, of the wrong shape.
_AT_FAULT = frozenset({400, 413, 422})


def models_served(engine: EngineSettings) -> dict[str, list[str]]:
    """Ask each server of `base_url` once and briefly, for a person is waiting, and return the names it serves.

    Args:
        engine: Of kind `openai`.

    Raises:
        ServerError: If one of them does not answer, or if no model is served by all.
    """
    quick = engine.model_copy(update={"timeout_seconds": min(10.0, engine.timeout_seconds), "max_retries": 0})
    served = {address: list(CompletionClient(quick, address).served()) for address in engine.addresses}
    if len(served) > 1 and not set.intersection(*map(set, served.values())):
        found = "; ".join(f"{address} serves {', '.join(names) or 'nothing'}" for address, names in served.items())
        raise ServerError(", ".join(served), f"no model is served by all of them: {found}")
    return served


def for_each_of(n_servers: int, settings: EngineSettings) -> EngineSettings:
    """Return with what each of so many servers is asked: what fails at one of several is not asked there again."""
    return settings if n_servers == 1 else settings.model_copy(update={"max_retries": 0})


@dataclass
class Share:
    """What one server has done.

    Attributes:
        answers: Requests that it answered.
        tokens: That it drew for them.
        failures: Requests that it failed, and that another server was asked.
    """

    answers: int = 0
    tokens: int = 0
    failures: int = 0


_shares: dict[str, Share] = {}
_shares_lock = Lock()


def _count(server: str, answers: int = 0, tokens: int = 0, failures: int = 0) -> None:
    with _shares_lock:
        share = _shares.setdefault(server, Share())
        share.answers += answers
        share.tokens += tokens
        share.failures += failures


class ServerShares:
    """What each server does in this process from here on."""

    def __init__(self) -> None:
        with _shares_lock:
            self._before = {name: Share(**asdict(share)) for name, share in _shares.items()}

    def told(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return it by server, for metadata; nothing if none was asked."""
        with _shares_lock:
            now = {name: asdict(share) for name, share in _shares.items()}
        before = {name: asdict(self._before.get(name, Share())) for name in now}
        done = {name: {what: n - before[name][what] for what, n in share.items()} for name, share in now.items()}
        asked = {name: share for name, share in done.items() if any(share.values())}
        return {"servers": asked} if asked else {}


@dataclass(eq=False)
class _Server:
    """One of them.

    Attributes:
        client: Asks it.
        in_flight: Requests in progress.
        answered: Requests.
        failures: In a row.
        rests_until: When it may be looked at again, in monotonic seconds; None while it is given requests.
        looked_at: Whether someone is asking it what it serves.
        trouble: Why it rests.
    """

    client: CompletionClient
    in_flight: int = 0
    answered: int = 0
    failures: int = 0
    rests_until: float | None = None
    looked_at: bool = False
    trouble: ServerError | ModelError | None = None


class ServerPool:
    """The servers of one model.

    Args:
        clients: One each. A single one tries failures again by itself; of several none should.
        served_as: Name under which all of them must know the model.
        path: Of the model, for errors.
        in_flight: Requests that are in progress at each.
        tries: Of a request, at whatever servers; of several, each is worth one.
    """

    def __init__(
        self, clients: Sequence[CompletionClient], served_as: str, path: Path, in_flight: int, tries: int
    ) -> None:
        self._servers = [_Server(client) for client in clients]
        self._served_as, self._path, self._in_flight = served_as, path, in_flight
        self._tries = max(tries, len(clients)) if len(clients) > 1 else 1
        self._begun = False
        self._changed = Condition()

    @property
    def in_flight(self) -> int:
        """Requests that are in progress at all of them together."""
        return self._in_flight * len(self._servers)

    @property
    def resting(self) -> list[bool]:
        """Whether each server rests."""
        return [server.rests_until is not None for server in self._servers]

    def require(self) -> int | None:
        """Require that the model is served, before anything is computed, and return the smallest window told.

        Of several servers one that does not answer rests, so that its death ends no run. One that has another model is
        refused the first time, and rests if it has gone wrong since.

        Raises:
            ModelError: If a server does not serve it.
            ServerError: If no server answers.
        """
        asked = [server for server in self._servers if server.rests_until is None] or self._servers
        with ThreadPoolExecutor(len(asked)) as threads:
            found = list(threads.map(self._look, asked))
        wrong = [trouble for _, trouble in found if trouble is not None]
        if not self._begun or len(self._servers) == 1:
            refused = [trouble for trouble in wrong if isinstance(trouble, ModelError) or len(wrong) == len(found)]
            if refused:
                raise refused[0]
        self._begun = True
        for server, (_, trouble) in zip(asked, found, strict=True):
            self._judge(server, trouble)
        return min((window for window, _ in found if window is not None), default=None)

    def complete(self, prompt: Sequence[int], **fields: Any) -> Answer:
        """Have a prompt completed by one of the servers; see `CompletionClient.complete`.

        Raises:
            ServerError: If the request is at fault, has failed as often as it may, or no server is left.
            ModelError: If the last of them serves another model by now.
        """
        failed_at: list[_Server] = []
        while True:
            server = self._next(failed_at)
            try:
                answer = server.client.complete(self._served_as, prompt, **fields)
            except ServerError as error:
                failed_at.append(server)
                final = error.status in _AT_FAULT
                self._give_back(server, None if final else error)
                if final or len(failed_at) >= self._tries:
                    raise
            except BaseException:
                self._give_back(server, None)
                raise
            else:
                self._give_back(server, answer)
                return answer

    def _next(self, failed_at: Sequence[_Server]) -> _Server:
        """Return where a request goes, waiting until there is a server; if any works, one that has not failed it."""
        while True:
            with self._changed:
                others = [s for s in self._servers if s not in failed_at]
                eligible = others if any(s.rests_until is None for s in others) else self._servers
                server = self._ready(eligible) or self._due(eligible)
                if server is None:
                    self._require_hope()
                    self._changed.wait(_seconds_to_wait(eligible))
                    continue
                if server.rests_until is None:
                    server.in_flight += 1
                    return server
                server.looked_at = True
            _, trouble = self._look(server)
            self._judge(server, trouble)

    def _ready(self, eligible: Sequence[_Server]) -> _Server | None:
        ready = [s for s in eligible if s.rests_until is None and s.in_flight < self._in_flight]
        return min(ready, key=lambda s: (s.in_flight, s.answered), default=None)

    def _due(self, eligible: Sequence[_Server]) -> _Server | None:
        now = time.monotonic()
        return next(
            (s for s in eligible if not s.looked_at and s.rests_until is not None and s.rests_until <= now), None
        )

    def _require_hope(self) -> None:
        """Raise the trouble of the last server that failed, if all have failed too often in a row."""
        if all(s.rests_until is not None and not s.looked_at and s.failures >= self._tries for s in self._servers):
            trouble = max(self._servers, key=lambda s: s.rests_until or 0.0).trouble
            assert trouble is not None, "a server that rests has a reason"
            raise trouble

    def _look(self, server: _Server) -> tuple[int | None, ServerError | ModelError | None]:
        """Return the window of the model that a server serves, and what is wrong with it."""
        try:
            served = server.client.served()
        except ServerError as error:
            return None, error
        if self._served_as in served:
            return served[self._served_as], None
        return None, ModelError(
            self._path,
            f"the server {server.client.name} does not serve it under the name {self._served_as!r}; it serves: "
            f"{', '.join(served) or 'nothing'}. Start the server with this model (vLLM: vllm serve {self._path} "
            f"--served-model-name {self._served_as}), or correct engine.model",
        )

    def _judge(self, server: _Server, trouble: ServerError | ModelError | None) -> None:
        """Let a server that was looked at rest, or give it requests."""
        with self._changed:
            server.looked_at = False
            if trouble is not None:
                self._rest(server, trouble)
            elif server.rests_until is not None:
                server.rests_until = None
                log.info("server %s is back", server.client.name)
            self._changed.notify_all()

    def _give_back(self, server: _Server, outcome: Answer | ServerError | None) -> None:
        with self._changed:
            server.in_flight -= 1
            if isinstance(outcome, Answer):
                server.failures = 0
                server.answered += 1
                _count(server.client.name, answers=1, tokens=outcome.n_tokens)
            elif outcome is not None:
                _count(server.client.name, failures=1)
                # What was in progress when it failed is no further failure.
                if len(self._servers) > 1 and server.rests_until is None:
                    self._rest(server, outcome)
            self._changed.notify_all()

    def _rest(self, server: _Server, trouble: ServerError | ModelError) -> None:
        server.failures += 1
        server.rests_until = time.monotonic() + pause_before(server.failures)
        if type(trouble) is not type(server.trouble) or server.failures == 1:
            log.warning("%s; until it is back, the other servers do its work", trouble)
        server.trouble = trouble


def _seconds_to_wait(servers: Sequence[_Server]) -> float | None:
    """Return how long until one of them may be looked at; None if only a change can help."""
    ends = [s.rests_until for s in servers if s.rests_until is not None and not s.looked_at]
    return max(0.0, min(ends) - time.monotonic()) if ends else None
