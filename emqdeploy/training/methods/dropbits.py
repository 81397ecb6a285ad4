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
from rich.console import Console
from torch import Tensor, nn

from emqdeploy.errors import UsageError
from emqdeploy.format.child import FLOAT, Child, in_order
from emqdeploy.options import option
from emqdeploy.quant.families.cpq import CpqOptions, CpqQuantizer
from emqdeploy.training.methods.base import METHODS, NetworkPlan, Setting
from emqdeploy.training.methods.planned import Planned, PlannedOptions
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

LEARNED = "learned"
"""Name of the child while its widths are learned, and where they differ between layers for good."""


def start_of(common: CommonOptions) -> Child:
    """The child whose bits are dropped: the widest of a run."""
    return in_order(child for child in common.trained if child != FLOAT)[-1]


@dataclass(frozen=True)
class DropBitsOptions(PlannedOptions):
    """What an open gate costs, and how long gates move."""

    name = "dropbits"
    drop_cost: float = option(
        0.05, "What an open bit of a layer costs, in units of the loss; 0 only drops bits at random.", panel=PANEL,
        least=0
    )  # fmt: skip
    least_bits: int = option(2, "The narrowest width to learn.", panel=PANEL, least=1)
    search_share: float = option(0.5, "Share of the run after which all widths do.", panel=PANEL, least=0)

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
        if not self.search_share < 1:
            raise UsageError(f"--search-share is {self.search_share}; allowed: 0 up to, not including, 1")
        if self.distill != "none":
            raise UsageError(
                f"--distill {self.distill} needs several children, --method dropbits trains one; leave it out"
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
class DropBits(Planned):
    """Trains one child with gates, and at the widths that they leave."""

    Options = DropBitsOptions
    options: DropBitsOptions
    competes = False

    def __init__(self, options: DropBitsOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        network, common = setting.network, setting.common
        children_steps = (1 - options.float_first) * sum(map(self.length, range(common.epochs)))
        self.search_steps = round(options.search_share * children_steps)
        self.steps = 0
        self.gates: dict[str, BitGate] = {}
        for name in network.switchable:
            layer = network.layers[name]
            assert isinstance(layer.quantizer, CpqQuantizer)
            gate = BitGate(options.least_bits, self.child.bits, self.search_steps)
            layer.quantizer.gate = self.gates[name] = gate.to(layer.weight.device)

    @classmethod
    def networks(cls, options: Any, common: CommonOptions) -> list[NetworkPlan]:
        """One network of one child, which begins with all bits."""
        start = start_of(common)
        return [NetworkPlan("", (Child(LEARNED, start.weights, start.activations),), ())]

    @property
    def child(self) -> Child:
        """The one that trains, as it is now."""
        return self.setting.network.quantized[0]

    @property
    def settled(self) -> bool:
        """Whether widths stand still."""
        return all(gate.settled for gate in self.gates.values())

    def next_step(self, planned: Step) -> Step:
        """Settles the widths where it is time to, and trains the child at those that it has."""
        planned = super().next_step(planned)
        if planned.children == (FLOAT,):
            return planned
        if self.steps >= self.search_steps and not self.settled:
            self._settle(Child(LEARNED, self._widths(), self.child.activations))
        self.steps += 1
        return planned._replace(children=(self.child,))

    def _widths(self) -> dict[str, int]:
        return {name: gate.width() for name, gate in self.gates.items()}

    def _settle(self, child: Child) -> None:
        for gate in self.gates.values():
            gate.settled = True
        self.setting.network.redefine(self.child, child)

    def cost(self, child: Child) -> Tensor | None:
        """The expected number of open gates, times what one costs."""
        if child == FLOAT or self.settled or not self.options.drop_cost:
            return None
        return self.options.drop_cost * torch.cat([gate.open() for gate in self.gates.values()]).sum()

    def phase(self, epoch: int) -> str:
        """``search`` while bits are dropped."""
        return super().phase(epoch) if self.settled or super().phase(epoch) == "float" else "search"

    def ready(self, epoch: int) -> bool:
        """Not before the child is what it will be."""
        return self.settled and super().ready(epoch)

    def finish(self, console: Console) -> int:
        """Names the child by its width where all layers have the same."""
        found, widths = self.child, {name: self.child.weights.of(name) for name in self.gates}
        words = ", ".join(f"{name} {bits} bits" for name, bits in widths.items())
        activations = found.activations
        if len(set(widths.values())) == 1 and activations.uniform:
            self.setting.network.redefine(found, Child.of(next(iter(widths.values())), activations.default))
        console.print(f"learned {words}", highlight=False, soft_wrap=True)
        return 0

    def state(self) -> dict[str, Any]:
        """The widths as well."""
        return {**super().state(), "steps": self.steps, "settled": self.settled, "child": self.child.to_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        super().restore(state)
        self.steps = state["steps"]
        if state["settled"]:
            self._settle(Child.from_dict(state["child"]))
