"""Energy counters of x86 processors (RAPL), through the kernel's powercap files."""

from __future__ import annotations

from pathlib import Path

from emqdeploy.measuring.energy.base import ENERGY_SOURCES, EnergySource, NotMeasured
from emqdeploy.measuring.sysfs import Tree

DOMAINS = ("package", "dram")
"""Domains that add up; ``core`` and ``uncore`` are parts of ``package``, ``psys`` contains it."""


class RaplSource:
    """The processor packages and, where they are counted, their memory.

    Args:
        tree: where to read.
        domains: directories of the counters to add.
    """

    name = "rapl"
    rule = "counters of the packages and their memory, added; the rest of the machine is not in them"
    counts = True
    period_s = 0.1

    def __init__(self, tree: Tree, domains: list[Path]) -> None:
        self._tree = tree
        self._ranges = [(domain, tree.number(domain / "max_energy_range_uj") or 0.0) for domain in domains]
        self.rail = " + ".join(tree.text(domain / "name") or domain.name for domain in domains)
        self.wraps_at = float("inf")
        self._turns = [0.0] * len(domains)
        self._last = [0.0] * len(domains)

    def read(self) -> float | None:
        """Returns joules since the first reading's zero; each counter's own turn-over is taken care of here."""
        total = 0.0
        for index, (domain, limit) in enumerate(self._ranges):
            value = self._tree.number(domain / "energy_uj")
            if value is None:
                return None
            if value < self._last[index]:
                self._turns[index] += limit
            self._last[index] = value
            total += value + self._turns[index]
        return total / 1e6


@ENERGY_SOURCES.register("rapl")
def open_rapl(tree: Tree) -> EnergySource:
    """Finds the counters of this machine."""
    zones = tree.glob("sys/class/powercap/intel-rapl:*")
    domains = [zone for zone in zones if (tree.text(zone / "name") or "").startswith(DOMAINS)]
    if not domains:
        raise NotMeasured("there are no energy counters of the processor in /sys/class/powercap")
    if tree.text(domains[0] / "energy_uj") is None:
        raise NotMeasured("the processor's energy counters may be read by root only; run as root or let the group read")
    return RaplSource(tree, domains)
