"""Energy sources by name; importing this package registers ours."""

from emqdeploy.measuring.energy import battery, hwmon, nvml, rapl
from emqdeploy.measuring.energy.base import ENERGY_SOURCES, Energy, EnergySource, Meter, NotMeasured, summary

__all__ = [
    "ENERGY_SOURCES",
    "Energy",
    "EnergySource",
    "Meter",
    "NotMeasured",
    "battery",
    "hwmon",
    "nvml",
    "rapl",
    "summary",
]
