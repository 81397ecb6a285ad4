"""From sensitivities to a list of mixes, each a step narrower than the one before (arXiv 2302.05397, phase 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from emqdeploy.registry import Registry
from emqdeploy.training.mixing.sensitivity import Losses


@dataclass(frozen=True)
class Costs:
    """What a network costs by the widths of its layers, in one unit.

    Attributes:
        rest: of all that does not depend on them.
        layers: by layer and width.
    """

    rest: float
    layers: Mapping[str, Mapping[int, float]]

    def of(self, widths: Mapping[str, int]) -> float:
        """The cost of a mix; ``widths`` has every layer that has a cost of its own."""
        return self.rest + sum(by_width[widths[name]] for name, by_width in self.layers.items())

    def saved(self, layer: str, wide: int, narrow: int) -> float:
        """What one layer saves."""
        return self.layers[layer][wide] - self.layers[layer][narrow]


@dataclass(frozen=True)
class Step:
    """One layer gets fewer bits.

    Attributes:
        layer: its name.
        bits: that it has from here on.
    """

    layer: str
    bits: int


Descent = Callable[[Losses, Costs, Mapping[str, int]], list[Step]]
"""``(losses, costs, widths at the start)``; steps that end with every layer at its narrowest width."""

DESCENTS: Registry[Descent] = Registry("descent")


@DESCENTS.register("sorted")
def by_loss(losses: Losses, costs: Costs, start: Mapping[str, int]) -> list[Step]:
    """The paper's: all pairs of layer and width in the order of what they lose, each taken when its turn comes.

    Ties go to the wider width, then to the pair that saves more, then to the layer that runs first. A pair that would
    widen its layer again is passed over.
    """
    layers = list(losses)

    def rank(step: Step) -> tuple[float, int, float, int]:
        saved = costs.saved(step.layer, start[step.layer], step.bits)
        return losses[step.layer][step.bits], -step.bits, -saved, layers.index(step.layer)

    pairs = (Step(layer, bits) for layer in layers for bits in losses[layer] if bits < start[layer])
    widths, steps = dict(start), []
    for step in sorted(pairs, key=rank):
        if step.bits < widths[step.layer]:
            widths[step.layer] = step.bits
            steps.append(step)
    return steps


@DESCENTS.register("gain")
def by_gain(losses: Losses, costs: Costs, start: Mapping[str, int]) -> list[Step]:
    """Next comes what loses least for what it saves: ``(loss(b') - loss(b)) / (cost(b) - cost(b'))``.

    This is the lower convex hull of every layer's losses over its costs, and so, as far as losses of layers add up,
    every mix on the list is the best one of its cost. What saves nothing comes last.
    """
    widths, steps = dict(start), []

    def price(step: Step) -> tuple[float, float]:
        before = widths[step.layer]
        lost = losses[step.layer][step.bits] - losses[step.layer][before]
        saved = costs.saved(step.layer, before, step.bits)
        return (lost / saved if saved > 0 else float("inf"), lost)

    while pairs := [Step(layer, bits) for layer in losses for bits in losses[layer] if bits < widths[layer]]:
        step = min(pairs, key=price)
        widths[step.layer] = step.bits
        steps.append(step)
    return steps


def mixes(steps: list[Step], start: Mapping[str, int]) -> list[dict[str, int]]:
    """The widths of all layers before the first step and after every one."""
    found = [dict(start)]
    for step in steps:
        found.append(found[-1] | {step.layer: step.bits})
    return found
