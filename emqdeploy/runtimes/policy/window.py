"""The latest measurements at one setting, and whether they contradict a limit."""

from __future__ import annotations

import functools
import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from emqdeploy.runtimes.policy.budgets import Budget

SIGNIFICANCE = 1e-3
"""How unlikely the slow inferences of a window must be under the limit before they count as a violation."""


@dataclass(frozen=True)
class Measurement:
    """What one inference cost; None where no sensor tells."""

    latency_ms: float
    power_w: float | None = None
    temperature_c: float | None = None
    memory_bytes: float | None = None


class Window:
    """Measurements of the last moments.

    Args:
        seconds: how long a measurement counts.
        least: so many stay even when they are older, or a slow network would never have any.
        most: no more than that are kept, or a fast network would spend its time on statistics.
    """

    def __init__(self, seconds: float, least: int, most: int) -> None:
        self.seconds = seconds
        self.least = least
        self._entries: deque[tuple[float, Measurement]] = deque(maxlen=most)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, now_s: float, measurement: Measurement) -> None:
        """Takes a measurement and forgets what is too old."""
        self._entries.append((now_s, measurement))
        while len(self._entries) > self.least and self._entries[0][0] < now_s - self.seconds:
            self._entries.popleft()

    def clear(self) -> None:
        """Forgets everything: another setting begins."""
        self._entries.clear()

    def latency(self, percentile: float, since_s: float = -math.inf) -> float:
        """A percentile of the latency in milliseconds, of what came since a moment."""
        values = [entry.latency_ms for at_s, entry in self._entries if at_s >= since_s]
        if len(values) < self.least:
            values = [entry.latency_ms for _, entry in self._entries][-self.least :]
        return float(np.percentile(values, percentile))

    def observed(self, budget: Budget, since_s: float = -math.inf) -> float | None:
        """The budget's quantity over this window; None where nothing measures it."""
        if not self._entries or budget.is_floor:
            return None
        if budget.percentile is not None:
            return self.latency(budget.percentile, since_s)
        if budget.quantity == "temperature":
            return _last([entry.temperature_c for _, entry in self._entries])
        if budget.quantity == "memory":
            return _last([entry.memory_bytes for _, entry in self._entries])
        power = _mean([entry.power_w for _, entry in self._entries])
        if budget.quantity == "power" or power is None:
            return power
        return power * float(np.mean([entry.latency_ms for _, entry in self._entries]))  # W x ms = mJ

    def over(self, limit_ms: float) -> tuple[int, int]:
        """How many inferences took longer than a limit, and of how many."""
        return sum(entry.latency_ms > limit_ms for _, entry in self._entries), len(self._entries)


@functools.lru_cache(maxsize=4096)
def most_allowed(count: int, share: float) -> int:
    """How many of ``count`` inferences may exceed a limit before a true share of ``share`` becomes incredible.

    The largest k with P(X > k) >= ``SIGNIFICANCE`` for X binomial; independence is an approximation (slow moments
    cluster), which is why a violation must also last before the policy acts.
    """
    above = 1.0
    for slow in range(count + 1):
        above -= math.comb(count, slow) * share**slow * (1 - share) ** (count - slow)
        if above < SIGNIFICANCE:
            return slow
    return count


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _last(values: list[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)
