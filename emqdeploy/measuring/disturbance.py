"""What went on beside a measurement: other processes, a hypervisor, falling clocks, throttling."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from emqdeploy.measuring.sysfs import Tree

PERIOD_S = 0.25
"""Between two looks: the kernel counts processor time in steps of 10 ms, so shorter windows say little."""

STEAL_BOUND = 0.02
OTHER_BOUND = 0.05
DROP_BOUND = 0.9
"""Marked as disturbed: more stolen or other time than these shares of the machine, clocks below this share."""

Readings = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class _Times:
    """Processor time so far, in seconds summed over cores."""

    total: float
    idle: float
    steal: float
    own: float


@dataclass
class Monitor:
    """Watches the machine between timed blocks, never during one.

    Args:
        tree: where to read.
        readings: of the device: ``frequency_mhz``, ``temperature_c``, ``throttling``.
    """

    tree: Tree
    readings: Readings
    windows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._times = self._now()

    def tick(self) -> None:
        """Looks, if the last look is a while ago."""
        if time.perf_counter() - self._last >= PERIOD_S:
            self.look()

    def look(self) -> None:
        """Closes a window: what happened since the last one."""
        now, times = time.perf_counter(), self._now()
        before, self._times, self._last = self._times, times, now
        window: dict[str, Any] = {"t_s": round(now - self._start, 3), **self.readings()}
        if before is not None and times is not None and times.total > before.total:
            total = times.total - before.total
            own = times.own - before.own
            other = total - (times.idle - before.idle) - (times.steal - before.steal) - own
            window["steal"] = round((times.steal - before.steal) / total, 4)
            window["other_load"] = round(max(0.0, other) / total, 4)
        self.windows.append(window)

    def reasons(self) -> list[str]:
        """Returns why the figures taken so far deserve less trust; empty when nothing was seen."""
        found = []
        steal = _mean(self.windows, "steal")
        if steal > STEAL_BOUND:
            found.append(f"the hypervisor took {100 * steal:.0f} % of the processor")
        other = _mean(self.windows, "other_load")
        if other > OTHER_BOUND:
            found.append(f"other processes used {100 * other:.0f} % of the processor")
        clocks = [window["frequency_mhz"] for window in self.windows if window.get("frequency_mhz")]
        if clocks and min(clocks) < DROP_BOUND * max(clocks):
            found.append(f"the processor's clock moved between {min(clocks):.0f} and {max(clocks):.0f} MHz")
        return found + sorted({reason for window in self.windows for reason in window.get("throttling", ())})

    def _now(self) -> _Times | None:
        """Reads ``/proc/stat``: user, nice, system, idle, iowait, irq, softirq, steal."""
        line = (self.tree.text("proc/stat") or "").partition("\n")[0].split()
        if len(line) < 9 or line[0] != "cpu":
            return None
        try:
            ticks = [int(value) / os.sysconf("SC_CLK_TCK") for value in line[1:9]]
        except ValueError:
            return None
        used = os.times()
        own = used.user + used.system + used.children_user + used.children_system
        return _Times(sum(ticks), ticks[3] + ticks[4], ticks[7], own)


def _mean(windows: list[dict[str, Any]], key: str) -> float:
    values = [window[key] for window in windows if key in window]
    return sum(values) / len(values) if values else 0.0
