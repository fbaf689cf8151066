"""What the processes of one training tell each other: which one each is, and what the first has decided.

All of it works in a training by one process too, which is the first and waits for nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Decision = TypeVar("Decision")


def n_ranks() -> int:
    """Return how many processes train together."""
    import torch.distributed as group

    return group.get_world_size() if group.is_available() and group.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among them, from 0."""
    import torch.distributed as group

    return group.get_rank() if n_ranks() > 1 else 0


def is_first() -> bool:
    """Whether this process speaks and writes for all."""
    return rank() == 0


def decided(decide: Callable[[], Decision]) -> Decision:
    """Let the first process do or decide something while the others wait, and return to all what it returned."""
    if n_ranks() == 1:
        return decide()
    import torch.distributed as group

    told: list[Any] = [decide() if is_first() else None]
    group.broadcast_object_list(told, src=0)
    decision: Decision = told[0]
    return decision


def meet() -> None:
    """Wait until all processes have come here."""
    if n_ranks() > 1:
        import torch.distributed as group

        group.barrier()


def agreeing_callback() -> Any:
    """Return the trainer's callback that ends training in all processes or in none; to be added last."""
    from transformers import TrainerCallback

    class Agree(TrainerCallback):
        """Takes the first process's word wherever others may have been led to stop."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._agree(control)

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._agree(control)

        def _agree(self, control: Any) -> None:
            control.should_training_stop = decided(lambda: control.should_training_stop)

    return Agree()
