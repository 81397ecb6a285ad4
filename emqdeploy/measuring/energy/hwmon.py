"""Power rails of a Jetson: INA3221 (three channels of voltage and current) and INA238 (input power).

The files are those of the Linux kernel's drivers (Documentation/hwmon/ina3221.rst and ina238.rst): ``inN_input`` in
millivolts, ``currN_input`` in milliamperes, ``power1_input`` in microwatts. On JetPack 4 the chip is an iio device with
``rail_name_N`` and ``in_powerN_input`` in milliwatts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from emqdeploy.measuring.energy.base import ENERGY_SOURCES, EnergySource, NotMeasured
from emqdeploy.measuring.sysfs import Tree

PERIOD_S = 0.05
"""Reading goes over I2C, about a millisecond a channel; the chip itself averages over some tens of milliseconds."""

INPUTS = ("VIN", "VDD_IN", "POM_5V_IN")
"""Rails through which everything flows: the carrier's supply on Thor, the module's elsewhere. The first one that is
there is read alone, for the others are parts of it."""

FED_BY = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}
"""Rails that hang behind another measured one (AGX Orin: its sensor sees the same 5 V); adding both counts twice."""


class _Watts(Protocol):
    def __call__(self) -> float | None: ...


@dataclass(frozen=True)
class Rail:
    """One measured supply line and how to read its watts."""

    label: str
    watts: _Watts


class RailSource:
    """The power of a board: of its input where that is measured, else the sum of its separate rails.

    Args:
        rails: all that the board measures.
    """

    name = "hwmon"
    counts = False
    wraps_at = float("inf")
    period_s = PERIOD_S

    def __init__(self, rails: list[Rail]) -> None:
        labels = [rail.label for rail in rails]
        found = next((label for label in INPUTS if label in labels), None)
        if found is not None:
            self._rails = [rail for rail in rails if rail.label == found][:1]
            self.rule = f"{found} feeds everything and is read alone"
        else:
            self._rails = [rail for rail in rails if FED_BY.get(rail.label) not in labels]
            self.rule = "no rail measures the input: separate rails are added, losses before them are missing"
        self.rail = " + ".join(rail.label for rail in self._rails)
        if others := [rail.label for rail in rails if rail not in self._rails]:
            self.rule += f"; not added: {', '.join(others)}"

    def read(self) -> float | None:
        """Returns watts; None when a rail is silent, for a sum that lacks a part would lie."""
        total = 0.0
        for rail in self._rails:
            watts = rail.watts()
            if watts is None:
                return None
            total += watts
        return total


@ENERGY_SOURCES.register("hwmon")
def open_rails(tree: Tree) -> EnergySource:
    """Finds the rails of this board."""
    rails = [*_ina238(tree), *_ina3221(tree), *_iio(tree)]
    if not rails:
        raise NotMeasured("there is no INA3221 or INA238 power monitor in /sys/class/hwmon")
    source = RailSource(rails)
    if source.read() is None:
        raise NotMeasured(f"the power monitor of {source.rail} does not answer")
    return source


def _chips(tree: Tree, name: str) -> list[Path]:
    return [chip for chip in tree.glob("sys/class/hwmon/hwmon*") if tree.text(chip / "name") == name]


def _ina238(tree: Tree) -> list[Rail]:
    """The input monitor of Thor's carrier board; it has one channel and rarely a label."""
    return [
        Rail(tree.text(chip / "in1_label") or "VIN", partial(_scaled, tree, chip / "power1_input", 1e-6))
        for chip in _chips(tree, "ina238")
    ]


def _ina3221(tree: Tree) -> list[Rail]:
    rails = []
    for chip in _chips(tree, "ina3221"):
        for channel in (1, 2, 3):
            label = tree.text(chip / f"in{channel}_label")
            if label and label.upper() != "NC" and tree.text(chip / f"in{channel}_enable") != "0":
                files = (chip / f"in{channel}_input", chip / f"curr{channel}_input")
                rails.append(Rail(label, partial(_product, tree, *files)))
    return rails


def _iio(tree: Tree) -> list[Rail]:
    """The driver of JetPack 4, for Jetson Nano, TX2 and early Xavier systems."""
    rails = []
    for chip in tree.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*"):
        for channel in range(3):
            label = tree.text(chip / f"rail_name_{channel}")
            if label and label.upper() != "NC":
                rails.append(Rail(label, partial(_scaled, tree, chip / f"in_power{channel}_input", 1e-3)))
    return rails


def _scaled(tree: Tree, path: Path, factor: float) -> float | None:
    value = tree.number(path)
    return None if value is None else value * factor


def _product(tree: Tree, voltage: Path, current: Path) -> float | None:
    """Watts from millivolts and milliamperes."""
    millivolts, milliamperes = tree.number(voltage), tree.number(current)
    return None if millivolts is None or milliamperes is None else millivolts * milliamperes / 1e6
