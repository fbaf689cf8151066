"""How many tokens a thought may take, so that it leaves the reply its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from srlm_pipeline.data.chat import opens_thought, read_reply, split_thought
from srlm_pipeline.generation.engine import Sampling
from srlm_pipeline.models.chat_format import chat_format

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Thoughts:
    """The thoughts of one model.

    Args:
        tokenizer: The model's.

    Attributes:
        manner: See `ThinkingSettings.manner`.
        expected: Whether replies may begin with one.
        marks_are_special: Whether a text without special tokens lacks the marks of thoughts too.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._format = tokenizer, chat_format(tokenizer)
        end, marks = list(tokenizer(self._format.thinking.end, add_special_tokens=False).input_ids), self._format.marks
        # Between letters a mark may be other tokens than by itself, unless it begins and ends with one of its own.
        self._end = end if end and end[0] in marks and end[-1] in marks else None
        self.manner = self._format.thinking.manner
        self.expected = self._format.thinks
        self.marks_are_special = self.expected and not marks.keys().isdisjoint(tokenizer.all_special_ids)

    def limit(self, sampling: Sampling) -> int:
        """Return how many tokens thought and reply may take together."""
        return sampling.max_new_tokens + (self._format.thinking.max_new_tokens if self.expected else 0)

    def reply(self, prompt: str, text: str) -> str:
        """Return a text without the thought that it begins with.

        Args:
            prompt: What was continued.
            text: What was written.
        """
        if not self.expected:
            return text
        return split_thought(text, self._format.thinking, opens_thought(self._tokenizer, prompt))[1]

    def used_up(self, prompt: str, drawn: Sequence[int], sampling: Sampling) -> bool:
        """Whether a completion has reached its limit: that of the reply once a thought has ended, or was never begun.

        Args:
            prompt: What is continued.
            drawn: Token ids so far.
            sampling: Whose limit is the reply's.
        """
        if len(drawn) < sampling.max_new_tokens:
            return False
        if not self.expected or len(drawn) >= self.limit(sampling):
            return True
        thought = self._thought_tokens(prompt, drawn)
        return thought is not None and len(drawn) - thought >= sampling.max_new_tokens

    def _thought_tokens(self, prompt: str, drawn: Sequence[int]) -> int | None:
        """Return the tokens of the thought, 0 if there is none; None as long as it goes on."""
        thought, reply = read_reply(self._tokenizer, prompt, drawn)
        if not reply:
            return None
        if self._end is not None:
            length, tokens = len(self._end), list(drawn)
            ends = (n for n in range(length, len(tokens) + 1) if tokens[n - length : n] == self._end)
            if (found := next(ends, None)) is not None:
                return found
        if not thought:
            return 0
        return next(n for n in range(len(drawn) + 1) if read_reply(self._tokenizer, prompt, drawn[:n])[1])
