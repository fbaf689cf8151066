"""What the rest of the pipeline knows of text generation: requests in, completions out.

The protocol promises determinism per item: an item's random numbers come from its own seed, which derives
from (run seed, stage, item), never from its place in a batch. So an interrupted stage, a different batch size
or another order of prompts ask for the same randomness.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "none"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0 means greedy.
        top_p: Nucleus mass in (0, 1].
        max_new_tokens: Upper bound on the completion, in tokens. A thought before it has a limit of its own
            (`ThinkingSettings`).
        stop: Texts that end a completion; they are not part of it.
        stop_after: Regular expression; a completion ends with its first match, which is part of it.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    stop_after: str | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """One completion to be written.

    Attributes:
        key: Unique name within the stage.
        prompt: The exact text to be continued, chat template applied.
        seed: Of this item's own random numbers.
    """

    key: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Completion:
    """One finished completion.

    Attributes:
        key: Of the request.
        text: Without special tokens, without the stop text, and without a thought before it.
        n_tokens: Tokens drawn, those of a thought and the end token included.
        finish_reason: ``stop`` for an end token or stop text, ``length`` for the token limit; ``none`` where a server
            did not answer, which is asked again the next time.
        token_ids: What was drawn, thought included, without the end token; None where that is not known, or where a
            stop text cut it.
    """

    key: str
    text: str
    n_tokens: int
    finish_reason: FinishReason
    # Not every engine knows them: completions that say the same are equal.
    token_ids: tuple[int, ...] | None = field(default=None, compare=False)


class TextWriter(Protocol):
    """A model that writes."""

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        on_finished: Callable[[list[Completion]], None] | None = None,
    ) -> list[Completion]:
        """Complete every request.

        Args:
            requests: In any order; results come back in the same order.
            sampling: Shared by all requests.
            on_finished: Called with each finished batch, for journals and progress.
        """
        ...

    def render(self, text: str, reply_start: str = "") -> str:
        """Return the string that the model continues in reply to one user message.

        Args:
            text: The user's message.
            reply_start: What the reply begins with. Neither can hold a special token, whatever it says.
        """
        ...

    @property
    def digest(self) -> str:
        """Fingerprint of the weights, for journals and data versions."""
        ...


class TextEngine(TextWriter, Protocol):
    """A loaded model that writes and that can be asked for probabilities."""

    def next_token_distribution(
        self,
        prefixes: Sequence[str],
        options: Sequence[str],
        on_finished: Callable[[int], None] | None = None,
    ) -> NDArray[np.float64]:
        """Return the probability that each prefix is continued by each option.

        Args:
            prefixes: Exact texts, chat template applied.
            options: Continuations that must be one token each, e.g. ``"0" .. "5"``.
            on_finished: Called with the number of prefixes of each finished batch.

        Returns:
            Shape (len(prefixes), len(options)); rows sum to at most 1, the rest is other tokens' probability.
        """
        ...


def cut(text: str, sampling: Sampling) -> str | None:
    """Return the text up to where the sampling's stop texts or pattern end it; None if they do not."""
    ends = [text.find(stop) for stop in sampling.stop if stop in text]
    if sampling.stop_after is not None and (found := re.search(sampling.stop_after, text)):
        ends.append(found.end())
    return text[: min(ends)] if ends else None


def derive_seed(run_seed: int, stage: str, *item: str | int) -> int:
    """Derive an item's seed from the run's seed, the stage and the item's own name.

    Args:
        run_seed: The setting ``seed``.
        stage: For example ``"candidates/iter_001"``.
        item: Whatever identifies the item within the stage, e.g. prompt id and sample number.

    Returns:
        A 63-bit integer, equal on every machine.
    """
    text = "\x1f".join([str(run_seed), stage, *map(str, item)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
