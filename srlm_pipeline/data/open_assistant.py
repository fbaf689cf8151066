"""Open Assistant's conversations, as flat messages or as nested trees: first prompts with their ranked replies.

Only the beginning of a conversation is read. A field that a message lacks rules nothing out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field

from srlm_pipeline.data.rows import RowReport
from srlm_pipeline.data.sources import NumberedRow

READY = "ready_for_export"


class Message(BaseModel):
    """One message, with the fields that decide about its use."""

    message_id: str = Field(min_length=1)
    parent_id: str | None = None
    text: str
    role: str
    lang: str | None = None
    rank: int | None = Field(None, ge=0)
    deleted: bool | None = None
    review_result: bool | None = None
    review_count: int | None = None
    tree_state: str | None = None

    @property
    def approved(self) -> bool:
        """Whether reviewers took it; exports without their verdict at least say how many there were."""
        if "review_result" in self.model_fields_set:
            return self.review_result is True
        return self.review_count is None or self.review_count > 0


class PromptMessage(Message):
    """A prompt with the replies nested in it."""

    replies: list[Any] | None = None


class Tree(BaseModel):
    """A conversation of the nested export."""

    tree_state: str | None = None
    prompt: PromptMessage


@dataclass(frozen=True)
class MessageFilter:
    """Which messages are used.

    Attributes:
        languages: Empty: all.
        include_unreviewed: Whether to use messages that reviewers did not approve.
    """

    languages: tuple[str, ...]
    include_unreviewed: bool

    def objection(self, message: Message, role: str) -> str | None:
        """Return why a message is not used, or None."""
        if message.deleted:
            return "deleted"
        if message.role != role:
            return f"not by the {role}"
        if not message.text.strip():
            return "without text"
        if self.languages and message.lang is not None and not self._speaks(message.lang):
            return "in another language"
        if not self.include_unreviewed and not message.approved:
            return "not approved by reviewers"
        return None

    def _speaks(self, language: str) -> bool:
        """Whether one of the languages is meant: `pt` stands for `pt-BR` too, but `pt-BR` for nothing else."""
        tag = _tag(language)
        return any(tag == _tag(used) or tag.startswith(f"{_tag(used)}-") for used in self.languages)


def _tag(language: str) -> str:
    return language.strip().lower().replace("_", "-")


@dataclass(frozen=True)
class FirstTurn:
    """A prompt that opens a conversation, and may be used.

    Attributes:
        number: Of the prompt's row.
        id: Of the prompt.
        prompt: Its text.
        replies: All replies to it.
    """

    number: int
    id: str
    prompt: str
    replies: tuple[Message, ...]


def first_turns(
    rows: Iterable[NumberedRow], nested: bool, allowed: MessageFilter, report: RowReport
) -> Iterator[FirstTurn]:
    """Return the first turns, in the order of their prompts.

    Args:
        rows: Messages in any order, or whole trees.
        nested: Whether they are trees.
        allowed: Which messages are used.
        report: Where everything else is counted.

    Raises:
        DataError: With file, line and field of a broken message, unless broken rows are skipped.
    """
    for number, prompt, replies in (_from_trees if nested else _from_messages)(rows, report):
        objection = allowed.objection(prompt, "prompter")
        if objection is None and prompt.tree_state not in (None, READY):
            objection = "in a tree that is not ready for export"
        if objection is not None:
            report.leave_out(f"prompt {objection}")
            continue
        yield FirstTurn(number, prompt.message_id, prompt.text, tuple(replies))


def ranked_replies(turn: FirstTurn, allowed: MessageFilter, report: RowReport) -> list[Message]:
    """Return the ranked replies of different text that may be used, best first.

    Args:
        turn: Prompt and replies.
        allowed: Which messages are used.
        report: Where the other replies are counted.
    """
    used: dict[str, Message] = {}
    for reply in sorted(turn.replies, key=lambda reply: (reply.rank or 0, reply.message_id)):
        objection = allowed.objection(reply, "assistant")
        if objection is None and reply.rank is None:
            objection = "without a rank"
        elif objection is None and reply.text.strip() in used:
            objection = "with the text of a better one"
        if objection is None:
            used[reply.text.strip()] = reply
        else:
            report.leave_out(f"reply {objection}")
    return list(used.values())


def _from_messages(rows: Iterable[NumberedRow], report: RowReport) -> Iterator[tuple[int, Message, list[Message]]]:
    prompts: list[tuple[int, Message]] = []
    replies: defaultdict[str, list[Message]] = defaultdict(list)
    known: set[str] = set()
    for number, row in rows:
        message = report.validated(number, Message, row)
        if message is None:
            continue
        if message.message_id in known:
            report.broken(number, "message_id occurs more than once", f": {message.message_id!r}")
            continue
        known.add(message.message_id)
        if message.parent_id is None:
            prompts.append((number, message))
        else:
            replies[message.parent_id].append(message)
    report.leave_out("message whose parent is missing", sum(len(replies[parent]) for parent in replies.keys() - known))
    for number, prompt in prompts:
        yield number, prompt, replies[prompt.message_id]


def _from_trees(rows: Iterable[NumberedRow], report: RowReport) -> Iterator[tuple[int, Message, list[Message]]]:
    known: set[str] = set()
    for number, row in rows:
        tree = report.validated(number, Tree, row)
        if tree is None:
            continue
        if tree.prompt.message_id in known:
            report.broken(number, "message_id occurs more than once", f": {tree.prompt.message_id!r}")
            continue
        known.add(tree.prompt.message_id)
        replies = [
            report.validated(number, Message, reply, f"prompt.replies.{place}")
            for place, reply in enumerate(tree.prompt.replies or [])
        ]
        prompt = tree.prompt.model_copy(update={"tree_state": tree.tree_state})
        yield number, prompt, [reply for reply in replies if reply is not None]
