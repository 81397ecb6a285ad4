"""A policy wired to real runtimes, a clock and sensors; the network is called as before."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from emqdeploy.format.grid import Floats
from emqdeploy.runtimes.base import Runtime
from emqdeploy.runtimes.machine import resident_bytes
from emqdeploy.runtimes.policy.budgets import Goals
from emqdeploy.runtimes.policy.core import Decision, Policy, Tuning
from emqdeploy.runtimes.policy.options import Accuracies, Option, Setting, table_options
from emqdeploy.runtimes.policy.window import Measurement

Sensor = Callable[[], Mapping[str, float | None]]
"""Returns what it can of ``power_w``, ``temperature_c`` and ``memory_bytes``."""

_SENSOR_PERIOD_S = 0.2


class Governed:
    """A network that chooses its own precision: call it like the runtime that it was made from.

    Args:
        runtimes: one runtime, or several by the name of their mode (``{"1 thread": ..., "2 threads": ...}``).
        goals: budgets, as text or parsed.
        options: what is known of each setting; without it only ``accuracy`` is, and the rest is found by trying.
        accuracy: percent by child or its name, for ``options`` left out.
        sensor: read at most five times a second; by default it knows the memory of this process.
        tuning: reaction times of the policy.
        clock: seconds.

    Attributes:
        policy: with its ``log``, ``setting`` and ``state``.
        last: the latest measurement.
        decision: the switch that followed the latest call, or None.

    Example:
        >>> network = Governed(source.runtime, "latency_p99=20ms,accuracy>=97", accuracy=source.accuracy)
        >>> logits = network(images)
    """

    def __init__(
        self,
        runtimes: Runtime | Mapping[str, Runtime],
        goals: Goals | str,
        options: Sequence[Option] | None = None,
        accuracy: Accuracies | None = None,
        sensor: Sensor | None = None,
        tuning: Tuning | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.runtimes = dict(runtimes) if isinstance(runtimes, Mapping) else {"": runtimes}
        self._sensor = sensor or _own_memory
        self._clock = clock
        if options is None:
            children = next(iter(self.runtimes.values())).children
            options = table_options(children, accuracy or {}, list(self.runtimes))
        self.policy = Policy(goals, options, tuning, now_s=clock())
        self._sensed: Mapping[str, float | None] = {}
        self._sensed_s = -_SENSOR_PERIOD_S
        self.last: Measurement | None = None
        self.decision: Decision | None = None
        self._apply(self.setting)

    @property
    def setting(self) -> Setting:
        """What runs now."""
        return self.policy.setting

    def __call__(self, images: Floats) -> Floats:
        """Returns logits ``(N, classes)``; the policy sees how long that took and may switch for the next call."""
        start = self._clock()
        logits = self._runtime(images)
        end = self._clock()
        self.last = Measurement(latency_ms=1000 * (end - start), **self._sense(end))
        self.decision = self.policy.step(end, self.last)
        if self.decision is not None:
            self._apply(self.decision.setting)
        return logits

    def _apply(self, setting: Setting) -> None:
        runtime = self.runtimes[setting.mode]
        runtime.use(setting.child)
        self._runtime = runtime

    def _sense(self, now_s: float) -> Mapping[str, float | None]:
        if now_s - self._sensed_s >= _SENSOR_PERIOD_S:
            self._sensed_s = now_s
            try:
                self._sensed = dict(self._sensor())
            except Exception:  # a sensor that disappears must not stop the network; the policy notes its silence
                self._sensed = {}
        return self._sensed


def _own_memory() -> dict[str, Any]:
    return {"memory_bytes": resident_bytes()}
