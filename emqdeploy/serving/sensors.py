"""Power, temperature and memory of this moment, for a policy that watches them."""

from __future__ import annotations

import time
from collections.abc import Mapping

from emqdeploy.measuring.devices import Device
from emqdeploy.measuring.energy import EnergySource, NotMeasured
from emqdeploy.measuring.power import find_source
from emqdeploy.runtimes.machine import resident_bytes


class Sensors:
    """Reads what this device can tell.

    Args:
        device: whose thermal zones and energy sources to read.
        wanted: ``auto``, ``none`` or the name of an energy source.

    Attributes:
        source: of the power, or None; ``missing`` then says why.
        joules: since the first reading, integrated where the source tells power.
    """

    def __init__(self, device: Device, wanted: str = "auto") -> None:
        self._device = device
        self.source: EnergySource | None = None
        self.missing = ""
        self.joules = 0.0
        self.seconds = 0.0
        self._before: tuple[float, float] | None = None
        try:
            self.source = find_source(wanted, device.energy_sources, device.tree)
        except NotMeasured as reason:
            self.missing = str(reason)

    def __call__(self) -> Mapping[str, float | None]:
        """Power since the last call in watts, the hottest zone, the memory of this process."""
        zones = self._device.readings().get("temperature_c") or {}
        return {
            "power_w": self._power(),
            "temperature_c": max(zones.values(), default=None),
            "memory_bytes": resident_bytes(),
        }

    def _power(self) -> float | None:
        if self.source is None:
            return None
        now, value, before = time.perf_counter(), self.source.read(), self._before
        if value is None:
            self._before = None
            return None
        self._before = (now, value)
        if before is None or now <= before[0]:
            return None if self.source.counts else value
        seconds = now - before[0]
        if self.source.counts:
            spent = value - before[1] + (self.source.wraps_at if value < before[1] else 0.0)
        else:
            spent = (before[1] + value) / 2 * seconds
        self.joules += spent
        self.seconds += seconds
        return spent / seconds
