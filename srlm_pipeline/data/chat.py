"""Chat formatting: how a user's text becomes the exact string a model continues.

Text that comes from data (a prompt, a reply to be judged) must never be able to end its own turn. Control tokens
inside it, and marks of a turn that the chat template writes as ordinary text, are broken up before the template is
applied; whatever else a tokenizer has a token for stays as it is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from srlm_pipeline.config import ThinkingSettings
from srlm_pipeline.data.conversations import split_turns
from srlm_pipeline.models.chat_format import apply_template, chat_format

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Looks like nothing, separates everything: the tokenizer no longer sees the control token.
_BREAK = "\u200b"
# More words than these are a sentence, and of it at most the end is a mark.
_MARK_WORDS = 4
# Marks that are known by themselves, whatever stands beside them: [INST], [/SYSTEM_PROMPT], <<SYS>>.
_IN_BRACKETS = re.compile(r"\[/?[A-Z][A-Z_]+\]|<</?[A-Z]+>>")


def neutralise_special_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Break up every control token, and every turn mark of the chat template, that occurs in a text.

    Args:
        text: Untrusted text.
        tokenizer: Its control tokens (``<|im_end|>``, ``</s>``, ...) are the ones looked for.
    """
    tokens = [*tokenizer_control_tokens(tokenizer), *template_turn_marks(tokenizer)]
    for token in tokens:
        if token in text:
            # Looking ahead finds occurrences that share characters as well.
            text = re.sub(f"(?={re.escape(token)})(.)", rf"\1{_BREAK}", text, flags=re.DOTALL)
    if unicodedata.is_normalized("NFKC", text):
        return text
    # A tokenizer that normalises text before it looks for tokens would find one written in full-width letters.
    read = [(c, place) for place, character in enumerate(text) for c in unicodedata.normalize("NFKC", character)]
    normalised = "".join(c for c, _ in read)
    hidden = [token for token in tokens if token in normalised]
    found = {read[m.start()][1] for token in hidden for m in re.finditer(f"(?={re.escape(token)})", normalised)}
    return "".join(c + _BREAK if place in found else c for place, c in enumerate(text)) if found else text


def tokenizer_control_tokens(tokenizer: PreTrainedTokenizerBase) -> Sequence[str]:
    """Return the tokens that begin or end a turn or a text, longest first; see `ChatFormat.control_tokens`."""
    return chat_format(tokenizer).control_tokens


def template_turn_marks(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return what the chat template writes next to a user's message as ordinary text: ``[/INST]``, ``### Response:``.

    Words without any punctuation are left out: they are harmless without the special tokens around them. Of a sentence
    that stands before the mark, as in Vicuna's template, nothing is.
    """
    known = chat_format(tokenizer)
    tokens = [*known.control_tokens, known.thinking.start, known.thinking.end]
    lines = [*known.before.rstrip().splitlines()[-1:], *known.after.splitlines()]
    parts = [part.strip() for line in lines for part in re.split("|".join(map(re.escape, tokens)), line)]
    marks = {part if len(part.split()) <= _MARK_WORDS else _ending_mark(part) for part in parts}
    marks |= {mark for part in parts for mark in _IN_BRACKETS.findall(part)}
    return sorted((m for m in marks if re.search(r"\w", m) and re.search(r"[^\w\s]", m)), key=lambda m: (-len(m), m))


def _ending_mark(sentence: str) -> str:
    last = sentence.split()[-1]
    return last if last[-1] in ":]>}" else ""


def render_user_turn(tokenizer: PreTrainedTokenizerBase, text: str, reply_start: str = "") -> str:
    """Return the string after which the model writes its reply to a user's message.

    Args:
        tokenizer: With a chat template.
        text: The user's message, after its history if it has one (`conversations`); control tokens are neutralised.
        reply_start: Words put into the assistant's mouth, e.g. ``"Score: "``; the same. They never stand in a thought.
    """
    aloud = bool(reply_start) or chat_format(tokenizer).thinking.enabled is False
    begun = _with_gap(tokenizer, neutralise_special_tokens(reply_start, tokenizer)) if reply_start else ""
    return _rendered(tokenizer, text, aloud) + begun


def template_system_prompt(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what the chat template puts before a user's first message by itself; blank if it is nothing but marks."""
    if not tokenizer.chat_template:
        return ""
    known = chat_format(tokenizer)
    before = known.before
    for token in known.control_tokens:
        before = before.replace(token, "\n")
    # Names of roles stand alone in their lines.
    return "\n".join(line for line in before.splitlines() if len(line.split()) > 1).strip()


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that the chat template writes after an assistant's message."""
    return int(tokenizer.convert_tokens_to_ids(chat_format(tokenizer).turn_end))


def tokenize_exchange(
    tokenizer: PreTrainedTokenizerBase,
    message: str,
    reply: str,
    ended: bool = True,
    drawn: Sequence[int] | None = None,
) -> tuple[list[int], list[int]]:
    """Return the token ids of a rendered user message and of the reply to it, as generation would have drawn them.

    A reply without a thought follows a thought that is closed, one with a thought what generation continues.

    Args:
        tokenizer: With a chat template.
        message: The user's message, with its history if it has one; control tokens in it are neutralised.
        reply: The assistant's reply; the same.
        ended: Whether the reply came to its end, and so is followed by the end token. One that a token limit cut off
            is not, or a model trained on it would learn to stop in the middle.
        drawn: The tokens that generation drew, thought included, without the end token. Where they are this reply's,
            and thoughts are learned, the text is not tokenized again.
    """
    known = chat_format(tokenizer)
    thinking, ending = known.thinking, [end_token(tokenizer)] if ended else []

    def encode(part: str) -> list[int]:
        # The template has written every special token that belongs there; a second one would be a mistake.
        return list(tokenizer(part, add_special_tokens=False).input_ids)

    if drawn is not None:
        rendered = render_user_turn(tokenizer, message)
        thought, said = read_reply(tokenizer, rendered, drawn)
        # Whether a text keeps the blank that its first token begins with is up to the engine.
        if said.strip() == reply.strip() and (thinking.trained or not thought):
            return encode(rendered), [*drawn, *ending]
    said = without_thought(tokenizer, reply)
    # Marks that are control tokens are broken up in any text.
    if said != reply and thinking.trained and known.thinks and not known.in_channels:
        rendered = render_user_turn(tokenizer, message)
        text = reply.lstrip().removeprefix(thinking.start).lstrip() if known.opens_thought else reply
    else:
        rendered, text = _rendered(tokenizer, message, aloud=True), said
    text = _with_gap(tokenizer, neutralise_special_tokens(text, tokenizer))
    prompt, whole = encode(rendered), encode(rendered + text)
    # Where the reply's first letters would merge with the prompt's last token, generation could not have merged them.
    replied = whole[len(prompt) :] if whole[: len(prompt)] == prompt else encode(text)
    return prompt, replied + ending


def read_reply(tokenizer: PreTrainedTokenizerBase, prompt: str, drawn: Sequence[int]) -> tuple[str, str]:
    """Return the thought and the reply that drawn tokens make; either may be empty.

    Args:
        tokenizer: The model's.
        prompt: What was continued.
        drawn: Token ids, without the end token.
    """
    known = chat_format(tokenizer)
    # What special tokens say is left out of a text, but for that of a thought's marks.
    text = _decode(tokenizer, drawn, known.marks if known.thinks else {})
    if not known.thinks:
        return "", text
    thought, reply = split_thought(text, known.thinking, opens_thought(tokenizer, prompt))
    if known.in_channels:
        # Of several tokens that make a mark, one alone says nothing.
        for mark in known.marks.values():
            thought, reply = thought.replace(mark, ""), reply.replace(mark, "")
    return thought, reply


def without_thought(tokenizer: PreTrainedTokenizerBase, reply: str) -> str:
    """Return a whole reply without the thought that it begins with, where the model thinks or is told not to."""
    known = chat_format(tokenizer)
    start, end = known.thinking.start, known.thinking.end
    expected = known.thinks or known.thinking.enabled is False
    # Where the template writes the beginning, data may lack it. Otherwise one mark without the other is spoken of.
    begun = known.opens_thought or reply.lstrip().startswith(start)
    return split_thought(reply, known.thinking, opened=False)[1] if expected and begun and end in reply else reply


def opens_thought(tokenizer: PreTrainedTokenizerBase, prompt: str) -> bool:
    """Whether what continues a prompt begins within a thought.

    In channels all that comes before the reply's header is one, whatever the model calls it.
    """
    known = chat_format(tokenizer)
    return prompt.rstrip().endswith(known.thinking.start) or (known.in_channels and prompt.endswith(known.after))


def split_thought(text: str, thinking: ThinkingSettings, opened: bool) -> tuple[str, str]:
    """Return the thought that a text begins with, and the reply after it. A thought that does not end has no reply.

    One that ends was begun, also where the model left out its beginning, as DeepSeek-R1 does.

    Args:
        text: What a model wrote.
        thinking: What thoughts begin and end with.
        opened: Whether the thought began before the text.
    """
    begun = text.lstrip().removeprefix(thinking.start)
    if not opened and begun == text.lstrip() and thinking.end not in text:
        return "", text
    thought, _, reply = begun.partition(thinking.end)
    return thought.strip(), reply.lstrip()


def _rendered(tokenizer: PreTrainedTokenizerBase, text: str, aloud: bool) -> str:
    """Return what a reply to a user's message follows; `aloud`: without a thought, which is closed if it was opened."""
    known = chat_format(tokenizer)
    thinks = False if aloud and known.has_switch else known.thinking.enabled
    turns = [neutralise_special_tokens(turn, tokenizer) for turn in split_turns(text)]
    rendered = apply_template(tokenizer, turns, known.parts, thinks)
    if aloud and known.in_channels:
        return rendered + known.thinking.end
    if aloud and rendered.rstrip().endswith(known.thinking.start):
        return f"{rendered.rstrip()}\n\n{known.thinking.end}\n\n"
    return rendered


def _with_gap(tokenizer: PreTrainedTokenizerBase, reply: str) -> str:
    """Return a reply behind the blanks that the template puts there, unless it has some."""
    return reply if reply[:1].isspace() else chat_format(tokenizer).gap + reply


def _decode(tokenizer: PreTrainedTokenizerBase, drawn: Sequence[int], kept: Mapping[int, str]) -> str:
    """Return the text of tokens without the special ones, apart from those that are kept."""
    parts, begin = [], 0
    for place, token in enumerate([*drawn, None]):
        if token is None or token in kept:
            run = list(drawn[begin:place])
            parts += [str(tokenizer.decode(run, skip_special_tokens=True, clean_up_tokenization_spaces=False))]
            parts += [kept[token]] if token is not None else []
            begin = place + 1
    return "".join(parts)
