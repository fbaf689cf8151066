"""Memory for tensors that a CPU process allocates and frees again and again."""

from __future__ import annotations

import ctypes

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next tensor of that size.

    By default glibc maps every large block anew and gives it back at once, so that each tensor of a training step is
    paid for in page faults; on a virtual machine they took a third of the step. Memory then stays at the process's
    peak until it ends. Where the C library is another one, nothing changes.
    """
    try:
        change = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    change(_MMAP_MAX, 0)
    change(_TRIM_THRESHOLD, _NEVER)
    # Blocks freed by the thread of the backward pass must be found by the one of the next forward pass.
    change(_ARENA_MAX, 1)
