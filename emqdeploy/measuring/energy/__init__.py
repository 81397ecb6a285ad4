"""Energy sources by name; a new one is one new module here."""

from emqdeploy.measuring.energy.base import ENERGY_SOURCES, Energy, EnergySource, Meter, NotMeasured, summary
from emqdeploy.registry import load_package

__all__ = ["ENERGY_SOURCES", "Energy", "EnergySource", "Meter", "NotMeasured", "summary"]

load_package(__name__)
