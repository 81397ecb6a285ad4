"""The table that a policy chooses from, measured here or taken from the result of a bench."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from emqdeploy.errors import UsageError
from emqdeploy.grid import Floats
from emqdeploy.measuring.statistics import percentiles
from emqdeploy.runtimes.base import Runtime
from emqdeploy.runtimes.policy.options import Option, Setting

BLOCK = 5
"""Inferences of one setting before the next one has its turn."""


LEAST = 30
"""Inferences of each setting at least."""


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_modes(cores: int) -> dict[str, int]:
    """Numbers of threads worth choosing from: all cores, half of them, one."""
    counts = dict.fromkeys(count for count in (cores, cores // 2, 1) if count >= 1)
    return {f"{count} thread{'s' if count > 1 else ''}": count for count in counts}


def measured_options(
    runtimes: Mapping[str, Runtime],
    widths: Sequence[int],
    accuracy: Mapping[int, float],
    images: Floats,
    seconds: float = 0.4,
) -> list[Option]:
    """Times every setting on this machine, in turns, and puts the figures beside the accuracies.

    Args:
        runtimes: by the name of their mode.
        widths: bit-widths to choose from.
        accuracy: percent per bit-width, where it is known.
        images: a batch as it will come, normalised ``(N, C, H, W)``.
        seconds: for each setting, more where that gives fewer than ``LEAST`` inferences.
    """
    order = [Setting(bits, mode) for mode in runtimes for bits in widths]
    taken: dict[Setting, list[float]] = {setting: [] for setting in order}
    while len(taken[order[-1]]) < LEAST or sum(taken[order[-1]]) < 1e3 * seconds:
        for setting in order:
            runtime = runtimes[setting.mode]
            runtime.set_bits(setting.bits)
            runtime(images)
            for _ in range(BLOCK):
                start = time.perf_counter_ns()
                runtime(images)
                taken[setting].append((time.perf_counter_ns() - start) / 1e6)
    return [
        Option(setting, accuracy.get(setting.bits), latency_ms=percentiles(samples_ms))
        for setting, samples_ms in taken.items()
    ]


def options_of_result(result: Mapping[str, Any], mode: str = "") -> list[Option]:
    """Reads the settings that a bench measured: its bit-widths, with everything that a policy can weigh.

    Args:
        result: of a bench, see `emqdeploy.measuring.result`.
        mode: the name under which the bench's runtime is open here.

    Raises:
        UsageError: it holds no timed bit-width.
    """
    rows = [row for row in result["rows"] if row["kind"] == "width" and row["latency_ms"]]
    if not rows:
        raise UsageError("the table holds no timed bit-widths; make one with: emqdeploy bench --out table.json")
    first = rows[0]["runtime"]
    return [
        Option(
            Setting(row["bits"], mode),
            row["accuracy"] if row["accuracy"] is not None else row["reference_accuracy"],
            latency_ms={key: row["latency_ms"][key] for key in ("p50", "p90", "p95", "p99")},
            energy_mj=row["energy"].get("energy_mj_per_inference"),
            power_w=row["energy"].get("power_w"),
            memory_bytes=row["rss_bytes"],
        )
        for row in rows
        if row["runtime"] == first
    ]
