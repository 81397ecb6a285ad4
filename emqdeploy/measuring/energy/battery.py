"""The battery of a laptop: what flows out of it while it discharges."""

from __future__ import annotations

from pathlib import Path

from emqdeploy.measuring.energy.base import ENERGY_SOURCES, EnergySource, NotMeasured
from emqdeploy.measuring.sysfs import Tree


class BatterySource:
    """Power drawn from a battery, as its own electronics report it.

    Args:
        tree: where to read.
        battery: its directory.
    """

    name = "battery"
    rule = "power of the whole machine, screen and all; most batteries report a new value every second or slower"
    counts = False
    wraps_at = float("inf")
    period_s = 0.25

    def __init__(self, tree: Tree, battery: Path) -> None:
        self._tree, self._battery = tree, battery
        self.rail = battery.name

    def read(self) -> float | None:
        """Returns watts; None once the machine is plugged in, for then the battery knows nothing."""
        if self._tree.text(self._battery / "status") != "Discharging":
            return None
        power = self._tree.number(self._battery / "power_now")
        if power is not None:
            return power / 1e6
        volts, amperes = (self._tree.number(self._battery / name) for name in ("voltage_now", "current_now"))
        return None if volts is None or amperes is None else abs(volts * amperes) / 1e12


@ENERGY_SOURCES.register("battery")
def open_battery(tree: Tree) -> EnergySource:
    """Finds a battery that discharges."""
    supplies = tree.glob("sys/class/power_supply/*")
    batteries = [supply for supply in supplies if tree.text(supply / "type") == "Battery"]
    batteries = [one for one in batteries if tree.text(one / "scope") != "Device"]  # a mouse's battery tells nothing
    if not batteries:
        raise NotMeasured("there is no battery")
    source = BatterySource(tree, batteries[0])
    if source.read() is None:
        raise NotMeasured(f"battery {source.rail} is not discharging; unplug the machine to measure with it")
    return source
