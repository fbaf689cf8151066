"""An arbiter that is no model: the reply that follows more of the verifiable instructions is better."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from srlm_pipeline.checks.verifiable import VerifiablePrompt, check_reply
from srlm_pipeline.evaluation.arbiters import Comparison
from srlm_pipeline.progress import ProgressReporter


class VerifierArbiter:
    """Compares the shares of a prompt's instructions that two replies follow, loosely.

    It has an opinion on prompts with verifiable instructions only; a jury leaves it out elsewhere.

    Args:
        prompts: Whose instructions are known; found again by their text, without blanks around it.
    """

    def __init__(self, prompts: Sequence[VerifiablePrompt]) -> None:
        self._prompts = {prompt.prompt.strip(): prompt for prompt in prompts}

    @property
    def name(self) -> str:
        """What it is."""
        return "verifiers"

    def prefer_first(self, comparisons: Sequence[Comparison], progress: ProgressReporter) -> NDArray[np.float64]:
        """Return the difference of the two shares, in -1..1; see `Arbiter.prefer_first`."""
        replies = dict.fromkeys((c.prompt, reply) for c in comparisons for reply in (c.first, c.second))
        share: dict[tuple[str, str], float] = {}
        with progress.task("checking instructions", len(replies), "replies") as task:
            for prompt, reply in replies:
                known = self._prompts.get(prompt.strip())
                share[prompt, reply] = float(np.mean(check_reply(known, reply).loose)) if known else np.nan
                task.advance()
        return np.array([share[c.prompt, c.first] - share[c.prompt, c.second] for c in comparisons])
