"""What a chat template makes of a conversation, found out by trying it.

Templates are programs, and each family of models has its own. Some want content as a list of parts and print nothing of
a plain text, some alter the text, some end an assistant's turn with another token than the tokenizer's end token, some
open a thought where the reply would begin. Whatever the pipeline has to know of a template is found out here, once,
with a short conversation.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from srlm_pipeline.config import ThinkingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Capitals, a digit, a line break and a tag: whatever a template changes about texts, it changes about these.
_USER = "Who wrote the 4 books of\n<i>Odes</i>?"
_REPLY = "Horace did, mostly at\nhis <b>farm</b>."
# Templates that write today's date get this one, or a model would be asked something else every day.
_TODAY = {"%d": "26", "%-d": "26", "%m": "07", "%B": "July", "%b": "Jul", "%Y": "2024", "%y": "24", "%A": "Friday"}
_FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{code}', '{value}')" for code, value in _TODAY.items())
    + " }}{% endmacro %}\n"
)
# Nobody writes these by accident.
_MARK = re.compile(r"<[|｜].+[|｜]>")
# Special tokens that could as well be words or tags of an ordinary text.
_WORD_OR_TAG = re.compile(r"\w+|</?[A-Za-z][\w-]*/?>")


@dataclass(frozen=True)
class ChatFormat:
    """What a tokenizer's chat template does.

    Attributes:
        thinking: The settings that it was tried with.
        parts: Whether messages are lists of parts; otherwise they are texts.
        before: What it writes before a user's first message, a system prompt of its own included.
        after: What it writes between a user's message and the reply.
        gap: Blanks that it puts before a reply, and that a model draws itself, as Llama 2 does.
        turn_end: The token that ends a reply, as text.
        control_tokens: What a text must not contain as it is: tokens that begin or end a turn or a text, longest first.
        thinks: Whether replies may begin with a thought.
        opens_thought: Whether the template opens the thought itself.
        has_switch: Whether it can be told not to have the model think.
        marks: Added tokens in what thoughts begin and end with, by their ids.
        in_channels: Whether the model itself writes what thoughts end with before every reply, also without a thought.
        obstacle: Why the pipeline cannot work with it; None if it can.
    """

    thinking: ThinkingSettings
    parts: bool = False
    before: str = ""
    after: str = ""
    gap: str = ""
    turn_end: str = ""
    control_tokens: tuple[str, ...] = ()
    thinks: bool = False
    opens_thought: bool = False
    has_switch: bool = False
    marks: Mapping[int, str] = field(default_factory=dict)
    in_channels: bool = False
    obstacle: str | None = None


_known: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, ChatFormat]] = WeakKeyDictionary()


def chat_format(tokenizer: PreTrainedTokenizerBase, thinking: ThinkingSettings | None = None) -> ChatFormat:
    """Return what a tokenizer's chat template does.

    Args:
        tokenizer: With a chat template.
        thinking: How the model thinks; None: as was said when the tokenizer was asked about first, or the default.
    """
    template, known = _known.get(tokenizer, (None, None))
    wanted = thinking or (known.thinking if known else ThinkingSettings())
    if known is None or template != tokenizer.chat_template or known.thinking != wanted:
        known = _try_out(tokenizer, wanted)
        _known[tokenizer] = (tokenizer.chat_template, known)
    return known


def apply_template(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[str], parts: bool, thinks: bool | None, ask: bool = True
) -> str:
    """Return a conversation as the template writes it.

    Args:
        tokenizer: With a chat template.
        turns: Messages of user and assistant in turn.
        parts: Whether to hand them over as lists of parts.
        thinks: What the template is told by its variable ``enable_thinking``; None: nothing.
        ask: Whether the assistant is to speak next.
    """
    messages = [
        {
            "role": "assistant" if place % 2 else "user",
            "content": [{"type": "text", "text": text}] if parts else text,
        }
        for place, text in enumerate(turns)
    ]
    switch = {} if thinks is None else {"enable_thinking": thinks}
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = _FIXED_DATE + template
    return str(
        tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=ask, **switch
        )
    )


def _try_out(tokenizer: PreTrainedTokenizerBase, thinking: ThinkingSettings) -> ChatFormat:
    try:
        return _found(tokenizer, thinking)
    # A template is a program of somebody else's: it may raise anything.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        line = f", line {number}" if (number := getattr(error, "lineno", None)) else ""
        return ChatFormat(thinking, obstacle=f"its chat template cannot be applied ({reason}{line})")


def _found(tokenizer: PreTrainedTokenizerBase, thinking: ThinkingSettings) -> ChatFormat:
    asked, parts = apply_template(tokenizer, [_USER], False, thinking.enabled), False
    if _USER not in asked:
        parts = True
        try:
            with_parts = apply_template(tokenizer, [_USER], parts, thinking.enabled)
        except Exception:
            with_parts = ""
        if _USER not in with_parts:
            return ChatFormat(thinking, obstacle=_mistreatment(asked, "the user's text", _USER))
        asked = with_parts
    before, _, after = asked.partition(_USER)
    told = apply_template(tokenizer, [_USER, _REPLY], parts, thinking.enabled, ask=False)
    if _REPLY not in told:
        return ChatFormat(thinking, obstacle=_mistreatment(told, "the assistant's text", _REPLY))
    opening, _, ending = told.partition(_REPLY)
    gap, written = opening[len(asked) :], tokenizer.get_chat_template()
    in_channels = opening.startswith(asked) and gap.strip() == thinking.end
    other = apply_template(tokenizer, [_USER], parts, thinking.enabled is False)
    return ChatFormat(
        thinking,
        parts,
        before,
        after,
        gap if opening.startswith(asked) and not gap.strip() else "",
        _turn_end(tokenizer, ending),
        _control_tokens(tokenizer, before, after, ending, thinking),
        thinking.enabled is not False and (thinking.start in written or bool(thinking.enabled)),
        after.rstrip().endswith(thinking.start),
        thinking.start in written and other != apply_template(tokenizer, [_USER], parts, thinking.enabled is not False),
        _marks(tokenizer, thinking),
        in_channels,
        None if in_channels else _missing_header(asked, after, opening, thinking),
    )


def _marks(tokenizer: PreTrainedTokenizerBase, thinking: ThinkingSettings) -> dict[int, str]:
    ids = tokenizer(thinking.start + thinking.end, add_special_tokens=False).input_ids
    added = tokenizer.added_tokens_decoder
    return {token: str(added[token]) for token in ids if token in added}


def _mistreatment(rendered: str, whose: str, text: str) -> str:
    def letters(text: str) -> str:
        return re.sub(r"\W", "", html.unescape(text)).casefold()

    changed = letters(text) in letters(rendered)
    return f"its chat template {'changes' if changed else 'leaves out'} {whose}; put one that does not into its folder"


def _missing_header(asked: str, after: str, opening: str, thinking: ThinkingSettings) -> str | None:
    """Say what is missing between a user's message and the reply, by what stands there in a finished exchange."""

    def bare(text: str) -> str:
        return re.sub(r"\s+", " ", text.replace(thinking.start, "").replace(thinking.end, "")).strip()

    # What a reply to come is announced by, where the finished one has more before it.
    missing = bare(opening).removeprefix(bare(asked)) if bare(opening).startswith(bare(asked)) else ""
    if missing.strip():
        return (
            f"its chat template does not announce the reply: with add_generation_prompt it must end in "
            f"{missing.strip()!r}, as before an assistant's message; if the model writes this itself after a thought, "
            "name it in model.thinking.end, and in model.thinking.start what the thought begins with"
        )
    if not bare(after):
        return "its chat template puts nothing between the user's text and the reply, which would run into each other"
    return None


def _turn_end(tokenizer: PreTrainedTokenizerBase, ending: str) -> str:
    """Return the token that the template writes after an assistant's message; the end token if it writes none."""
    first = next(iter(_tokens_in(tokenizer, ending)), "")
    return first if first and not ending.partition(first)[0].strip() else str(tokenizer.eos_token or "")


def _control_tokens(
    tokenizer: PreTrainedTokenizerBase, before: str, after: str, ending: str, thinking: ThinkingSettings
) -> tuple[str, ...]:
    """Return the tokens that data must not contain.

    These are the ones with a role (``bos_token``, ...), those that the template writes around messages, those that look
    like ``<|system|>``, and other special ones unless they are words or tags: ``[INST]`` is one, ``<tool_call>`` and
    ``<filename>`` are not.
    """
    named = {str(token) for token in tokenizer.special_tokens_map.values() if isinstance(token, str)}
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    special |= {str(token) for token in tokenizer.all_special_tokens}
    chosen = named | {token for token in special if not _WORD_OR_TAG.fullmatch(token)}
    chosen |= {str(token) for token in tokenizer.added_tokens_decoder.values() if _MARK.fullmatch(str(token))}
    chosen |= {token for text in (before, after, ending) for token in _tokens_in(tokenizer, text)}
    # A reply may hold a thought.
    chosen -= {thinking.start, thinking.end}
    # Blanks that stand for source code's indentation control nothing.
    return tuple(sorted((t for t in chosen if len(t.strip()) > 1), key=lambda t: (-len(t), t)))


def _tokens_in(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """Return the added tokens in a text, from its beginning."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    listed = sorted((t for t in added if len(t.strip()) > 1), key=len, reverse=True)
    return re.findall("|".join(map(re.escape, listed)), text) if listed else []
