"""Bit operations of a child."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from emqdeploy.training.mixing.descent import Costs
from emqdeploy.workflows.mixing.costs.base import COSTS, CostModel, Subject

_UNITS = {"M": 1e6, "G": 1e9, "T": 1e12}


@COSTS.register("bitops")
class BitOpsCost(CostModel):
    """Multiplications of one image, times weight bits, times activation bits (arXiv 2302.05397)."""

    units: ClassVar[Mapping[str, float]] = _UNITS

    def costs(self, subject: Subject, widths: Mapping[str, tuple[int, ...]]) -> Costs:
        """Bit operations."""
        network, start = subject.checkpoint.network, subject.start
        each = {
            name: float(subject.macs[name] * network.sites[layer.site].bits[start])
            for name, layer in network.layers.items()
        }
        rest = sum(count * network.grid_bits(name, start) for name, count in each.items() if name not in widths)
        return Costs(rest, {name: {bits: each[name] * bits for bits in offer} for name, offer in widths.items()})

    def shown(self, value: float) -> str:
        """In millions and more."""
        unit = next((name for name, factor in reversed(_UNITS.items()) if value >= factor), "M")
        return f"{value / _UNITS[unit]:.3g} {unit}"
