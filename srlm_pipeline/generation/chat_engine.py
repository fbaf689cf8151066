"""A model behind the chat endpoint of any OpenAI-compatible server: it writes, and tells no probabilities.

Unlike `OpenAIEngine` it knows nothing of the model but its name: neither tokenizer nor weights are here. Every request
that is sent counts against a budget, those that fail included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import openai

from srlm_pipeline.config import ServerSettings
from srlm_pipeline.errors import BudgetError
from srlm_pipeline.generation.completion_client import ServerConnection
from srlm_pipeline.generation.engine import Completion, FinishReason, GenerationRequest, Sampling, cut
from srlm_pipeline.generation.parallel import in_parallel

# What an answer ends with that was not finished; servers have many names for one that was.
_CUT_OFF = frozenset({"length", "content_filter"})
# Fields that OpenAI's reasoning models refuse; every other server knows the first by this name alone.
_NOT_FOR_ALL = frozenset({"max_tokens", "temperature", "top_p"})


class _BudgetSpentError(openai.OpenAIError):
    """Ends a request before it is sent. The library tries again after any error but its own."""


class ChatAnswer(NamedTuple):
    """What a server said.

    Attributes:
        text: Of the message; empty where it has none.
        finish_reason: As the server gave it.
        n_tokens: How many it drew; 0 if it does not tell.
    """

    text: str
    finish_reason: str | None
    n_tokens: int


class ChatClient(ServerConnection):
    """A server's chat completions, of which there may be so many.

    Args:
        settings: Address, key, timeout, retries and budget.
    """

    def __init__(self, settings: ServerSettings) -> None:
        http = openai.DefaultHttpxClient(event_hooks={"request": [self._spend]})
        super().__init__(settings, str(settings.base_url), http)
        self._budget, self._lock = settings.max_requests, Lock()
        self._sent = self._answered = 0
        self._refused: set[str] = set()

    def chat(self, model: str, message: str, sampling: Sampling) -> ChatAnswer:
        """Have one user message answered.

        Raises:
            BudgetError: If the budget was spent before.
            ServerError: If the server refuses, or fails more often than it may.
        """
        try:
            answer = self._ask(lambda: self._create(model, message, sampling), _read_answer, "a chat completion")
        except _BudgetSpentError:
            raise self.budget_error() from None
        with self._lock:
            self._answered += 1
        return answer

    def budget_error(self) -> BudgetError:
        """Return what was spent, and on how many answers."""
        return BudgetError(self._address, self._sent, self._answered)

    def _create(self, model: str, message: str, sampling: Sampling) -> str:
        fields = self._fields(sampling)
        try:
            return self._api.chat.completions.with_raw_response.create(
                model=model, messages=[{"role": "user", "content": message}], **fields
            ).text
        except openai.BadRequestError as error:
            if error.param not in _NOT_FOR_ALL or error.param not in fields:
                raise
            self._refused.add(error.param)
        return self._create(model, message, sampling)

    def _fields(self, sampling: Sampling) -> dict[str, Any]:
        limit = "max_completion_tokens" if "max_tokens" in self._refused else "max_tokens"
        fields = {limit: sampling.max_new_tokens, "temperature": sampling.temperature}
        if sampling.top_p < 1:
            fields["top_p"] = sampling.top_p
        return {name: value for name, value in fields.items() if name not in self._refused}

    def _spend(self, _: Any) -> None:
        with self._lock:
            if self._sent >= self._budget:
                raise _BudgetSpentError
            self._sent += 1


class ChatEngine:
    """A `TextWriter` over a server's chat completions. What is rendered is the user's message itself.

    Args:
        settings: Of the server.
        model: Name under which the server knows the model.
    """

    def __init__(self, settings: ServerSettings, model: str) -> None:
        self._client, self._model = ChatClient(settings), model
        self._in_flight = settings.concurrency
        self._host = urlsplit(str(settings.base_url)).hostname

    @property
    def digest(self) -> str:
        """Name of the model and of the server; what weights are behind it is not known."""
        return f"{self._model}@{self._host}"

    def render(self, text: str, reply_start: str = "") -> str:
        """Return the message as it is: the server applies the chat template.

        Raises:
            ValueError: If the reply is to begin in some way; nobody can ask a chat server for that.
        """
        if reply_start:
            raise ValueError(f"{self.digest} cannot be told how its reply begins")
        return text

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        on_finished: Callable[[list[Completion]], None] | None = None,
    ) -> list[Completion]:
        """Have every message answered; see `TextWriter.generate`. Seeds are not sent: few servers heed them.

        When the server fails, what it has finished is handed to `on_finished` before the error is raised.

        Raises:
            BudgetError: If the budget does not suffice.
            ServerError: If the server refuses, or fails more often than it may.
        """

        def write(place: int) -> Completion:
            answer = self._client.chat(self._model, requests[place].prompt, sampling)
            shortened = cut(answer.text, sampling)
            if shortened is not None:
                return Completion(requests[place].key, shortened, answer.n_tokens, "stop")
            ended: FinishReason = "length" if answer.finish_reason in _CUT_OFF else "stop"
            return Completion(requests[place].key, answer.text, answer.n_tokens, ended)

        try:
            return in_parallel(len(requests), write, self._in_flight, on_finished)
        except BudgetError:
            # Told again, now that what was under way has been answered.
            raise self._client.budget_error() from None


def _read_answer(answer: Any) -> ChatAnswer:
    choice = answer["choices"][0]
    # A model that refuses has no content.
    text = choice["message"].get("content") or ""
    used = (answer.get("usage") or {}).get("completion_tokens") or 0
    return ChatAnswer(str(text), choice.get("finish_reason"), int(used))
