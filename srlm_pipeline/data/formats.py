"""How a row is written: recognised by its fields, and rewritten with the fields that the loaders know."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from srlm_pipeline.config import SourceSettings
from srlm_pipeline.data.chats import is_chat, role_of
from srlm_pipeline.data.rows import UnusableRowError

Format = Literal["plain", "messages", "preferences", "rated_replies", "open_assistant_messages", "open_assistant_trees"]
_ABSENT = object()
# What other tools call the same.
_SYNONYMS = {"completion": "response", "conversations": "messages", "conversation": "messages"}
_PLACE = re.compile(r"\{([^{}]+)\}")
# Who must have said what stands in a field, where a column leads into a list of messages.
_SPEAKER = {"prompt": "user", "response": "assistant", "replies": "assistant", "reference": "assistant"}
_LAYOUTS: tuple[tuple[str, frozenset[str], str], ...] = (
    ("prompt", frozenset({"instruction", "input"}), r'{prompt: "{instruction}\n\n{input}"}'),
    ("prompt", frozenset({"instruction", "context"}), r'{prompt: "{instruction}\n\n{context}"}'),
    ("prompt", frozenset({"instruction"}), "{prompt: instruction}"),
    ("prompt", frozenset({"question"}), "{prompt: question}"),
    (
        "response",
        frozenset({"instruction", "input", "output"}),
        r'{prompt: "{instruction}\n\n{input}", response: output}',
    ),
    ("response", frozenset({"instruction", "context", "response"}), r'{prompt: "{instruction}\n\n{context}"}'),
    ("response", frozenset({"instruction", "output"}), "{prompt: instruction, response: output}"),
    ("response", frozenset({"instruction", "response"}), "{prompt: instruction}"),
    ("response", frozenset({"question", "answer"}), "{prompt: question, response: answer}"),
    (
        "replies",
        frozenset({"instruction", "completions"}),
        "{prompt: instruction, replies: completions.*.response, scores: completions.*.overall_score}",
    ),
    ("replies", frozenset({"instruction", "chosen", "rejected"}), "{prompt: instruction}"),
    ("replies", frozenset({"question", "chosen", "rejected"}), "{prompt: question}"),
    ("replies", frozenset({"prompt", "answers"}), "{replies: answers.*.answer, ranks: answers.*.rank}"),
    (
        "replies",
        frozenset({"history", "human_ref_A", "human_ref_B"}),
        "{prompt: history, replies: [human_ref_A, human_ref_B], scores: [score_A, score_B]}",
    ),
    ("replies", frozenset({"prompt", "response", "helpfulness"}), "{score: helpfulness}"),
    (
        "replies",
        frozenset({"prompt", "response_1", "response_2", "preference_strength"}),
        "{replies: [response_1, response_2], preference: preference_strength}",
    ),
    (
        "replies",
        frozenset({"context", "response1", "response2", "overall_preference"}),
        "{prompt: context, replies: [response1, response2], preference: overall_preference}",
    ),
    (
        "replies",
        frozenset({"conversation_a", "conversation_b", "winner"}),
        "{replies: [conversation_a, conversation_b]}",
    ),
)


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
    if set(needed) <= fields:
        return "plain"
    if {"chosen", "rejected"} <= fields and ("replies" in needed or "messages" not in fields):
        return "preferences"
    if "replies" in needed and {"prompt", "response", "score"} <= fields:
        return "rated_replies"
    return "messages" if "messages" in fields else "plain"


def named_fields(source: SourceSettings, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its columns under our names; columns that are not there are left out.

    Raises:
        UnusableRowError: If a column holds the message of someone else than the field is for, or if a template cannot
            be filled in.
    """
    fields = {k: v for k, v in row.items() if k not in source.columns}
    for other, name in _SYNONYMS.items():
        if other in fields and name not in fields and name not in source.columns:
            fields[name] = fields.pop(other)
    for name, column in source.columns.items():
        found = [_column(row, part, _SPEAKER.get(name)) for part in ([column] if isinstance(column, str) else column)]
        if not any(value is _ABSENT for value in found):
            fields[name] = found[0] if isinstance(column, str) else found
    return fields


def unread_texts(source: SourceSettings, row: Mapping[str, Any], read: Iterable[str]) -> list[str]:
    """Return the columns that hold text, several words of it, and that nothing reads.

    Args:
        source: May name columns.
        row: Any.
        read: Fields that are read of it.
    """
    named = [column for value in source.columns.values() for column in ([value] if isinstance(value, str) else value)]
    paths = [path for column in named for path in (_PLACE.findall(column) or [column])]
    known = {field for field in read if field not in source.columns}
    known |= {other for other, name in _SYNONYMS.items() if name in known and name not in row}
    known |= {path if path in row else path.partition(".")[0] for path in paths}
    return [name for name, value in row.items() if name not in known and _is_prose(value)]


def suggested_columns(row: Mapping[str, Any], needed: str) -> str:
    """Return the setting `columns` for rows that are written in a well-known way; blank for any others.

    Args:
        row: Any.
        needed: The field that is looked for, beside the prompt.
    """
    fitting = (columns for field, names, columns in _LAYOUTS if field == needed and names <= row.keys())
    return next((f"try the setting columns: {columns}" for columns in fitting), "")


def _column(row: Mapping[str, Any], column: str, speaker: str | None) -> Any:
    """Return what a column, a path or a template gives; `_ABSENT` if a column or path is not there."""
    if column in row or not _PLACE.search(column):
        return _lookup(row, column, speaker)
    # YAML leaves the two characters as they are, but between double quotes.
    column = column.replace("\\n", "\n")
    values = {path: _lookup(row, path, None) for path in _PLACE.findall(column)}
    if missing := [path for path, value in values.items() if value is _ABSENT]:
        raise UnusableRowError("columns: a template names a column that the row does not have", f": {missing[0]}")
    if unfit := [path for path, value in values.items() if not isinstance(value, (str, int, float, type(None)))]:
        raise UnusableRowError("columns: a template can join texts only", f": {', '.join(unfit)}")
    texts = {path: "" if value is None else str(value).strip() for path, value in values.items()}
    # Of a paragraph whose columns are all blank, its own words would be left over.
    paragraphs = [
        _PLACE.sub(lambda found: texts[found[1]], paragraph)
        for paragraph in re.split(r"\n[ \t]*\n", column)
        if not (places := _PLACE.findall(paragraph)) or any(texts[path] for path in places)
    ]
    return "\n\n".join(paragraphs)


def _lookup(row: Any, column: str, speaker: str | None) -> Any:
    """Return what stands in a column, or at the end of a dotted path into it; `*` stands for all of a list."""
    if isinstance(row, Mapping) and column in row:
        return row[column]
    parts = column.split(".")
    for place, part in enumerate(parts):
        if part == "*" and isinstance(row, list):
            rest = ".".join(parts[place + 1 :])
            found = [_lookup(item, rest, speaker) if rest else item for item in row]
            return _ABSENT if any(value is _ABSENT for value in found) else found
        if isinstance(row, Mapping) and part in row:
            if speaker and is_chat([row]) and role_of(row) not in (speaker, None):
                raise UnusableRowError(f"column {column}: this is the {role_of(row)}'s message, not the {speaker}'s")
            row = row[part]
        elif isinstance(row, list) and part.isdecimal() and int(part) < len(row):
            row = row[int(part)]
        else:
            return _ABSENT
    return row


def _is_prose(value: Any) -> bool:
    # Scripts without blanks between words are not ASCII; identifiers and hashes are.
    return isinstance(value, str) and (len(value.split()) > 1 or (len(value) > 20 and not value.isascii()))
