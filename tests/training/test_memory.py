"""Freed memory stays with the process, which is what makes a training step on the CPU cheaper."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROBE = """
import resource
import torch
from emqdeploy.training.memory import keep_freed_memory

def page_faults():
    for step in range(25):
        tensors = [torch.ones(2**20) for _ in range(4)]
        del tensors
        if step == 4:  # by now every block that the steps need was touched once
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = page_faults()
if not keep_freed_memory():
    raise SystemExit(3)
print(usual, page_faults())
"""
"""Page faults of 20 steps that each allocate and free 16 MB, as the system counts them."""


def test_freed_memory_is_used_again() -> None:
    """Without it every step clears its pages anew; with it hardly any."""
    # Without a fixed threshold glibc adapts it, and whether the default gives memory back is a matter of luck.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, env=environment)
    if done.returncode == 3:
        pytest.skip("not glibc")
    assert done.returncode == 0, done.stderr
    usual, kept = map(int, done.stdout.split())
    assert kept < usual / 5
