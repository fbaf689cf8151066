"""Models that are opened when they are asked, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from srlm_pipeline.generation.engine import Completion, GenerationRequest, Sampling, TextEngine
from srlm_pipeline.generation.opening import OpenEngine
from srlm_pipeline.models.checkpoint import Checkpoint


class ModelSlot:
    """Room for one opened model: when another one is asked, the one before is let go.

    Args:
        open_engine: Loads a checkpoint with a batch size.
    """

    def __init__(self, open_engine: OpenEngine) -> None:
        self._open = open_engine
        self._held: tuple[Checkpoint, TextEngine] | None = None

    def opened(self, checkpoint: Checkpoint, batch_size: int) -> TextEngine:
        """Return the model's engine, loading it if it is not the one that is held."""
        if self._held is None or self._held[0] != checkpoint:
            # Before the next one is loaded, so that there are never two in memory.
            self._held = None
            self._held = checkpoint, self._open(checkpoint, batch_size)
        return self._held[1]


class DeferredEngine:
    """A `TextEngine` that is opened when it has something to do: what journals hold needs no model.

    Args:
        slot: Where it is held.
        checkpoint: The model.
        batch_size: Rows that are generated together.
        manner: How the model thinks; see `ThinkingSettings.manner`.
    """

    def __init__(self, slot: ModelSlot, checkpoint: Checkpoint, batch_size: int, manner: str = "") -> None:
        self._slot, self._checkpoint, self._batch_size, self._manner = slot, checkpoint, batch_size, manner

    @property
    def digest(self) -> str:
        """Fingerprint of the weights and of how they think; tells it without opening them."""
        return self._checkpoint.digest + self._manner

    def render(self, text: str, reply_start: str = "") -> str:
        """Return the string that the model continues; see `TextEngine.render`."""
        return self._opened().render(text, reply_start)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        on_finished: Callable[[list[Completion]], None] | None = None,
    ) -> list[Completion]:
        """Complete every request; see `TextEngine.generate`."""
        return self._opened().generate(requests, sampling, on_finished) if requests else []

    def next_token_distribution(
        self,
        prefixes: Sequence[str],
        options: Sequence[str],
        on_finished: Callable[[int], None] | None = None,
    ) -> NDArray[np.float64]:
        """Return the options' probabilities; see `TextEngine.next_token_distribution`."""
        return self._opened().next_token_distribution(prefixes, options, on_finished)

    def _opened(self) -> TextEngine:
        return self._slot.opened(self._checkpoint, self._batch_size)
