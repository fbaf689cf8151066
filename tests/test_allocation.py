"""Freed memory stays with the process, so that the next tensor of that size costs no page faults."""

import subprocess
import sys

import pytest

PROGRAM = """
import contextlib, resource, sys, torch
from srlm_pipeline.models.allocation import keep_freed_memory
with keep_freed_memory() if sys.argv[1] == "kept" else contextlib.nullcontext():
    for _ in range(3):
        torch.ones(1 << 24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(1 << 24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux is meant")


def test_large_tensors_reuse_what_was_freed() -> None:
    # Hundreds of times fewer where nothing else is going on. What else is going on, and kernels that take idle pages
    # back in the background, only ever add some: hence the least of three.
    faults = {
        how: min(
            int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, check=True).stdout)
            for _ in range(3)
        )
        for how in ("kept", "given back")
    }
    assert faults["kept"] < faults["given back"] / 4, faults


def test_what_was_kept_is_given_back_after_an_error_too_and_no_more_is_kept() -> None:
    program = """
import contextlib, psutil, torch
from srlm_pipeline.models.allocation import keep_freed_memory
size = lambda: psutil.Process().memory_info().rss
before = size()
with contextlib.suppress(ValueError), keep_freed_memory():
    torch.ones(1 << 26)
    kept = size() - before
    raise ValueError
given_back = size() - before
torch.ones(1 << 26)
print(kept > 2**27, given_back < 2**26, size() - before < 2**26)
"""
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert made.stdout.split() == ["True", "True", "True"]
