"""How a row is written: recognised by its fields, and rewritten with the fields that the loaders know."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from srlm_pipeline.config import SourceSettings

Format = Literal["plain", "messages", "open_assistant_messages", "open_assistant_trees"]
_ABSENT = object()


def recognise_format(source: SourceSettings, row: Mapping[str, Any], needed: Collection[str]) -> Format:
    """Return how rows are written.

    Args:
        source: May say so itself, or by naming columns.
        row: The first one.
        needed: Fields without which a plain row is of no use.
    """
    if source.format != "auto":
        return source.format
    if not source.columns:
        if {"message_id", "role", "text"} <= row.keys():
            return "open_assistant_messages"
        if isinstance(row.get("prompt"), Mapping) and "message_id" in row["prompt"]:
            return "open_assistant_trees"
    fields = named_fields(source, row).keys()
    return "messages" if "messages" in fields and not set(needed) <= fields else "plain"


def named_fields(source: SourceSettings, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its columns under our names; columns that are not there are left out."""
    fields = {k: v for k, v in row.items() if k not in source.columns}
    for name, column in source.columns.items():
        found = [_lookup(row, part) for part in ([column] if isinstance(column, str) else column)]
        if _ABSENT not in found:
            fields[name] = found[0] if isinstance(column, str) else found
    return fields


def first_exchange(fields: Mapping[str, Any], answered: bool) -> dict[str, Any]:
    """Return a chat's first user message and the reply to it as `prompt` and `response`.

    A system message before it is put in front of the prompt: the reply was written under it.

    Args:
        fields: With `messages`, a list of `role` and `content`.
        answered: Whether the reply is needed.

    Raises:
        ValueError: If the chat does not begin so.
    """
    messages = fields.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        raise ValueError("messages: expected a list of objects with role and content")
    roles = [message.get("role") for message in messages[:3]]
    start = 1 if roles[:1] == ["system"] else 0
    expected = ["user", "assistant"] if answered else ["user"]
    if roles[start : start + len(expected)] != expected:
        wanted = "the user's message and the assistant's reply" if answered else "the user's message"
        raise ValueError(f"messages: expected {wanted} first, after at most one system message")
    texts = [message.get("content") for message in messages[: start + len(expected)]]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("messages: expected the content to be text")
    kept = {name: fields[name] for name in ("id", "kind") if name in fields}
    prompt = "\n\n".join(text.strip() for text in texts[: start + 1])
    return {**kept, "prompt": prompt, "response": texts[-1]} if answered else {**kept, "prompt": prompt}


def _lookup(row: Any, column: str) -> Any:
    """Return what stands in a column, or at the end of a dotted path into it."""
    if isinstance(row, Mapping) and column in row:
        return row[column]
    for part in column.split("."):
        if isinstance(row, Mapping) and part in row:
            row = row[part]
        elif isinstance(row, list) and part.isdigit() and int(part) < len(row):
            row = row[int(part)]
        else:
            return _ABSENT
    return row
