"""The wire to an OpenAI-compatible server: one request at a time, retried, with errors that a person can read."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from srlm_pipeline.config import EngineSettings, ServerSettings
from srlm_pipeline.errors import ServerError
from srlm_pipeline.generation.engine import FinishReason

if TYPE_CHECKING:
    import httpx2
    import openai

Result = TypeVar("Result")

# Servers have defaults of their own (llama.cpp cuts at 40 tokens, some read generation_config.json): none may apply.
_NO_OTHER_SAMPLING = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
_LONGEST_QUOTE = 500
_LONGEST_PAUSE_SECONDS = 8.0
# A list of models takes no computing: a server that has not sent it by then does not answer.
_LISTING_SECONDS = 30.0
# Enough for a proxy that has its clients come back until a long answer is there; more is a loop.
_MOST_REDIRECTS = 5
# What servers call an end that the model itself came to. Any other name than these is a cut.
_ENDED = frozenset({"stop", "eos", "eos_token", "stop_sequence", "end_turn", "end", "complete", "completed"})
# The server stopped, not the model: vLLM and SGLang, OpenRouter and Cohere, DeepSeek, Ollama.
_BROKEN_OFF = frozenset({"abort", "error", "insufficient_system_resource", "load", "unload"})
# What reading an answer of another shape, or of absurd size, raises.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError)
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Answer:
    """What a server made of one prompt.

    Attributes:
        text: Of the completion.
        finish_reason: What ended it; see `ending`.
        n_prompt_tokens: How many tokens the server read.
        n_tokens: How many it drew.
        log_probabilities: Of the first token drawn, by the server's name of the token; empty unless asked for.
        token_ids: What it drew; None where it does not tell.
    """

    text: str
    finish_reason: FinishReason
    n_prompt_tokens: int
    n_tokens: int
    log_probabilities: Mapping[str, float]
    token_ids: tuple[int, ...] | None = None


def ending(finish_reason: Any) -> FinishReason:
    """Return what ended an answer, by a server's name for it. A name that nobody knows, or none, means a cut.

    Args:
        finish_reason: As the server gave it.

    Raises:
        ValueError: If the server broke off, so that the same question may be answered the next time.
    """
    name = str(finish_reason).lower()
    if name in _BROKEN_OFF:
        raise ValueError(f"the server broke off: {name}")
    return "stop" if name in _ENDED else "length"


def whole_characters(text: str) -> str:
    """Replace halves of a character (lone surrogates) by U+FFFD: no file can hold them."""
    return _LONE_SURROGATES.sub("\ufffd", text)


def pause_before(attempt: int) -> float:
    """Return the seconds to wait before an attempt, the first after a failure being 1: from half a second up."""
    return min(2.0 ** (attempt - 2), _LONGEST_PAUSE_SECONDS)


class ServerConnection:
    """An address, a key and some patience.

    Args:
        settings: Key, timeout and retries.
        address: The API's base address.
        http: Other transport than plain TCP.
    """

    def __init__(
        self, settings: EngineSettings | ServerSettings, address: str, http: httpx2.Client | None = None
    ) -> None:
        import openai

        self._address, self._settings = address, settings
        self._section = "engine" if isinstance(settings, EngineSettings) else "server"
        self._key = os.environ.get(settings.api_key_variable, "").strip()
        http = http or openai.DefaultHttpxClient()
        http.max_redirects = _MOST_REDIRECTS
        self._api = openai.OpenAI(
            # The library wants a key; servers without one read none.
            api_key=self._key or "none",
            base_url=address,
            timeout=settings.timeout_seconds,
            max_retries=settings.max_retries,
            http_client=http,
        )

    def _ask(
        self,
        call: Callable[[], str],
        read: Callable[[Any], Result],
        wanted: str,
        suffices: Callable[[Result], bool] = lambda _: True,
        seconds: float | None = None,
    ) -> Result:
        """The library retries failures; an answer that cannot be read is one too, and is retried here.

        So is one that does not suffice; the last of those is returned after all. `seconds` is told where it is not the
        setting that limits an attempt.
        """
        import openai

        poor: Result | None = None
        for attempt in range(self._settings.max_retries + 1):
            if attempt:
                time.sleep(pause_before(attempt))
            try:
                text = call()
            except openai.APIError as error:
                # Not chained: a server may quote the key.
                raise self._explain(error, seconds) from None
            try:
                result = read(_decoded(text))
            except _UNREADABLE:
                continue
            if suffices(result):
                return result
            poor = result
        if poor is not None:
            return poor
        raise self._error(f"its answer is not {wanted}: {self._quote(text)}")

    def _explain(self, error: openai.APIError, seconds: float | None = None) -> ServerError:
        import httpx2
        import openai

        tries = f"{self._settings.max_retries + 1} tries" if self._settings.max_retries else "1 try"
        if isinstance(error, openai.APITimeoutError):
            allowed = f"{self._section}.timeout_seconds ({self._settings.timeout_seconds:g} s; {tries})"
            return self._error(f"it did not answer within {f'{seconds:g} s ({tries})' if seconds else allowed}")
        if isinstance(error, openai.APIConnectionError):
            if isinstance(error.__cause__, httpx2.TooManyRedirects):
                return self._error(f"it sends requests on more than {_MOST_REDIRECTS} times: name the last address")
            return self._error(f"no server answers ({error.__cause__ or error}; {tries}): is it running?")
        if not isinstance(error, openai.APIStatusError):
            return self._error(str(error))
        said = f"{error.status_code}: {self._quote(error.response.text)}"
        if error.response.history:
            said += f" (it had sent the request on to {error.response.url}: name that in {self._section}.base_url)"
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            holds = "holds a key that it refuses" if self._key else "is not set"
            said = f"the environment variable {self._settings.api_key_variable} {holds} ({said})"
            return self._error(said, error.status_code)
        return self._error(f"it answered {said}", error.status_code)

    def _quote(self, text: str) -> str:
        # First without the key, or half of it might remain at the end.
        return self._without_key(text)[:_LONGEST_QUOTE]

    def _error(self, reason: str, status: int | None = None) -> ServerError:
        return ServerError(self._address, self._without_key(reason), status)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class CompletionClient(ServerConnection):
    """A server's list of models and its raw completions."""

    @property
    def name(self) -> str:
        """Of the server, for people: its host and port, without a user's name or password."""
        return urlsplit(self._address).netloc.rpartition("@")[2]

    def served(self) -> dict[str, int | None]:
        """Return the names of the models that the server knows, each with its window where the server tells it.

        Raises:
            ServerError: If the server cannot be asked, or takes longer than so simple a question may.
        """
        limited = self._settings.timeout_seconds > _LISTING_SECONDS
        seconds = _LISTING_SECONDS if limited else self._settings.timeout_seconds
        return self._ask(
            lambda: self._api.models.with_raw_response.list(timeout=seconds).text,
            lambda answer: {str(model["id"]): model.get("max_model_len") for model in answer["data"]},
            "a list of models",
            seconds=seconds if limited else None,
        )

    def complete(self, model: str, prompt: Sequence[int], **fields: Any) -> Answer:
        """Have one prompt completed.

        Args:
            model: Name under which the server knows the model.
            prompt: Token ids: a server cannot add a start token to them or read them differently.
            fields: Of the request's body, beside those that every request has.

        Raises:
            ServerError: If the server refuses, or fails more often than it may.
        """
        body = {**_NO_OTHER_SAMPLING, **fields}
        return self._ask(
            lambda: (
                self._api.completions.with_raw_response.create(model=model, prompt=list(prompt), extra_body=body).text
            ),
            _read_answer,
            "a completion",
        )


def _decoded(text: str) -> Any:
    """Return an answer's content: one JSON object, or what servers that stream unasked put together event by event."""
    if not text.lstrip().startswith(("data:", ":")):
        return json.loads(text)
    lines = (line.removeprefix("data:").strip() for line in text.split("\n") if line.startswith("data:"))
    events = [json.loads(line) for line in lines if line and line != "[DONE]"]
    choices = [event["choices"][0] for event in events if event.get("choices")]
    written: dict[str, str] = {}
    for choice in choices:
        for name, piece in choice["delta"].items():
            if name != "role" and isinstance(piece, str):
                written[name] = written.get(name, "") + piece
    ends = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    usages = [event["usage"] for event in events if event.get("usage")]
    return {
        "choices": [{"message": written, "finish_reason": ends[-1] if ends else None}],
        "usage": usages[-1] if usages else None,
    }


def _read_answer(answer: Any) -> Answer:
    choice = answer["choices"][0]
    if not isinstance(choice["text"], str):
        raise TypeError("no text")
    return Answer(
        text=whole_characters(choice["text"]),
        finish_reason=ending(choice["finish_reason"]),
        n_prompt_tokens=int(answer["usage"]["prompt_tokens"]),
        n_tokens=int(answer["usage"]["completion_tokens"]),
        log_probabilities=_first_listed(choice.get("logprobs") or {}),
        token_ids=tuple(map(int, choice["token_ids"])) if choice.get("token_ids") else None,
    )


def _first_listed(log_probabilities: Mapping[str, Any]) -> dict[str, float]:
    """Return what is told of the first token: in the completions' form, or, as llama.cpp does, in that of chats."""
    if drawn := log_probabilities.get("content"):
        listed = drawn[0]["top_logprobs"]
        return {f"token_id:{t['id']}" if "id" in t else str(t["token"]): float(t["logprob"]) for t in listed}
    listed = log_probabilities.get("top_logprobs") or [{}]
    return {str(token): float(value) for token, value in (listed[0] or {}).items()}
