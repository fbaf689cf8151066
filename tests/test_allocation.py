"""Freed memory stays with the process, so that the next tensor of that size costs no page faults."""

import os
import subprocess
import sys

import pytest

from srlm_pipeline.acceleration import allocation
from srlm_pipeline.acceleration.switch import SWITCH

PROGRAM = """
import resource, torch
from srlm_pipeline.acceleration.allocation import keep_freed_memory
with keep_freed_memory("cpu"):
    for _ in range(3):
        torch.ones(1 << 24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(1 << 24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux is meant")


def printed_by(program: str, way: str) -> list[str]:
    """What a program prints; it asks for small pages in both ways, so that kept memory alone makes the difference."""
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "0", SWITCH: str(int(way == "plain"))}
    made = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True)
    return made.stdout.split()


def test_large_tensors_reuse_what_was_freed() -> None:
    # Hundreds of times fewer where nothing else is going on. What else is going on, and kernels that take idle pages
    # back in the background, only ever add some: hence the least of three.
    least = {way: min(int(printed_by(PROGRAM, way)[0]) for _ in range(3)) for way in ("accelerated", "plain")}
    assert least["accelerated"] < least["plain"] / 4, least


def test_what_was_kept_is_given_back_after_an_error_too_and_no_more_is_kept() -> None:
    program = """
import contextlib, psutil, torch
from srlm_pipeline.acceleration.allocation import keep_freed_memory
size = lambda: psutil.Process().memory_info().rss
before = size()
with contextlib.suppress(ValueError), keep_freed_memory("cpu"):
    torch.ones(1 << 26)
    kept = size() - before
    raise ValueError
given_back = size() - before
torch.ones(1 << 26)
print(kept > 2**27, given_back < 2**26, size() - before < 2**26)
"""
    assert printed_by(program, "accelerated") == ["True", "True", "True"]


def test_the_plain_way_tells_the_c_library_and_torch_nothing(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(allocation, "_c_function", lambda name: lambda *_: told.append(name))
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    allocation.ask_for_huge_pages()
    with allocation.keep_freed_memory("cpu"):
        allocation.trim_freed_memory()
    assert set(told) == ({"mallopt", "malloc_trim"} if way == "accelerated" else set())
    assert os.environ.get("THP_MEM_ALLOC_ENABLE") == ("1" if way == "accelerated" else None)
    told.clear()
    with allocation.keep_freed_memory("cuda"):
        assert not told
