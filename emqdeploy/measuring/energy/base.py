"""What an energy source offers, and how the energy of a stretch of work is taken from it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Protocol

from emqdeploy.measuring.rows import EnergyUse
from emqdeploy.measuring.sysfs import Tree
from emqdeploy.registry import Registry


class NotMeasured(Exception):
    """Energy cannot be measured; the message is the reason that a person reads."""


class EnergySource(Protocol):
    """A sensor of power, or a counter of energy."""

    name: str
    rail: str
    """What it measures, as the device calls it."""
    rule: str
    """How the figure comes about, in a few words."""
    counts: bool
    """True: `read` returns joules since some moment; False: watts at this moment."""
    wraps_at: float
    """Joules at which a counter begins again; infinity where it does not."""
    period_s: float
    """How often to read."""

    def read(self) -> float | None:
        """Returns joules or watts; None where the sensor does not answer."""


ENERGY_SOURCES: Registry[Callable[[Tree], EnergySource]] = Registry("energy source")
"""Sources by name; each is opened on a tree of files, or raises `NotMeasured` with the reason."""

PLAUSIBLE_W = 2000.0
"""More than this is nonsense for any machine that this program runs on; a mean of nothing or less is nonsense too."""

FROZEN = 20
"""A sensor whose every reading is the same, this many times in a row and busy or idle alike, is not measuring."""


@dataclass(frozen=True)
class Energy:
    """What a stretch of work took.

    Attributes:
        joules: over the whole stretch.
        seconds: how long it was.
        samples: readings that were used.
        trouble: what was wrong with some readings; empty when nothing was.
        distinct: how many different readings there were.
    """

    joules: float
    seconds: float
    samples: int
    trouble: str
    distinct: int

    @property
    def watts(self) -> float:
        """Mean power."""
        return self.joules / self.seconds


class Meter:
    """Reads a source from a thread of its own while the block runs; `energy` tells afterwards.

    Power is integrated over time by the trapezoid rule; a counter is read as differences, so that it may begin again.
    Its thread costs some processor time, which is why latency is never taken from the same stretch.

    Args:
        source: what to read.
    """

    def __init__(self, source: EnergySource) -> None:
        self.source = source
        self._readings: list[tuple[float, float]] = []
        self._missed = self._nonsense = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="energy", daemon=True)

    def __enter__(self) -> Meter:
        self._read()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._read()

    def energy(self) -> Energy:
        """Returns what the block took.

        Raises:
            NotMeasured: the sensor gave too little, or nonsense.
        """
        named = f"{self.source.name} ({self.source.rail})"
        readings = self._readings
        if len(readings) < 2 or readings[-1][0] <= readings[0][0]:
            raise NotMeasured(f"{named} {self._trouble() or 'gave a single reading'}")
        joules = 0.0
        for (start, before), (end, after) in pairwise(readings):
            if self.source.counts:
                joules += after - before if after >= before else after - before + self.source.wraps_at
            else:
                joules += (before + after) / 2 * (end - start)
        seconds = readings[-1][0] - readings[0][0]
        if not 0 < joules / seconds <= PLAUSIBLE_W:
            raise NotMeasured(f"{named} reports {joules / seconds:.4g} W, which cannot be")
        return Energy(joules, seconds, len(readings), self._trouble(), len({value for _, value in readings}))

    def _poll(self) -> None:
        while not self._done.wait(self.source.period_s):
            self._read()

    def _read(self) -> None:
        try:
            value = self.source.read()
        except Exception:  # whatever a driver's library raises: the sensor is gone, the bench goes on
            value = None
        now = time.perf_counter()
        if value is None:
            self._missed += 1
        elif not math.isfinite(value) or (not self.source.counts and abs(value) > PLAUSIBLE_W):
            self._nonsense += 1
        else:
            self._readings.append((now, value))

    def _trouble(self) -> str:
        total = len(self._readings) + self._missed + self._nonsense
        said = []
        if self._missed:
            said.append(f"did not answer {self._missed} of {total} times")
        if self._nonsense:
            said.append(f"reported nonsense {self._nonsense} of {total} times")
        return " and ".join(said)


def summary(source: EnergySource, idle: Energy, work: Energy, inferences: int) -> EnergyUse:
    """The ``energy`` of a row: per inference with idle power subtracted, and without.

    Raises:
        NotMeasured: the sensor says the same whether busy or idle.
    """
    if idle.distinct == work.distinct == 1 and idle.samples + work.samples >= FROZEN and idle.watts == work.watts:
        raise NotMeasured(f"{source.name} ({source.rail}) stands still at {work.watts:.3g} W, busy or idle")
    net = work.joules - idle.watts * work.seconds
    troubles = [trouble for trouble in (idle.trouble, work.trouble) if trouble]
    if net <= 0:
        troubles.append("saw no more power at work than idle: it is too coarse for this, or idle was not")
    return EnergyUse(
        source=source.name,
        rail=source.rail,
        rule=source.rule,
        energy_mj_per_inference=1e3 * net / inferences,
        gross_mj_per_inference=1e3 * work.joules / inferences,
        idle_power_w=idle.watts,
        power_w=work.watts,
        sample_period_ms=round(1e3 * work.seconds / (work.samples - 1), 2),
        samples=work.samples,
        seconds=work.seconds,
        inferences=inferences,
        disturbed=list(dict.fromkeys(troubles)),
    )
