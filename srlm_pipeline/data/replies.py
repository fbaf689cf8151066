"""Ranked replies, as columns, pairs or rows of their own hold them, become one prompt with replies in an order."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from srlm_pipeline.data.chats import is_chat, message_text, read_prompt, read_reply
from srlm_pipeline.data.rows import RowReport, UnusableRowError
from srlm_pipeline.data.sources import NumberedRow

MAX_SCORE = 5
TOO_FEW = "prompt with fewer than two different replies"
CONTRADICTION = "replies: one has a higher score than another that is ranked above it"
Range = tuple[float, float]
# What columns call the first and the second of two replies: model_a, assistant_b, response_1, left, ...
_CALLED = re.compile(r"(?:(?:model|assistant|response|answer|chatbot)[ _-]?([ab12])|([ab])|(left|right|first|second))")
_FIRST = frozenset({"a", "1", "left", "first"})
_TIE = re.compile(r"tie|both|neither|equal|draw|same")


def with_replies(fields: Mapping[str, Any], score_range: Range | None, report: RowReport) -> dict[str, Any] | None:
    """Return a row's prompt and replies as objects; None if so many are blank that nothing is left to compare.

    Args:
        fields: With `replies`, or with `chosen` and `rejected`. Of `ranks` (low is good) and `scores` (high is good)
            there is one for each reply; of two, `winner` names the better one, or `preference` does by its sign. A
            reply may hold the conversation before it.
        score_range: Lowest and highest possible score, which become 0 and 5. Without it `scores` give an order alone.
        report: Where replies without text, rank or score are counted.

    Raises:
        UnusableRowError: If the lists do not belong together, or the replies answer different prompts.
    """
    if "replies" not in fields and not {"chosen", "rejected"} <= fields.keys():
        raise UnusableRowError("neither replies nor chosen and rejected", f"; the row has {', '.join(fields)}")
    given = fields["replies"] if "replies" in fields else [fields["chosen"], fields["rejected"]]
    if not isinstance(given, list):
        raise UnusableRowError("replies: expected a list", f", found {type(given).__name__}")
    read = [_reply(reply) for reply in given]
    replies = [reply for _, reply in read]
    # Whoever chose has ranked, whatever the scores may be.
    ranks = fields.get("ranks", None if "replies" in fields else [0, 1])
    ordered = ranks is not None or fields.get("scores") is not None or any("rank" in reply for reply in replies)
    if not ordered and {"winner", "preference"} & fields.keys():
        better = _better(fields, len(replies))
        if better is None:
            report.leave_out("prompt with replies of which neither is preferred")
            return None
        ranks = [better, 1 - better]
    for name, key, values in (("ranks", "rank", ranks), ("scores", "score", fields.get("scores"))):
        _attach(replies, name, key, values)
    if score_range:
        replies = [{**reply, "score": scaled(reply.get("score"), score_range)} for reply in replies]
    elif fields.get("scores") is not None:
        replies = _by_score(replies)
    kept = []
    for reply in replies:
        lacking = _lacking(reply, fields)
        if lacking:
            report.leave_out(f"reply without {lacking}")
        else:
            kept.append(reply)
    if len(kept) < 2 <= len(replies):
        report.leave_out(TOO_FEW)
        return None
    before, stated = [prompt for prompt, _ in read], fields.get("prompt")
    if stated is None and not any(before):
        # As LLaMA-Factory writes preferences: a chat that ends with the user, and replies apart.
        stated = fields.get("messages")
    prompt = answered_prompt(stated, before)
    return {**fields, **({} if prompt is None else {"prompt": prompt}), "replies": kept}


def answered_prompt(stated: Any, before_replies: Iterable[str | None]) -> Any:
    """Return the prompt that replies answer.

    Args:
        stated: What the row calls its prompt; None if nothing.
        before_replies: What comes before each reply, where it holds the conversation too.

    Raises:
        UnusableRowError: If these are different prompts.
    """
    found = {prompt for prompt in before_replies if prompt is not None}
    if len(found) > 1:
        raise UnusableRowError("replies: their conversations differ before the last message")
    if not found:
        return read_prompt(stated)
    prompt = found.pop()
    # With a system message or a history, the conversation is more than its row's prompt says.
    if isinstance(stated, str) and " ".join(stated.split()) in " ".join(prompt.split()):
        return prompt
    if stated is not None and read_prompt(stated) != prompt:
        raise UnusableRowError("prompt: is not what the replies answer")
    return prompt


def grouped(rows: Iterable[NumberedRow], score_range: Range | None, report: RowReport) -> Iterator[NumberedRow]:
    """Return rows of one scored reply each as prompts with replies, in the order of their first rows.

    Args:
        rows: With `prompt`, `response` and `score`.
        score_range: As in `with_replies`.
        report: Where broken rows and single replies are counted.

    Raises:
        DataError: With file, line and field of a broken row, unless broken rows are skipped.
    """
    prompts: dict[str, tuple[int, dict[str, Any]]] = {}
    for number, row in rows:
        try:
            before, _ = read_reply(row.get("response"))
            prompt = answered_prompt(row.get("prompt"), [before])
            _number(row.get("score"), score_range)
        except UnusableRowError as error:
            report.broken(number, error.problem, error.detail)
            continue
        if not isinstance(prompt, str) or not prompt.strip():
            report.broken(number, "prompt: expected a text")
            continue
        _, group = prompts.setdefault(prompt.strip(), (number, {**row, "replies": [], "scores": []}))
        group["replies"].append(row.get("response"))
        group["scores"].append(row.get("score"))
    for number, group in prompts.values():
        if len(group["replies"]) < 2:
            report.leave_out(TOO_FEW)
            continue
        try:
            found = with_replies(group, score_range, report)
        except UnusableRowError as error:
            report.broken(number, error.problem, error.detail)
        else:
            if found is not None:
                yield number, found


def scaled(score: Any, score_range: Range) -> float | None:
    """Return a score on the scale from 0 to 5; None for none.

    Raises:
        UnusableRowError: If it is no number or lies outside its range.
    """
    low, high = score_range
    number = _number(score, score_range)
    return None if number is None else (number - low) / (high - low) * MAX_SCORE


def _reply(value: Any) -> tuple[str | None, dict[str, Any]]:
    """Return the prompt that stands before a reply, if one does, and the reply as an object."""
    if isinstance(value, Mapping) and not is_chat([value]):
        if "text" not in value:
            raise UnusableRowError(
                "replies: an object without text",
                f"; it has {', '.join(map(str, value))}: the setting `columns` can name it, as answers.*.text",
            )
        return None, dict(value)
    if isinstance(value, Mapping):
        return None, {"text": message_text(value)}
    if not isinstance(value, (str, list, type(None))) or (isinstance(value, list) and not is_chat(value)):
        raise UnusableRowError("replies: expected texts, chats, or objects with text", f", found {_kind(value)}")
    before, text = read_reply(value)
    return before, {"text": text}


def _better(fields: Mapping[str, Any], count: int) -> int | None:
    """Return the place of the better of two replies, 0 or 1; None if neither is, or nobody said so.

    Raises:
        UnusableRowError: If there are not two, or what is said of them has no known meaning.
    """
    name = "winner" if "winner" in fields else "preference"
    said = fields[name]
    if count != 2:
        raise UnusableRowError(f"{name}: says which of two replies is better", f", found {count}")
    if name == "preference":
        strength = _number(said)
        return None if not strength else int(strength > 0)
    called = said.strip().lower() if isinstance(said, str) else said
    if called is None or called == "" or (isinstance(called, str) and _TIE.match(called)):
        return None
    # A number may count from 0 or from 1, or say whether it was the first.
    found = _CALLED.fullmatch(called) if isinstance(called, str) else None
    if found is None:
        raise UnusableRowError("winner: expected model_a, model_b or tie", f", found {said!r}"[:80])
    return int(next(filter(None, found.groups())) not in _FIRST)


def _attach(replies: list[dict[str, Any]], name: str, key: str, values: Any) -> None:
    if values is None:
        return
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != len(replies):
        count = len(values) if isinstance(values, list) else _kind(values)
        raise UnusableRowError(f"{name}: expected one for each reply", f", found {count} for {len(replies)} replies")
    for reply, value in zip(replies, values, strict=True):
        reply[key] = value


def _by_score(replies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return replies with the ranks that follow from their scores, and without these: nobody said what they mean."""
    scores = [_number(reply.pop("score")) for reply in replies]
    ranked = [(rank, score) for rank, score in zip(map(_rank, replies), scores, strict=True) if score is not None]
    if any(rank < other and score < higher for rank, score in ranked for other, higher in ranked):
        raise UnusableRowError(CONTRADICTION)
    levels = sorted({score for score in scores if score is not None}, reverse=True)
    return [
        {**reply, "rank": reply.get("rank", levels.index(score))} if score is not None else reply | {"score": None}
        for reply, score in zip(replies, scores, strict=True)
    ]


def _rank(reply: Mapping[str, Any]) -> float:
    # What is no number is named later, where the whole row is checked.
    rank = reply.get("rank")
    return float(rank) if isinstance(rank, (int, float)) else math.nan


def _lacking(reply: Mapping[str, Any], fields: Mapping[str, Any]) -> str | None:
    text = reply.get("text")
    if "text" in reply and (text is None or (isinstance(text, str) and not text.strip())):
        return "text"
    if fields.get("ranks") is not None:
        return "a rank" if reply.get("rank") is None else None
    unscored = reply.get("score") is None and reply.get("rank") is None
    return "a score" if fields.get("scores") is not None and unscored else None


def _number(value: Any, score_range: Range | None = None) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise UnusableRowError("score: expected a number", f", found {value!r}"[:80])
    if score_range and not score_range[0] <= number <= score_range[1]:
        raise UnusableRowError(f"score: not between {score_range[0]:g} and {score_range[1]:g}", f": {number:g}")
    return number


def _kind(value: Any) -> str:
    return type(value).__name__
