"""What is said and done where a device's memory runs out."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from srlm_pipeline.acceleration.allocation import give_back_freed_memory
from srlm_pipeline.errors import DeviceMemoryError

# The allocators of CUDA, Apple's GPUs and the CPU; the latter two raise plain RuntimeErrors.
_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory ran out."""
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _MESSAGES)


@contextmanager
def sufficient_memory(work: str, remedy: str) -> Iterator[None]:
    """Say in one sentence what to change where the memory runs out.

    Args:
        work: What is done meanwhile.
        remedy: A sentence that names the settings.

    Raises:
        DeviceMemoryError: In place of the library's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceMemoryError(work, remedy) from error


def free_memory() -> None:
    """Return to the device and the system what nothing uses any more."""
    gc.collect()
    give_back_freed_memory()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
