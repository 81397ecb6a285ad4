"""Bytes of a child."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from emqdeploy.report.units import size
from emqdeploy.training.mixing.descent import Costs
from emqdeploy.workflows.inspection import TABLE_BITS_PER_CHANNEL
from emqdeploy.workflows.mixing.costs.base import COSTS, CostModel, Subject


@COSTS.register("size")
class SizeCost(CostModel):
    """Codes packed to the bit, the numbers of every channel, and what stays in float: what a child needs for itself.

    The graph and the header, which all children share, do not count. In the file one set of bit-planes serves all
    children, so a mix adds its numbers per channel to it and nothing else.
    """

    units: ClassVar[Mapping[str, float]] = {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}

    def costs(self, subject: Subject, widths: Mapping[str, tuple[int, ...]]) -> Costs:
        """Bytes."""
        network = subject.checkpoint.network
        weights = {name: layer.codes.size for name, layer in network.layers.items()}
        rest = sum(array.nbytes for array in network.floats.values())
        rest += sum(len(layer.codes) for layer in network.layers.values()) * TABLE_BITS_PER_CHANNEL // 8
        fixed = [name for name in weights if name not in widths]
        rest += sum(_packed(weights[name], network.grid_bits(name, subject.start)) for name in fixed)
        layers = {name: {bits: _packed(weights[name], bits) for bits in offer} for name, offer in widths.items()}
        return Costs(rest, layers)

    def shown(self, value: float) -> str:
        """Bytes for people."""
        return size(round(value))


def _packed(weights: int, bits: int) -> int:
    return -(-weights * bits // 8)
