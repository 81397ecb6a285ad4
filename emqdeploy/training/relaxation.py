"""Bit-widths as real numbers that follow a gradient: the controller of AdaQAT (arXiv 2404.16876), without a network.

A group of layers has a real width ``N`` and computes with ``ceil(N)`` bits. Its gradient is the finite difference of
the task loss between that width and the next narrower one, plus the weight of the cost times that of the cost. What the
last bit saves of the loss holds the width up, what it costs pulls it down; a width that comes and goes is frozen at the
larger of its two values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emqdeploy.format.child import ACTIVATION_BITS, MASTER_BITS, Child, Widths
from emqdeploy.registry import Registry

Bits = NDArray[np.float64]

WEIGHTS, ACTIVATIONS = "weights", "activations"

LATENCY = "latency"

LARGEST_LOSS = 1.0
"""A difference of the loss counts up to this: one that is not finite says as much."""

LARGEST_MOVE = 0.5
"""Bits that a width moves at once: one batch is not much to go by."""

PRESSURE = 100.0
"""By how much the weight of the cost can change in half of the search, towards a target."""

PER_BIT = 4.0
"""A bit more or less changes the squared error of rounding by this factor."""

MEMORY = 0.8
"""Of the mean of what a group's last bit has saved."""


class Sizes(NamedTuple):
    """Weights and multiplications of every layer, ``(layers,)``; the share of all time that its widths 0..8 save."""

    counts: NDArray[np.float64]
    macs: NDArray[np.float64]
    savings: NDArray[np.float64] = np.zeros((0, MASTER_BITS + 1))


BitCost = Callable[[Sizes, Bits, Bits], float]
"""``(sizes, weight widths, activation widths, each (layers,)) -> cost``, 1 for 8 bits everywhere."""

BIT_COSTS: Registry[BitCost] = Registry("bit cost")


@BIT_COSTS.register("bits")
def mean_bits(sizes: Sizes, weights: Bits, activations: Bits) -> float:
    """Mean of all widths, whatever a layer's size."""
    return float(weights.mean() + activations.mean()) / (2 * MASTER_BITS)


@BIT_COSTS.register("size")
def stored_size(sizes: Sizes, weights: Bits, activations: Bits) -> float:
    """Bytes of the weights."""
    return float(sizes.counts @ weights / sizes.counts.sum()) / MASTER_BITS


@BIT_COSTS.register("bitops")
def bit_operations(sizes: Sizes, weights: Bits, activations: Bits) -> float:
    """Multiplications times weight width times activation width (the paper's)."""
    return float(sizes.macs @ (weights * activations) / sizes.macs.sum()) / MASTER_BITS**2


@BIT_COSTS.register(LATENCY)
def time_taken(sizes: Sizes, weights: Bits, activations: Bits) -> float:
    """Time in the native kernels, where it was measured; activations do not count, for their widths were not varied."""
    widths = range(MASTER_BITS + 1)
    return 1 - sum(float(np.interp(bits, widths, row)) for bits, row in zip(weights, sizes.savings, strict=True))


@dataclass
class Group:
    """Layers that share a width.

    Attributes:
        kind: `WEIGHTS` or `ACTIVATIONS`.
        places: of its layers, among all.
        width: ``N``.
        least: the narrowest.
        most: the widest.
        moved: the last change of the integer width: -1, 1, or 0 where there was none.
        flips: changes that undid the one before.
        frozen: whether it stands still.
        gain: what the last bit saves of the loss, a moving average.
    """

    kind: str
    places: tuple[int, ...]
    width: float
    least: int
    most: int
    moved: int = 0
    flips: int = 0
    frozen: bool = False
    gain: float = 0.0

    @property
    def bits(self) -> int:
        """The integer width."""
        return math.ceil(self.width - 1e-9)

    @property
    def neighbour(self) -> int:
        """The width that is compared with: one narrower, or wider where there is none."""
        return self.bits - 1 if self.bits > self.least else self.bits + 1

    def move(self, to: float, patience: int) -> None:
        """Sets the width; freezes it at the larger value when its integer has changed its mind too often."""
        before = self.bits
        self.width = min(max(to, float(self.least)), float(self.most))
        step = self.bits - before
        if step == 0:
            return
        self.flips += self.moved * step < 0
        self.moved = 1 if step > 0 else -1
        if self.flips >= patience:
            self.width, self.frozen = float(max(before, self.bits)), True


class Relaxation:
    """All groups of a network.

    Args:
        layers: names.
        sizes: of the layers.
        start: the child to begin with; its widths are the widest.
        least: the narrowest width.
        per_layer: a group per layer; else one for all weights, and one for all activations.
        cost: by name, see `BIT_COSTS`.
        weight: of the cost.
        target: mean width that the cost may have, or None.
        rate: bits that a gradient of 1 moves a width in one update.
        updates: in all; towards a target, the weight of the cost changes the faster the fewer there are.
        patience: flips until a group is frozen.
    """

    def __init__(
        self,
        layers: Sequence[str],
        sizes: Sizes,
        start: Child,
        least: int,
        per_layer: bool,
        cost: str,
        weight: float,
        target: float | None,
        rate: float,
        updates: int,
        patience: int,
    ) -> None:
        self.layers = tuple(layers)
        self.sizes = sizes
        self.cost_of = BIT_COSTS[cost]
        self.weight = weight
        count = len(self.layers)
        self.limit = None if target is None else self.cost_of(sizes, np.full(count, target), np.full(count, target))
        self.rate = rate * (count if per_layer else 1)
        self.pressure = min(PRESSURE ** (2 / updates), 2.0)
        self.patience = patience
        parts = [(place,) for place in range(count)] if per_layer else [tuple(range(count))]
        bounds = {WEIGHTS: (start.weights, least), ACTIVATIONS: (start.activations, max(least, ACTIVATION_BITS[0]))}
        self.groups = [
            Group(kind, part, float(widths.default), min(narrow, widths.default), widths.default)
            for kind, (widths, narrow) in bounds.items()
            for part in parts
        ]

    # --- what the widths are ---

    def child(self, name: str, changed: Group | None = None) -> Child:
        """The child at the integer widths, one group perhaps at its neighbour."""
        return Child(name, *(self._named(kind, changed) for kind in (WEIGHTS, ACTIVATIONS)))

    def _named(self, kind: str, changed: Group | None) -> Widths | dict[str, int]:
        """Widths by layer, or one for all where they are equal."""
        bits = self._array(kind, lambda group: group.neighbour if group is changed else group.bits)
        if len(set(bits)) == 1:
            return Widths(int(bits[0]))
        return dict(zip(self.layers, map(int, bits), strict=True))

    def _array(self, kind: str, of: Callable[[Group], float]) -> Bits:
        bits = np.zeros(len(self.layers))
        for group in self.groups:
            if group.kind == kind:
                bits[list(group.places)] = of(group)
        return bits

    def cost(self, of: Callable[[Group], float] = lambda group: group.bits) -> float:
        """The cost at the integer widths, or at others."""
        return self.cost_of(self.sizes, self._array(WEIGHTS, of), self._array(ACTIVATIONS, of))

    def _cost_with(self, group: Group, bits: int) -> float:
        """The cost with one group at another width."""
        return self.cost(lambda one: bits if one is group else one.bits)

    def open(self) -> Iterator[Group]:
        """The groups that still learn."""
        return (group for group in self.groups if not group.frozen and group.most > group.least)

    # --- how they move ---

    def update(self, loss: float, neighbours: Sequence[float]) -> None:
        """One update of the open groups.

        Args:
            loss: of a batch at the integer widths.
            neighbours: loss of the same batch with each open group at its neighbour, in order.
        """
        moves = []
        for group, other in zip(self.open(), neighbours, strict=True):
            up = 1 if group.neighbour < group.bits else -1
            saved = up * (other - loss)
            saved = min(max(saved, -LARGEST_LOSS), LARGEST_LOSS) if math.isfinite(saved) else LARGEST_LOSS
            beside = self._cost_with(group, group.neighbour)
            group.gain = saved if group.gain == 0 else MEMORY * group.gain + (1 - MEMORY) * saved
            step = self.rate * (self.weight * up * (self.cost() - beside) - saved)
            moves.append((group, group.width - min(max(step, -LARGEST_MOVE), LARGEST_MOVE)))
        for group, width in moves:
            group.move(width, self.patience)
        if self.limit is not None:
            above = self.cost(lambda group: group.width) > self.limit
            self.weight *= self.pressure if above else 1 / self.pressure

    def settle(self) -> None:
        """Freezes all widths, where there is a target at the best that meets it.

        The bits that saved least of the loss for what they cost are given up first; then whatever fits comes back.
        """
        for group in self.groups:
            group.width, group.frozen = float(group.bits), True
        if self.limit is None:
            return
        while self.cost() > self.limit + 1e-9 and self._step(-1):
            pass
        while self._step(1):
            pass

    def _step(self, up: int) -> bool:
        """Changes the group by one bit of which the loss has least to lose, or most to gain, for the cost."""
        now, worth = self.cost(), []
        for place, group in enumerate(self.groups):
            bits = group.bits + up
            if not group.least <= bits <= group.most:
                continue
            cost = self._cost_with(group, bits)
            gain = max(group.gain, 0.0) / (PER_BIT if up > 0 else 1)
            if cost != now and (up < 0 or cost <= (self.limit or 0) + 1e-9):
                worth.append((-up * gain / abs(cost - now), place))
        if not worth:
            return False
        group = self.groups[min(worth)[1]]
        group.width += up
        group.gain *= PER_BIT**-up
        return True

    # --- to continue ---

    def state(self) -> dict[str, Any]:
        """Plain values."""
        return {"weight": self.weight, "groups": [asdict(group) for group in self.groups]}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.weight = state["weight"]
        self.groups = [Group(**{**values, "places": tuple(values["places"])}) for values in state["groups"]]
