"""Stands in for a model: writes and weighs what a test tells it, and remembers what it was asked."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from srlm_pipeline.generation.engine import Completion, GenerationRequest, Sampling


class FakeEngine:
    """Stops working, as an interrupted run does, before request number `dies_at`."""

    digest = "fake"

    def __init__(
        self,
        write: Callable[[GenerationRequest], str | Completion] | None = None,
        weigh: Callable[[str], Sequence[float]] | None = None,
        dies_at: int | None = None,
    ) -> None:
        self._write, self._weigh, self._dies_at = write, weigh, dies_at
        self.requests: list[GenerationRequest] = []
        self.prefixes: list[str] = []
        self.samplings: list[Sampling] = []

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        on_finished: Callable[[list[Completion]], None] | None = None,
    ) -> list[Completion]:
        assert self._write is not None
        self.samplings.append(sampling)
        finished = []
        for request in requests:
            if len(self.requests) == self._dies_at:
                raise KeyboardInterrupt
            self.requests.append(request)
            written = self._write(request)
            finished.append(written if isinstance(written, Completion) else Completion(request.key, written, 5, "stop"))
            if on_finished:
                on_finished(finished[-1:])
        return finished

    def next_token_distribution(
        self, prefixes: Sequence[str], options: Sequence[str], on_finished: Callable[[int], None] | None = None
    ) -> NDArray[np.float64]:
        assert self._weigh is not None
        self.prefixes += prefixes
        masses = np.array([self._weigh(prefix) for prefix in prefixes], dtype=float)
        assert masses.shape == (len(prefixes), len(options))
        if on_finished:
            on_finished(len(prefixes))
        return masses

    def render(self, text: str, reply_start: str = "") -> str:
        return f"USER {text} ASSISTANT {reply_start}"
