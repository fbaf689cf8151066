"""Attempts at an iteration: after a model was refused, the same iteration is done again from the champion."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from srlm_pipeline.config import Settings
from srlm_pipeline.errors import RecordError
from srlm_pipeline.files import replacing_file
from srlm_pipeline.generation.engine import derive_seed


@dataclass(frozen=True)
class Attempt:
    """One try at an iteration.

    Attributes:
        number: From 1.
        entering: Name of the model that it starts from; None: what the iteration before made.
        entering_digest: Of that model's weights.
        settings_version: Of the settings that it was begun with.
    """

    number: int = 1
    entering: str | None = None
    entering_digest: str = ""
    settings_version: str = ""

    def settings(self, settings: Settings) -> Settings:
        """Return the project's settings with this attempt's seed; the first attempt has the project's own."""
        if self.number == 1:
            return settings
        # Trainers seed NumPy, which takes 32 bits.
        return settings.model_copy(update={"seed": derive_seed(settings.seed, "attempt", self.number) % 2**31})


def read_attempt(path: Path) -> Attempt:
    """Return the attempt that is under way or was the last; the first where nothing is written.

    Raises:
        RecordError: If what is written is damaged.
    """
    if not path.is_file():
        return Attempt()
    try:
        return Attempt(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RecordError(path, error, "delete it, and the iteration is at its first attempt again") from error


def write_attempt(attempt: Attempt, path: Path) -> None:
    """Begin an attempt, atomically; a later run of the iteration's assets belongs to it."""
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(asdict(attempt)) + "\n", encoding="utf-8")
