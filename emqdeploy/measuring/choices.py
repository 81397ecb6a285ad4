"""The table that a policy chooses from, measured here or taken from the result of a bench."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from emqdeploy.errors import UsageError
from emqdeploy.format.bundle import CHILD
from emqdeploy.format.child import ChildLike
from emqdeploy.format.grid import Floats
from emqdeploy.measuring.rows import rows_of
from emqdeploy.measuring.statistics import percentiles
from emqdeploy.runtimes.base import Runtime
from emqdeploy.runtimes.policy.options import Accuracies, Option, Setting, by_name

BLOCK = 5
"""Inferences of one setting before the next one has its turn."""


LEAST = 30
"""Inferences of each setting at least."""


def thread_modes(cores: int) -> dict[str, int]:
    """Numbers of threads worth choosing from: all cores, half of them, one."""
    counts = dict.fromkeys(count for count in (cores, cores // 2, 1) if count >= 1)
    return {f"{count} thread{'s' if count > 1 else ''}": count for count in counts}


def measured_options(
    runtimes: Mapping[str, Runtime],
    children: Sequence[ChildLike],
    accuracy: Accuracies,
    images: Floats,
    seconds: float = 0.4,
) -> list[Option]:
    """Times every setting on this machine, in turns, and puts the figures beside the accuracies.

    Args:
        runtimes: by the name of their mode.
        children: those to choose from.
        accuracy: percent by child or its name, where it is known.
        images: a batch as it will come, normalised ``(N, C, H, W)``.
        seconds: for each setting, more where that gives fewer than ``LEAST`` inferences.
    """
    order = [Setting(runtime.find(child), mode) for mode, runtime in runtimes.items() for child in children]
    taken: dict[Setting, list[float]] = {setting: [] for setting in order}
    while len(taken[order[-1]]) < LEAST or sum(taken[order[-1]]) < 1e3 * seconds:
        for setting in order:
            runtime = runtimes[setting.mode]
            runtime.use(setting.child)
            runtime(images)
            for _ in range(BLOCK):
                start = time.perf_counter_ns()
                runtime(images)
                taken[setting].append((time.perf_counter_ns() - start) / 1e6)
    known = by_name(accuracy)
    return [
        Option(setting, known.get(setting.child.name), latency_ms=percentiles(samples_ms))
        for setting, samples_ms in taken.items()
    ]


def options_of_result(result: Mapping[str, Any], mode: str = "") -> list[Option]:
    """Reads the settings that a bench measured: its children, with everything that a policy can weigh.

    Args:
        result: of a bench, see `emqdeploy.measuring.result`.
        mode: the name under which the bench's runtime is open here.

    Raises:
        UsageError: it holds no timed child.
    """
    rows = [row for row in rows_of(result) if row.kind == CHILD and row.latency_ms]
    if not rows:
        raise UsageError("the table holds no timed children; make one with: emqdeploy bench --out table.json")
    found = []
    for row in rows:
        child, latency = row.find_child(), row.latency_ms
        if child is not None and latency is not None and row.runtime == rows[0].runtime:
            accuracy = row.reference_accuracy if row.accuracy is None else row.accuracy
            found.append(
                Option(
                    Setting(child, mode),
                    accuracy,
                    latency_ms={"p50": latency.p50, "p90": latency.p90, "p95": latency.p95, "p99": latency.p99},
                    energy_mj=row.energy.energy_mj_per_inference,
                    power_w=row.energy.power_w,
                    memory_bytes=row.rss_bytes,
                )
            )
    return found
