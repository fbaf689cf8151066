"""Ending DPO where the replies stop getting better (paper section 3.1.2).

At every look the policy of that moment answers prompts that no stage trains on. Either an arbiter holds the answers
against those of the look before, the first against the model that training started from; or programs hold them against
that model's, and see what training costs. When a look is lost, training ends and the model of the look before is taken:
what is watched is what people will read, not the loss.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srlm_pipeline.files import replacing_file
from srlm_pipeline.models.checkpoint import Checkpoint, is_checkpoint, read_checkpoint
from srlm_pipeline.training.ranks import decided, is_first

# Saves the policy as it is now in a folder, as the model of a step.
Export = Callable[[Path, int], Checkpoint]
WIN_RATE = "early_stopping/win_rate"
LOST = "early_stopping/lost"
_HISTORY = "looks.json"


@dataclass(frozen=True)
class Outcome:
    """What a look saw.

    Attributes:
        lost: Whether the replies got worse.
        figures: That tell by how much, by their names in a trainer's log.
    """

    lost: bool
    figures: Mapping[str, float]


# Holds the policy of the moment against the model of the last look that was not lost.
Compare = Callable[[Checkpoint, Checkpoint], Outcome]


@dataclass
class EarlyStopping:
    """Looks at a training and ends it.

    Attributes:
        every: Optimiser steps between looks.
        entering: The model that training starts from.
        compare: Says whether a look is lost.
        stopped_at: Step of the look that was lost; None while there is none.
        best: The model to take: the latest that won, or the one that training started from.
        history: Figures of each look, as entries of a trainer's log.
    """

    every: int
    entering: Checkpoint
    compare: Compare
    stopped_at: int | None = None
    best: Checkpoint = field(init=False)
    history: list[dict[str, float]] = field(default_factory=list)
    _saved_at: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        self.best = self.entering

    def callback(self, folder: Path, export: Export) -> Any:
        """Return the trainer's callback.

        Args:
            folder: For the models of the looks; a training that was interrupted finds its latest there.
            export: Called at every look.
        """
        from transformers import TrainerCallback

        stopping = self

        class Look(TrainerCallback):
            """Looks every so many optimiser steps."""

            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                stopping._take_up(folder, state.global_step)

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if stopping.stopped_at is None and state.global_step % stopping.every == 0:
                    stopping._look(folder, state.global_step, export)
                control.should_training_stop = control.should_training_stop or stopping.stopped_at is not None

            def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                stopping._saved_at = state.global_step

        return Look()

    def _take_up(self, folder: Path, step: int) -> None:
        """Go on from the looks that lie before the step at which training continues; later ones are taken anew."""
        # A training that begins again in this very process knows of looks that it has yet to take.
        self._saved_at, self.history, self.best = step, [], self.entering
        written = folder / _HISTORY
        if step and written.is_file():
            self.history = [look for look in json.loads(written.read_text(encoding="utf-8")) if look["step"] <= step]
        for look in self.history:
            if look[LOST]:
                self.stopped_at = int(look["step"])
            elif is_checkpoint(kept := _model_folder(folder, int(look["step"]))):
                self.best = read_checkpoint(kept)

    def _look(self, folder: Path, step: int, export: Export) -> None:
        import torch

        # Loading and writing must not change what training draws.
        with torch.random.fork_rng():
            now = export(_model_folder(folder, step), step)
            outcome = decided(lambda: self.compare(now, self.best))
        self.history.append({"step": step, LOST: float(outcome.lost), **outcome.figures})
        if is_first():
            with replacing_file(folder / _HISTORY) as temporary:
                temporary.write_text(json.dumps(self.history), encoding="utf-8")
        if outcome.lost:
            self.stopped_at = step
            return
        self.best = now
        # An interruption would go on from the last save, and from the look before it.
        saved = [int(look["step"]) for look in self.history if look["step"] <= self._saved_at][-1:]
        needed = {now.path, *(_model_folder(folder, look) for look in saved)}
        for kept in folder.glob("step-*"):
            if kept not in needed and is_first():
                shutil.rmtree(kept, ignore_errors=True)


def _model_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"
