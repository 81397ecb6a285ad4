"""DropBits (Lee et al., ICCV 2021, arXiv 2109.02100): bits are dropped at random in training, and some for good.

The grid of `b` bits holds that of `b - 1`; a bit that is dropped takes the outer points with it, which no weight can
then choose (`emqdeploy.quant.families.cpq`). Every layer has a gate per bit, a hard concrete number between 0 and 1
(Louizos et al., arXiv 1712.01312) that weighs the odds of these points. So weights learn to do with fewer points, and
with a cost of open gates, like L0, every layer learns a width. After a share of the run each layer keeps the bits that
are open more often than not, and training goes on at these widths.

Reconstructed, because only the abstract of the paper was at hand: that a bit takes the wider ones with it, what the
gates start from, and the two stages. A narrower grid keeps the learned step of the widest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emqdeploy.errors import UsageError
from emqdeploy.format.child import FLOAT, Child
from emqdeploy.options import option
from emqdeploy.quant.families.cpq import CpqOptions, CpqQuantizer
from emqdeploy.training.methods.base import METHODS, Setting
from emqdeploy.training.methods.learned import LEARNED, LearnedOptions, LearnsWidths, by_layer, start_of
from emqdeploy.training.settings import CommonOptions
from emqdeploy.training.steps import Step
from emqdeploy.training.targets import PANEL

TEMPERATURE, LOWEST, HIGHEST = 2 / 3, -0.1, 1.1
"""Of the hard concrete distribution: its temperature, and the ends that it is stretched to before it is cut."""

FIRST = 0.9
"""Share of the steps in which a gate is open at the beginning."""

MOVES = 1000.0
"""How far a constant gradient of 1 moves the log odds of a gate in the whole search, in units of the learning rate: a
longer search moves them in smaller steps, not further."""


@dataclass(frozen=True)
class DropBitsOptions(LearnedOptions):
    """What an open gate costs, and how long gates move."""

    name = "dropbits"
    drop_cost: float = option(
        0.05, "Cost of an open bit of a layer, in units of the loss; 0 only drops bits at random.", panel=PANEL,
        least=0
    )  # fmt: skip

    def check(self, common: CommonOptions) -> None:
        """Raises for what gates cannot work with."""
        super().check(common)
        if not isinstance(common.quantizer, CpqOptions):
            raise UsageError(
                "--method dropbits drops the points of cluster-promoting grids, which quantizer"
                f" {common.quantizer.name!r} has not; add --quantizer cpq"
            )
        if sum(child != FLOAT for child in common.trained) != 1:
            raise UsageError("--method dropbits learns the widths of one child; give --bits one width, for example 4")
        start = start_of(common)
        if not start.weights.uniform:
            raise UsageError(f"--method dropbits begins with equal widths, not with child {start.name!r}; add --bits 4")
        least = common.quantizer.widths[0]
        if not least <= self.least_bits < start.bits:
            raise UsageError(
                f"--least-bits is {self.least_bits}; allowed: {least} to {start.bits - 1}, below the width of --bits"
            )


class BitGate(nn.Module):
    """The gates of one layer: of each bit above the narrowest width.

    Args:
        least: that width.
        most: the widest.
        steps: of the search.

    Attributes:
        place: ``(most - least,)``, the log odds in units of ``unit``, whose square is the factor of the learning rate.
        settled: whether widths stand still, and no point is dropped any more.
    """

    def __init__(self, least: int, most: int, steps: int) -> None:
        super().__init__()
        self.least = least
        self.unit = math.sqrt(MOVES / max(steps, 1))
        start = (math.log(FIRST / (1 - FIRST)) - _OPEN) / self.unit
        self.place = nn.Parameter(torch.full((most - least,), start))
        self.settled = False

    @property
    def log_odds(self) -> Tensor:
        """Of every gate, ``(bits,)``."""
        return self.unit * self.place

    def forward(self, low: int, high: int) -> Tensor | None:
        """Draws a factor for every point of a grid, ``(high - low + 1,)``; None once widths stand still."""
        if self.settled:
            return None
        noise = torch.rand_like(self.place).clamp(1e-6, 1 - 1e-6)
        drawn = torch.sigmoid((noise.logit() + self.log_odds) / TEMPERATURE)
        gates = (drawn * (HIGHEST - LOWEST) + LOWEST).clamp(0, 1).cumprod(0)
        factors = torch.cat([gates.new_ones(1), gates])
        return factors[[max(bits_of(point) - self.least, 0) for point in range(low, high + 1)]]

    def open(self) -> Tensor:
        """How likely each gate is open, ``(bits,)``."""
        return torch.sigmoid(self.log_odds + _OPEN)

    def width(self) -> int:
        """Bits of the layer: those whose gates are open more often than not, up to the first that is not."""
        return self.least + int((self.open() > 0.5).long().cumprod(0).sum())


_OPEN = -TEMPERATURE * math.log(-LOWEST / HIGHEST)
"""What is added to the log odds of a gate for those of its being above 0 (arXiv 1712.01312, eq. 12)."""


def bits_of(point: int) -> int:
    """Bits of the narrowest grid ``-2^(b-1) .. 2^(b-1) - 1`` that has a point."""
    return max(point, -point - 1).bit_length() + 1


@METHODS.register("dropbits")
class DropBits(LearnsWidths):
    """Trains one child with gates, and at the widths that they leave."""

    Options = DropBitsOptions
    options: DropBitsOptions

    def __init__(self, options: DropBitsOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        network = setting.network
        self.gates: dict[str, BitGate] = {}
        for name in network.switchable:
            layer = network.layers[name]
            assert isinstance(layer.quantizer, CpqQuantizer)
            gate = BitGate(options.least_bits, self.child.bits, self.search_steps)
            layer.quantizer.gate = self.gates[name] = gate.to(layer.weight.device)

    def search(self, planned: Step) -> None:
        """Settles the widths where it is time to; until then the gates learn them."""
        if self.steps >= self.search_steps:
            self._settle()
            found = by_layer({name: gate.width() for name, gate in self.gates.items()})
            self.setting.network.redefine(self.child, Child(LEARNED, found, self.child.activations))

    def _settle(self) -> None:
        self.settled = True
        for gate in self.gates.values():
            gate.settled = True

    def cost(self, child: Child) -> Tensor | None:
        """The expected number of open gates, times what one costs."""
        if child == FLOAT or self.settled or not self.options.drop_cost:
            return None
        return self.options.drop_cost * torch.cat([gate.open() for gate in self.gates.values()]).sum()

    def describe(self) -> str:
        """The width of every layer."""
        return ", ".join(f"{name} {self.child.weights.of(name)} bits" for name in self.gates)

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        super().restore(state)
        if self.settled:
            self._settle()
