"""What the C library does with the memory of tensors that are freed again and again on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
_NEVER = 2**31 - 1
# Where glibc's own adaptation ends up in a process that frees large blocks.
_USUAL_MMAP_THRESHOLD, _USUAL_TRIM_THRESHOLD, _USUAL_MMAP_MAX = 32 << 20, 64 << 20, 1 << 16


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Let the C library keep what is freed, for the next tensor of that size, and give it back in the end.

    By default glibc maps large blocks anew and gives them back at once, so that each tensor of a training step is paid
    for in page faults; on a virtual machine they took a third of the step. Where the C library is another one, nothing
    changes.
    """
    change = _c_function("mallopt")
    change(_MMAP_MAX, 0)
    change(_TRIM_THRESHOLD, _NEVER)
    # Blocks freed by the thread of the backward pass must be found by the one of the next forward pass.
    change(_ARENA_MAX, 1)
    try:
        yield
    finally:
        give_back_freed_memory()


def give_back_freed_memory() -> None:
    """Return what was kept, and keep no more than usual from now on."""
    change = _c_function("mallopt")
    change(_MMAP_MAX, _USUAL_MMAP_MAX)
    change(_MMAP_THRESHOLD, _USUAL_MMAP_THRESHOLD)
    change(_TRIM_THRESHOLD, _USUAL_TRIM_THRESHOLD)
    trim_freed_memory()


def trim_freed_memory() -> None:
    """Return the pages that nothing uses any more.

    glibc by itself returns those at the heap's end alone: with tensors of many different sizes what is free lies in
    between, and a process grows for as long as it works.
    """
    _c_function("malloc_trim")(0)


def _c_function(name: str) -> Callable[..., object]:
    """Return a function of the C library; one that does nothing where the library does not have it."""
    try:
        function: Callable[..., object] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return lambda *_: None
    return function
