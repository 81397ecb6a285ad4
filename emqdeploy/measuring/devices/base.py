"""Devices by name: whether this machine is one, what it says about itself, and what suits it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.measuring.sysfs import Tree, system_tree
from emqdeploy.registry import Registry, load_package


class Device:
    """A kind of machine; a subclass says more about it.

    Args:
        tree: where its files are read.
    """

    name = "cpu"
    rank = 0
    """``auto`` takes the device of the highest rank that this machine is."""
    runtimes: tuple[str, ...] = ("native", "onnxruntime")
    """Adapters that suit it, best first; the next one is taken where one is missing or cannot compute a network."""
    energy_sources: tuple[str, ...] = ("rapl", "battery")
    """Energy sources to try, best first."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._coolers = [
            path
            for path in tree.glob("sys/class/thermal/cooling_device*")
            if _THROTTLES.search(tree.text(path / "type") or "")
        ]
        self._heat_counters = tree.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count")
        self._heat_events = self._count_heat()

    def why_not(self) -> str | None:
        """Returns why this machine is not such a device, in a sentence that says what to do; None if it is one."""
        return None

    def describe(self) -> dict[str, Any]:
        """Returns what does not change during a run."""
        return {"name": self.name}

    def readings(self) -> dict[str, Any]:
        """Returns clocks, temperatures and throttling of this moment; cheap enough to call four times a second."""
        return {
            "frequency_mhz": self._frequency(),
            "temperature_c": self._temperatures(),
            "throttling": self._throttling(),
        }

    def state(self) -> dict[str, Any]:
        """Returns everything worth knowing before and after a run."""
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        governor = self.tree.text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        return self.readings() | {"load_average": load, "governor": governor}

    def lock_clocks(self) -> Callable[[], None]:
        """Fixes the clocks; returns what releases them."""
        raise UsageError(
            f"--lock-clocks works on a Jetson only, not on --device {self.name};"
            " leave it out, the result records how the clocks moved"
        )

    def _frequency(self) -> float | None:
        """Mean clock of the cores in MHz."""
        values = [self.tree.number(path) for path in self.tree.glob(_CORE_CLOCKS)]
        clocks = [value / 1000 for value in values if value is not None]
        return round(sum(clocks) / len(clocks), 1) if clocks else None

    def _temperatures(self) -> dict[str, float]:
        """Degrees Celsius by thermal zone; zones that are switched off or report nonsense are left out."""
        found = {}
        for zone in self.tree.glob("sys/class/thermal/thermal_zone*"):
            kind, value = self.tree.text(zone / "type"), self.tree.number(zone / "temp")
            if kind and value is not None and -40_000 < value < 150_000 and value != 0:
                found[kind] = round(value / 1000, 1)
        return found

    def _throttling(self) -> list[str]:
        """Sentences about what slows the machine down since the last call."""
        found = []
        for path in self._coolers:
            if (self.tree.number(path / "cur_state") or 0) > 0:
                found.append(f"clocks are held down against heat ({self.tree.text(path / 'type')})")
        events, self._heat_events = self._heat_events, self._count_heat()
        if self._heat_events > events:
            found.append("the processor throttled: heat (its throttle counters rose)")
        return found

    def _count_heat(self) -> float:
        return sum(self.tree.number(path) or 0 for path in self._heat_counters)


_THROTTLES = re.compile(r"^Processor$|cpufreq|devfreq|throttle|-alert$")
"""Types of cooling devices that cool by slowing down; a fan does not."""

_CORE_CLOCKS = "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"

DEVICES: Registry[type[Device]] = Registry("device")
"""Kinds of machine by name."""

DEVICES.register("cpu")(Device)


def find_device(name: str, tree: Tree | None = None) -> Device:
    """Returns the device that was asked for.

    Args:
        name: ``auto`` or a registered one.
        tree: where to read; None takes this machine.

    Raises:
        UsageError: no device has this name.
        EmqError: this machine is no such device.
    """
    load_package("emqdeploy.measuring.devices")
    files = tree or system_tree()
    if name == "auto":
        ranked = sorted(DEVICES.values(), key=lambda kind: -kind.rank)
        return next(device for device in (kind(files) for kind in ranked) if device.why_not() is None)
    if name not in DEVICES:
        raise UsageError(f"unknown device {name!r}; known: auto, {', '.join(DEVICES)}")
    device = DEVICES[name](files)
    reason = device.why_not()
    if reason is not None:
        raise EmqError(reason)
    return device
