"""Chat formatting: how a user's text becomes the exact string a model continues.

Text that comes from data (a prompt, a reply to be judged) must never be able to end its own turn. Special
tokens inside it, and marks of a turn that the chat template writes as ordinary text, are broken up before the
template is applied.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from srlm_pipeline.data.conversations import split_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Looks like nothing, separates everything: the tokenizer no longer sees the special token.
_BREAK = "\u200b"
_PLACEHOLDER = "\ue000"


def neutralise_special_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Break up every special token of the tokenizer, and every turn mark of its chat template, that occurs in a text.

    Args:
        text: Untrusted text.
        tokenizer: Its added tokens (``<|im_end|>``, ``</s>``, ...) are the ones looked for.
    """
    tokens = [*tokenizer_control_tokens(tokenizer), *template_turn_marks(tokenizer)]
    for token in tokens:
        if token in text:
            # Looking ahead finds occurrences that share characters as well.
            text = re.sub(f"(?={re.escape(token)})(.)", rf"\1{_BREAK}", text, flags=re.DOTALL)
    normalised = unicodedata.normalize("NFKC", text)
    if any(token in normalised for token in tokens):
        # A tokenizer that normalises text before it looks for tokens would find one written in full-width letters.
        text = "".join(c if unicodedata.is_normalized("NFKC", c) else f"{_BREAK}{c}{_BREAK}" for c in text)
    return text


def tokenizer_control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts that the tokenizer turns into control tokens, longest first.

    Runs of blanks, which some tokenizers list for source code, control nothing.
    """
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    named = {str(token) for token in tokenizer.all_special_tokens}
    return sorted((t for t in added | named if len(t.strip()) > 1), key=lambda t: (-len(t), t))


def template_turn_marks(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return what the chat template writes next to a user's message as ordinary text: ``[/INST]``, ``### Response:``.

    Words without any punctuation are left out: they are harmless without the special tokens around them.
    """
    if not tokenizer.chat_template:
        return []
    rendered = tokenizer.apply_chat_template(user_turn(_PLACEHOLDER), tokenize=False, add_generation_prompt=True)
    before, _, after = str(rendered).partition(_PLACEHOLDER)
    special = "|".join(map(re.escape, tokenizer_control_tokens(tokenizer))) or "$^"
    lines = [*before.rstrip().splitlines()[-1:], *after.splitlines()]
    marks = {mark.strip() for line in lines for mark in re.split(special, line)}
    return sorted((m for m in marks if re.search(r"\w", m) and re.search(r"[^\w\s]", m)), key=lambda m: (-len(m), m))


def user_turn(text: str) -> list[dict[str, str]]:
    """Return a conversation of one user message."""
    return [{"role": "user", "content": text}]


def conversation(text: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, str]]:
    """Return the messages of a prompt, the last one by the user; special tokens in them are neutralised."""
    return [
        {"role": "assistant" if place % 2 else "user", "content": neutralise_special_tokens(turn, tokenizer)}
        for place, turn in enumerate(split_turns(text))
    ]


def render_user_turn(tokenizer: PreTrainedTokenizerBase, text: str, reply_start: str = "") -> str:
    """Return the string after which the model writes its reply to a user's message.

    Args:
        tokenizer: With a chat template.
        text: The user's message, after its history if it has one (`conversations`); special tokens are neutralised.
        reply_start: Words put into the assistant's mouth, e.g. ``"Score: "``; the same.
    """
    rendered = tokenizer.apply_chat_template(conversation(text, tokenizer), tokenize=False, add_generation_prompt=True)
    return str(rendered) + neutralise_special_tokens(reply_start, tokenizer)


def template_system_prompt(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what the chat template puts before a user's first message by itself; blank if it is nothing but marks."""
    if not tokenizer.chat_template:
        return ""
    rendered = tokenizer.apply_chat_template(user_turn(_PLACEHOLDER), tokenize=False, add_generation_prompt=True)
    before = str(rendered).partition(_PLACEHOLDER)[0]
    for token in tokenizer_control_tokens(tokenizer):
        before = before.replace(token, "\n")
    # Names of roles stand alone in their lines.
    return "\n".join(line for line in before.splitlines() if len(line.split()) > 1).strip()


def tokenize_exchange(
    tokenizer: PreTrainedTokenizerBase, message: str, reply: str, ended: bool = True
) -> tuple[list[int], list[int]]:
    """Return the token ids of a rendered user message and of the reply to it, as generation would have drawn them.

    Args:
        tokenizer: With a chat template.
        message: The user's message, with its history if it has one; special tokens in it are neutralised.
        reply: The assistant's reply; the same.
        ended: Whether the reply came to its end, and so is followed by the end token. One that a token limit cut off
            is not, or a model trained on it would learn to stop in the middle.
    """
    rendered, text = render_user_turn(tokenizer, message), neutralise_special_tokens(reply, tokenizer)

    def encode(part: str) -> list[int]:
        # The template has written every special token that belongs there; a second one would be a mistake.
        return list(tokenizer(part, add_special_tokens=False).input_ids)

    prompt, whole = encode(rendered), encode(rendered + text)
    # Where the reply's first letters would merge with the prompt's last token, generation could not have merged them.
    replied = whole[len(prompt) :] if whole[: len(prompt)] == prompt else encode(text)
    return prompt, replied + ([int(tokenizer.eos_token_id)] if ended else [])
