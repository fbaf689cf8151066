"""Chats of every spelling: lists of messages and transcripts become prompts, with their history, and replies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from srlm_pipeline.data.conversations import join_turns, without_marks
from srlm_pipeline.data.rows import UnusableRowError

_ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatbot", "chatgpt", "bard", "bing"),
    "tool": (
        *("tool", "function", "observation", "ipython", "environment"),
        *("function_call", "function_response", "tool_call", "tool_response", "tool_calls"),
    ),
}
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names}
_TEXT_PARTS = ("text", "input_text", "output_text")
# Anthropic's hh; HelpSteer2 writes the first user's turn without a mark.
_HUMAN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_EXTRA_ID = re.compile(r"(?:\A|\n)\s*<extra_id_1>(User|Assistant)[ ]*(?:\n|\Z)")


@dataclass(frozen=True)
class Exchange:
    """What a user said, and the reply to it.

    Attributes:
        prompt: The user's message, with its history if it has one.
        response: The reply; blank if none is needed.
    """

    prompt: str
    response: str = ""


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) and _role(m) for m in value)


def role_of(message: Mapping[str, Any]) -> str | None:
    """Return who says a message, ``system``, ``user``, ``assistant`` or ``tool``; None if that is not known."""
    return _ROLE_OF.get(_role(message).strip().lower())


def exchanges(messages: Any, answered: bool, system: Any = None) -> Iterator[Exchange]:
    """Return a chat's exchanges in their order, each with what was said before it.

    A system message at the beginning is put in front of the first prompt: the replies were written under it. Messages
    of weight 0, which OpenAI's fine-tuning leaves out, are history but no replies.

    Args:
        messages: A list of `role` and `content`, or `from` and `value`.
        answered: Whether replies are needed; else every message of the user is one.
        system: What the row says apart from the messages; theirs comes before it.

    Raises:
        UnusableRowError: At the first message that no one can have said there. What came before is of use.
    """
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        raise UnusableRowError("messages: expected a list of objects with role and content, or from and value")
    turns: list[str] = []
    lead = system if isinstance(system, str) else ""
    n_found = 0
    for place, message in enumerate(messages):
        role = role_of(message)
        where = f" (message {place + 1})"
        if role == "tool" or message.get("tool_calls") or message.get("function_call"):
            raise UnusableRowError("messages: calls of tools cannot be learned", where)
        if role is None:
            raise UnusableRowError("messages: unknown role", f" {_role(message)!r}{where}")
        if role == "system" and place == 0:
            lead = message_text(message, where)
            continue
        if role != ("assistant" if len(turns) % 2 else "user"):
            raise (
                _out_of_turn(answered)
                if not n_found
                else UnusableRowError("messages: user and assistant do not take turns", where)
            )
        text = message_text(message, where)
        turns.append(f"{lead.strip()}\n\n{text.strip()}".strip() if not turns else text)
        if role == "user" and not answered:
            n_found += 1
            yield Exchange(join_turns(turns))
        elif role == "assistant" and answered:
            n_found += 1
            if message.get("weight") != 0:
                yield Exchange(join_turns(turns[:-1]), without_marks(text))
    if not n_found:
        raise _out_of_turn(answered)


def message_text(message: Mapping[str, Any], where: str = "") -> str:
    """Return what a message says.

    Raises:
        UnusableRowError: If that is nothing, or no text.
    """
    content = next((message[name] for name in ("content", "value", "text") if name in message), None)
    if isinstance(content, list):
        content = "\n\n".join(_part_text(part, where) for part in content)
    if content is None or (isinstance(content, str) and not content.strip()):
        raise UnusableRowError("messages: a message without text", where)
    if not isinstance(content, str):
        raise UnusableRowError("messages: expected the content to be text", f"{where}, found {type(content).__name__}")
    return content


def read_prompt(value: Any) -> Any:
    """Return a prompt that stands in a column: a text, a transcript or a list of messages; anything else as it is.

    Raises:
        UnusableRowError: If a conversation does not end with the user's message.
    """
    messages = value if is_chat(value) else _from_transcript(value)
    if messages is None:
        return without_marks(value) if isinstance(value, str) else value
    if role_of(messages[-1]) != "user":
        raise UnusableRowError("prompt: the conversation does not end with the user's message")
    *_, last = exchanges(messages, answered=False)
    return last.prompt


def read_reply(value: Any) -> tuple[str | None, Any]:
    """Return a reply that stands in a column, as text, transcript or list of messages, and the prompt before it.

    Raises:
        UnusableRowError: If a conversation does not end with the assistant's message.
    """
    messages = value if is_chat(value) else _from_transcript(value)
    if messages is None:
        return None, without_marks(value) if isinstance(value, str) else value
    if role_of(messages[-1]) != "assistant":
        raise UnusableRowError("reply: the conversation does not end with the assistant's message")
    if len(messages) == 1:
        return None, message_text(messages[0])
    *_, last = exchanges([*messages[:-1], {**messages[-1], "weight": None}], answered=True)
    return last.prompt, last.response


def _from_transcript(value: Any) -> Sequence[Mapping[str, Any]] | None:
    """Return the messages of a transcript; None for any other text.

    The mark at the end after which the reply would follow is no message.
    """
    if not isinstance(value, str):
        return None
    if value.startswith("\n\nHuman:") or (re.match(r"\s*Human:", value) and "\n\nAssistant:" in value):
        pieces = _HUMAN.split(value)
    elif "<extra_id_1>Assistant" in value and _EXTRA_ID.search(value):
        pieces = _EXTRA_ID.split(value)
    else:
        return None
    first = [{"role": "user", "content": pieces[0]}] if pieces[0].strip() else []
    said = [
        {"role": speaker.lower(), "content": text.strip()}
        for speaker, text in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    open_end = bool(said) and role_of(said[-1]) == "assistant" and not said[-1]["content"]
    return [*first, *(said[:-1] if open_end else said)] or None


def _role(message: Mapping[str, Any]) -> str:
    role = message.get("role", message.get("from"))
    return role if isinstance(role, str) else ""


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
        raise UnusableRowError("messages: the content has parts that are no text", f"{where}: {kind}")
    return str(part["text"])


def _out_of_turn(answered: bool) -> UnusableRowError:
    wanted = "the user's message and the assistant's reply" if answered else "the user's message"
    return UnusableRowError(f"messages: expected {wanted} first, after at most one system message")
