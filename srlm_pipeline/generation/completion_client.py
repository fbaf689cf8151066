"""The wire to an OpenAI-compatible server: one request at a time, retried, with errors that a person can read."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from srlm_pipeline.config import EngineSettings, ServerSettings
from srlm_pipeline.errors import ServerError

if TYPE_CHECKING:
    import httpx2
    import openai

Result = TypeVar("Result")

# Servers have defaults of their own (llama.cpp cuts at 40 tokens, some read generation_config.json): none may apply.
_NO_OTHER_SAMPLING = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
_LONGEST_QUOTE = 500
_LONGEST_PAUSE_SECONDS = 8.0


@dataclass(frozen=True)
class Answer:
    """What a server made of one prompt.

    Attributes:
        text: Of the completion.
        finish_reason: As the server gave it.
        n_prompt_tokens: How many tokens the server read.
        n_tokens: How many it drew.
        log_probabilities: Of the first token drawn, by the server's name of the token; empty unless asked for.
        token_ids: What it drew; None where it does not tell.
    """

    text: str
    finish_reason: str | None
    n_prompt_tokens: int
    n_tokens: int
    log_probabilities: Mapping[str, float]
    token_ids: tuple[int, ...] | None = None


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
        self._api = openai.OpenAI(
            # The library wants a key; servers without one read none.
            api_key=self._key or "none",
            base_url=address,
            timeout=settings.timeout_seconds,
            max_retries=settings.max_retries,
            http_client=http,
        )

    def _ask(self, call: Callable[[], str], read: Callable[[Any], Result], wanted: str) -> Result:
        """The library retries failures; an answer that cannot be read is one too, and is retried here."""
        import openai

        for attempt in range(self._settings.max_retries + 1):
            if attempt:
                time.sleep(min(2.0 ** (attempt - 2), _LONGEST_PAUSE_SECONDS))
            try:
                text = call()
            except openai.APIError as error:
                # Not chained: a server may quote the key.
                raise self._explain(error) from None
            try:
                return read(json.loads(text))
            except (ValueError, TypeError, LookupError, AttributeError):
                continue
        raise self._error(f"its answer is not {wanted}: {self._quote(text)}")

    def _explain(self, error: openai.APIError) -> ServerError:
        import openai

        tries = f"{self._settings.max_retries + 1} tries"
        if isinstance(error, openai.APITimeoutError):
            allowed = f"{self._section}.timeout_seconds ({self._settings.timeout_seconds:g} s; {tries})"
            return self._error(f"it did not answer within {allowed}")
        if isinstance(error, openai.APIConnectionError):
            return self._error(f"no server answers ({error.__cause__ or error}; {tries}): is it running?")
        if not isinstance(error, openai.APIStatusError):
            return self._error(str(error))
        said = f"{error.status_code}: {self._quote(error.response.text)}"
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            holds = "holds a key that it refuses" if self._key else "is not set"
            return self._error(f"the environment variable {self._settings.api_key_variable} {holds} ({said})")
        return self._error(f"it answered {said}")

    def _quote(self, text: str) -> str:
        # First without the key, or half of it might remain at the end.
        return self._without_key(text)[:_LONGEST_QUOTE]

    def _error(self, reason: str) -> ServerError:
        return ServerError(self._address, self._without_key(reason))

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class CompletionClient(ServerConnection):
    """A server's list of models and its raw completions."""

    def served(self) -> dict[str, int | None]:
        """Return the names of the models that the server knows, each with its window where the server tells it.

        Raises:
            ServerError: If the server cannot be asked.
        """
        return self._ask(
            lambda: self._api.models.with_raw_response.list().text,
            lambda answer: {str(model["id"]): model.get("max_model_len") for model in answer["data"]},
            "a list of models",
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


def _read_answer(answer: Any) -> Answer:
    choice = answer["choices"][0]
    listed = (choice.get("logprobs") or {}).get("top_logprobs") or [{}]
    return Answer(
        text=str(choice["text"]),
        finish_reason=choice["finish_reason"],
        n_prompt_tokens=int(answer["usage"]["prompt_tokens"]),
        n_tokens=int(answer["usage"]["completion_tokens"]),
        log_probabilities={str(token): float(value) for token, value in (listed[0] or {}).items()},
        token_ids=tuple(map(int, choice["token_ids"])) if choice.get("token_ids") else None,
    )
