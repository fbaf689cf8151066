"""A model behind the chat endpoint of any OpenAI-compatible server: it writes, and tells no probabilities.

Unlike `OpenAIEngine` it knows nothing of the model but its name: neither tokenizer nor weights are here. Every request
that is sent counts against a budget, those that fail included.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from threading import Lock
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import openai

from srlm_pipeline.config import ServerSettings
from srlm_pipeline.errors import BudgetError, ServerError
from srlm_pipeline.generation.calls import Call, CallLog, cost_of
from srlm_pipeline.generation.completion_client import ServerConnection, ending, whole_characters
from srlm_pipeline.generation.engine import Completion, FinishReason, GenerationRequest, Sampling, cut
from srlm_pipeline.generation.parallel import in_parallel

log = logging.getLogger(__name__)

# A server that says nothing to so many messages, or more, does not work; to single ones it may have its reasons.
_FEW = 5
_LIMITS = frozenset({"length", "max_tokens", "max_output_tokens", "model_length"})
# Thoughts that a server leaves in the answer. The template may have opened them: then only their end is there, and
# counts on a line of its own, because an answer may speak of it.
_OPENING = re.compile(r"\s*(?:<(?:think|thinking|thought)>|\[THINK\])")
_CLOSING = r"(?:</(?:think|thinking|thought)>|\[/THINK\])"
_CLOSED, _CLOSED_BY_A_LINE = re.compile(_CLOSING), re.compile(rf"^[ \t]*{_CLOSING}[ \t]*$", re.MULTILINE)
# Fields that OpenAI's reasoning models refuse; every other server knows the first by this name alone.
_NOT_FOR_ALL = frozenset({"max_tokens", "temperature", "top_p"})


class _BudgetSpentError(openai.OpenAIError):
    """Ends a request before it is sent. The library tries again after any error but its own."""


# How servers say that they do not know a field, where they do not name it as a parameter.
_UNKNOWN_FIELD = re.compile(r"unsupported|not support|unrecognized|unknown|unexpected", re.IGNORECASE)
# Why a server refuses this message and would answer others: its filter does not like it, or it is too long.
_ONLY_THIS = re.compile(
    r"content_filter|content_policy|ResponsibleAIPolicy|context_length_exceeded"
    r"|(?:maximum|exceed\w*)[^.]{0,40} context",
    re.IGNORECASE,
)


class _DeclinedError(openai.OpenAIError):
    """Ends a request whose message the server will not answer, whatever the tries."""


class ChatAnswer(NamedTuple):
    """What a server said.

    Attributes:
        text: Of the message, without the model's thoughts; empty where it has none.
        finish_reason: What ended it: ``none`` if nothing was said, though no limit was reached.
        n_tokens: How many it drew, thoughts included; 0 if it does not tell.
        thoughts: What a reasoning model thought before it answered; no part of the answer.
        usage: As the server counts it; empty if it does not.
    """

    text: str
    finish_reason: FinishReason
    n_tokens: int
    thoughts: str
    usage: Mapping[str, Any]


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
        self._declined = ""

    def chat(self, model: str, message: str, sampling: Sampling) -> ChatAnswer:
        """Have one user message answered. An empty answer is asked for again, as often as a failure.

        One that the server declines for its content or length, while it would answer others, is empty at once.

        Raises:
            BudgetError: If the budget was spent before.
            ServerError: If the server refuses, or fails more often than it may.
        """
        try:
            answer = self._ask(
                lambda: self._create(model, message, sampling),
                _read_answer,
                "a chat completion",
                lambda answer: answer.finish_reason != "none",
            )
        except _BudgetSpentError:
            raise self.budget_error() from None
        except _DeclinedError:
            return ChatAnswer("", "none", 0, "", {})
        with self._lock:
            self._answered += answer.finish_reason != "none"
        return answer

    def budget_error(self) -> BudgetError:
        """Return what was spent, and on how many answers."""
        return BudgetError(self._address, self._sent, self._answered)

    def silence(self, n_messages: int) -> ServerError:
        """Return that the server works and says nothing."""
        why = f": {self._declined}" if self._declined else ", however often it was asked"
        return self._error(f"it said nothing to any of {n_messages} messages{why}")

    def _create(self, model: str, message: str, sampling: Sampling) -> str:
        fields = self._fields(sampling)
        try:
            return self._api.chat.completions.with_raw_response.create(
                model=model, messages=[{"role": "user", "content": message}], **fields
            ).text
        except openai.BadRequestError as error:
            field = error.param or _field_named(error.message, fields)
            if field not in _NOT_FOR_ALL or field not in fields:
                if not _ONLY_THIS.search(error.response.text):
                    raise
                self._declined = self._quote(error.response.text)
                raise _DeclinedError from None
            self._refused.add(field)
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
        calls: Where every call is noted; None: nowhere.
    """

    def __init__(self, settings: ServerSettings, model: str, calls: CallLog | None = None) -> None:
        self._client, self._model, self._calls = ChatClient(settings), model, calls
        self._prices = settings.input_price, settings.output_price
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

        When the server fails, what it has finished is handed to `on_finished` before the error is raised. A message to
        which it says nothing, however often it is asked, has a completion that ends with ``none``.

        Raises:
            BudgetError: If the budget does not suffice.
            ServerError: If the server refuses, fails more often than it may, or says nothing to anything.
        """

        def write(place: int) -> Completion:
            answer = self._chat(requests[place].prompt, sampling)
            shortened = cut(answer.text, sampling)
            if shortened is not None:
                return Completion(requests[place].key, shortened, answer.n_tokens, "stop")
            # Some proxies call every end `stop`. More tokens than were allowed are thoughts that count elsewhere.
            used_up = answer.finish_reason == "stop" and answer.n_tokens == sampling.max_new_tokens
            ended = "length" if used_up else answer.finish_reason
            return Completion(requests[place].key, answer.text, answer.n_tokens, ended)

        try:
            written = in_parallel(len(requests), write, self._in_flight, on_finished)
        except BudgetError:
            # Told again, now that what was under way has been answered.
            raise self._client.budget_error() from None
        self._tell_of_silence(written)
        return written

    def _chat(self, message: str, sampling: Sampling) -> ChatAnswer:
        at, started = datetime.now(UTC), time.monotonic()
        answer = self._client.chat(self._model, message, sampling)
        if self._calls is not None:
            self._calls.add(
                Call(
                    at=at.isoformat(timespec="milliseconds"),
                    model=self._model,
                    server=str(self._host),
                    seconds=round(time.monotonic() - started, 3),
                    prompt_tokens=int(answer.usage.get("prompt_tokens") or 0),
                    completion_tokens=answer.n_tokens,
                    thought_characters=len(answer.thoughts),
                    finish_reason=answer.finish_reason,
                    cost=cost_of(answer.usage, self._prices),
                )
            )
        return answer

    def _tell_of_silence(self, written: Sequence[Completion]) -> None:
        silent = sum(completion.finish_reason == "none" for completion in written)
        if silent and silent == len(written) >= _FEW:
            raise self._client.silence(silent)
        if silent:
            log.warning(
                "%s said nothing to %d of %d messages: these are no opinions, and it is asked again the next time",
                self.digest,
                silent,
                len(written),
            )


def _read_answer(answer: Any) -> ChatAnswer:
    choice = answer["choices"][0]
    message = choice["message"]
    content, apart = _texts(message.get("content"))
    thoughts, spoken = _split(content)
    thoughts = apart or _own_text(message.get("reasoning_content")) or _own_text(message.get("reasoning")) or thoughts
    # A model that refuses says so elsewhere, and has no content.
    text = spoken if spoken.strip() else _own_text(message.get("refusal"))
    ended = ending(choice.get("finish_reason"))
    if not text and str(choice.get("finish_reason")).lower() not in _LIMITS:
        ended = "none"
    usage = answer.get("usage") or {}
    drawn = int(usage.get("completion_tokens") or 0)
    return ChatAnswer(whole_characters(text), ended, drawn, whole_characters(thoughts), usage)


def _field_named(message: str, fields: Iterable[str]) -> str | None:
    """Return the field of a request that an error's words are about, where they say that it is not known."""
    named = (name for name in fields if re.search(rf"\b{name}\b", message))
    return next(named, None) if _UNKNOWN_FIELD.search(message) else None


def _split(content: str) -> tuple[str, str]:
    """Return the thoughts that an answer begins with, and the rest; thoughts that do not end are all there is."""
    opening = _OPENING.match(content)
    end = (_CLOSED if opening else _CLOSED_BY_A_LINE).search(content)
    if end:
        return content[opening.end() if opening else 0 : end.start()], content[end.end() :].lstrip()
    return (content, "") if opening else ("", content)


def _texts(content: Any) -> tuple[str, str]:
    """Return what a message's content says and what it thinks: one text, or parts of several types.

    Raises:
        TypeError: If it is anything else.
    """
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise TypeError("neither a text nor parts")
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    said = [_own_text(part.get("text")) for part in parts if part.get("type") in ("text", "output_text", None)]
    thought = [
        _own_text(part.get(part["type"])) or "".join(_texts(part.get(part["type"])))
        for part in parts
        if part.get("type") in ("thinking", "reasoning")
    ]
    return "".join(said), "".join(thought)


def _own_text(value: Any) -> str:
    return value if isinstance(value, str) else ""
