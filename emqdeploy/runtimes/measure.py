"""Measuring a runtime: interleaved latency, switching, accuracy, memory of one bit-width in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.data import Preprocessing, Split
from emqdeploy.errors import EmqError
from emqdeploy.grid import Floats
from emqdeploy.runtimes.base import Runtime

BLOCK = 10
WARM_UP = 5


def percentiles(samples_ms: Sequence[float]) -> dict[str, float]:
    """p50, p90, p95, p99, mean and the fastest of raw samples in milliseconds, and their number."""
    values = np.asarray(samples_ms)
    named = {f"p{q}": float(np.percentile(values, q)) for q in (50, 90, 95, 99)}
    return {**named, "mean": float(values.mean()), "min": float(values.min()), "samples": len(values)}


def interleaved_latency(
    runtime: Runtime, widths: Sequence[int], images: Floats, samples: int, tick: Callable[[], None] = lambda: None
) -> dict[int, list[float]]:
    """Milliseconds per call at each bit-width, in alternating blocks, so that a drifting clock hits all alike.

    The first call of a block is discarded: it pays for the switch.
    """
    timings: dict[int, list[float]] = {bits: [] for bits in widths}
    for bits in widths:
        runtime.set_bits(bits)
        for _ in range(WARM_UP):
            runtime(images)
    rounds = -(-samples // BLOCK)
    for index in range(rounds):
        for bits in list(widths)[:: 1 if index % 2 == 0 else -1]:
            runtime.set_bits(bits)
            runtime(images)
            for _ in range(BLOCK):
                start = time.perf_counter_ns()
                runtime(images)
                timings[bits].append((time.perf_counter_ns() - start) / 1e6)
            tick()
    return timings


def switch_latency(runtime: Runtime, widths: Sequence[int], images: Floats, switches: int) -> dict[int, dict[str, Any]]:
    """Per bit-width that is switched to: milliseconds of `set_bits` and of the first output after it."""
    calls: dict[int, list[float]] = {bits: [] for bits in widths}
    firsts: dict[int, list[float]] = {bits: [] for bits in widths}
    random = np.random.default_rng(0)
    for _ in range(switches):
        others = [bits for bits in widths if bits != runtime.bits] or list(widths)
        bits = int(random.choice(others))
        start = time.perf_counter_ns()
        runtime.set_bits(bits)
        switched = time.perf_counter_ns()
        runtime(images)
        done = time.perf_counter_ns()
        calls[bits].append((switched - start) / 1e6)
        firsts[bits].append((done - switched) / 1e6)
    return {
        bits: {"set_bits": percentiles(calls[bits]), "first_output": percentiles(firsts[bits])}
        for bits in widths
        if calls[bits]
    }


def measured_accuracy(
    runtime: Runtime, bits: int, split: Split, preprocessing: Preprocessing, batch: int = 64
) -> float:
    """Percent of a split that the runtime classifies correctly at ``bits``."""
    runtime.set_bits(bits)
    correct = 0
    for start in range(0, len(split), batch):
        images = preprocessing.normalize(split.images[start : start + batch])
        correct += int((runtime(images).argmax(1) == split.labels[start : start + batch]).sum())
    return 100.0 * correct / len(split)


def memory_of_one_width(path: Path, bits: int) -> int | None:
    """Bytes that loading one bit-width and running it once adds to a fresh process; None where it is not measurable."""
    command = [sys.executable, "-m", "emqdeploy.runtimes.memory", str(path), str(bits)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise EmqError(f"cannot measure the memory of {bits} bits: {result.stderr.strip().rpartition(chr(10))[2]}")
    added: int | None = json.loads(result.stdout)["added_bytes"]
    return added
