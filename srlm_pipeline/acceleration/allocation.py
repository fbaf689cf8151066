"""Memory of tensors that are freed again and again on a CPU: what the C library and torch are told about it.

Checked with glibc 2.36 and torch 2.13.0. Without it, glibc maps large blocks anew and gives them back at once, and
torch asks for small pages, so that each tensor of a training step is paid for in page faults: on a virtual machine they
took a third of the step.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from srlm_pipeline.acceleration.switch import Acceleration, is_switched_off, on_cpu_only

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
_NEVER = 2**31 - 1
# Where glibc's own adaptation ends up in a process that frees large blocks.
_USUAL_MMAP_THRESHOLD, _USUAL_TRIM_THRESHOLD, _USUAL_MMAP_MAX = 32 << 20, 64 << 20, 1 << 16
# An environment variable of torch.
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"


def _without_glibc(device_type: str) -> str | None:
    return on_cpu_only(device_type) or (None if _c_function("mallopt") else "the C library has no mallopt")


def _without_huge_pages(device_type: str) -> str | None:
    if sys.platform != "linux":
        return "on Linux alone"
    return on_cpu_only(device_type) or (None if os.environ.get(_HUGE_PAGES) == "1" else f"{_HUGE_PAGES} is not 1")


KEPT_MEMORY = Acceleration("freed memory kept in training", "the C library", unsuited=_without_glibc)
HUGE_PAGES = Acceleration("huge pages", "torch", unsuited=_without_huge_pages)


def ask_for_huge_pages() -> None:
    """Let torch ask for huge pages, unless the environment says otherwise; it reads this at its first allocation."""
    if not is_switched_off():
        os.environ.setdefault(_HUGE_PAGES, "1")


@contextmanager
def keep_freed_memory(device_type: str) -> Iterator[None]:
    """Let the C library keep what is freed, for the next tensor of that size, and give it back in the end.

    Args:
        device_type: Of the device that models run on; nothing changes where it is not a CPU.
    """
    if not KEPT_MEMORY.in_use(device_type):
        yield
        return
    _call("mallopt", _MMAP_MAX, 0)
    _call("mallopt", _TRIM_THRESHOLD, _NEVER)
    # Blocks freed by the thread of the backward pass must be found by the one of the next forward pass.
    _call("mallopt", _ARENA_MAX, 1)
    try:
        yield
    finally:
        give_back_freed_memory()


def give_back_freed_memory() -> None:
    """Return what was kept, and keep no more than usual from now on."""
    _call("mallopt", _MMAP_MAX, _USUAL_MMAP_MAX)
    _call("mallopt", _MMAP_THRESHOLD, _USUAL_MMAP_THRESHOLD)
    _call("mallopt", _TRIM_THRESHOLD, _USUAL_TRIM_THRESHOLD)
    trim_freed_memory()


def trim_freed_memory() -> None:
    """Return the pages that nothing uses any more.

    glibc by itself returns those at the heap's end alone: with tensors of many different sizes what is free lies in
    between, and a process grows for as long as it works.
    """
    _call("malloc_trim", 0)


def _call(name: str, *numbers: int) -> None:
    """Call a function of the C library, where the library has it and may be told anything."""
    function = None if is_switched_off() else _c_function(name)
    if function:
        function(*numbers)


def _c_function(name: str) -> Callable[..., object] | None:
    try:
        function: Callable[..., object] = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
    return function
