"""The front of mixes, and the one on it that meets a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from emqdeploy.errors import UsageError
from emqdeploy.progress import Report
from emqdeploy.training.mixing.descent import DESCENTS, Costs, mixes
from emqdeploy.training.mixing.sensitivity import SENSITIVITIES, Losses, Trial, measure, unrounded
from emqdeploy.training.mixing.stored import lender
from emqdeploy.workflows.mixing.budgets import Budget
from emqdeploy.workflows.mixing.costs.base import COSTS
from emqdeploy.workflows.mixing.opening import Opened
from emqdeploy.workflows.mixing.settings import MixSettings


@dataclass(frozen=True)
class Front:
    """Mixes from the widest to the narrowest, as one kind of cost orders them.

    Attributes:
        kind: a name in `COSTS`.
        costs: by layer and width.
        mixes: bits by layer, each mix a step narrower than the one before.
    """

    kind: str
    costs: Costs
    mixes: list[dict[str, int]]

    @property
    def whole(self) -> float:
        """What the widest child costs."""
        return self.costs.of(self.mixes[0])

    @property
    def least(self) -> float:
        """What the cheapest mix costs."""
        return min(map(self.costs.of, self.mixes))

    def at_bits(self, bits: int) -> float:
        """What all layers at a width cost, those that are kept wider aside.

        Raises:
            UsageError: a layer has not that width.
        """
        without = next((name for name, widths in self.costs.layers.items() if bits not in widths), None)
        if without is not None:
            known = ", ".join(map(str, self.costs.layers[without]))
            raise UsageError(f"a budget of {bits}bits needs that width in the file; layer {without!r} has {known}")
        return self.costs.of(dict.fromkeys(self.costs.layers, bits))

    def limit(self, budget: Budget) -> float:
        """The most that a child may cost.

        Raises:
            UsageError: no mix costs as little; the sentence says by how much.
        """
        limit, shown, least = budget.limit(self.whole, self.at_bits), budget.model.shown, self.least
        if least > limit:
            raise UsageError(
                f"nothing meets {budget}, which is {shown(limit)}: the narrowest mix takes {shown(least)}"
                f" ({100 * least / self.whole:.1f} % of the widest child), {shown(least - limit)} more; raise the"
                " budget, or quantize or train with narrower --bits"
            )
        return limit

    def meet(self, budget: Budget) -> dict[str, int]:
        """The first mix that costs no more than a budget."""
        limit = self.limit(budget)
        return next(mix for mix in self.mixes if self.costs.of(mix) <= limit)

    def spread(self, count: int) -> list[dict[str, int]]:
        """Some of the mixes between the first and the last, evenly over their costs."""
        costs = np.array([self.costs.of(mix) for mix in self.mixes])
        wanted = np.linspace(costs[0], costs[-1], count + 1)[1:]
        places = sorted({int(np.abs(costs - cost).argmin()) for cost in wanted} - {0})
        return [self.mixes[place] for place in places]


def measure_losses(opened: Opened, settings: MixSettings, report: Report) -> tuple[Losses, float]:
    """Sensitivity of every layer that may be mixed, and the mean square of the widest child's logits."""
    network, start = opened.checkpoint.network, opened.start
    weights = {
        name: {bits: _weights(opened, name, bits) for bits in offer if bits < start.weights.of(name)}
        for name, offer in opened.offer.items()
    }
    convolutions = {name for name, layer in network.layers.items() if layer.codes.ndim == 4}
    trial = Trial(unrounded(opened.widest), set(opened.structure.norm_of), convolutions)
    kind = SENSITIVITIES[settings.sensitivity]()
    labels = opened.labels if kind.labelled else None
    losses, signal = measure(trial, weights, opened.batches, labels, kind, report)
    return {name: {**found, start.weights.of(name): 0.0} for name, found in losses.items()}, signal


def _weights(opened: Opened, name: str, bits: int) -> Tensor:
    """Weights of a layer at a width, as some stored child has them."""
    network = opened.checkpoint.network
    layer, child = network.layers[name], lender(network, name, bits, opened.start)
    scale = layer.grids[child].scale.reshape((-1,) + (1,) * (layer.codes.ndim - 1))
    return torch.from_numpy(layer.integers(child) * scale)


def ends(opened: Opened, kinds: Sequence[str]) -> dict[str, Front]:
    """For every kind of cost the front of two mixes, the widest and the narrowest; no image is needed for it."""
    narrowest = {name: offer[0] for name, offer in opened.offer.items()}
    return {
        kind: Front(kind, COSTS[kind]().costs(opened.subject, opened.offer), [opened.widths, narrowest])
        for kind in kinds
    }


def descend(front: Front, losses: Losses, descent: str) -> Front:
    """The whole front between two ends."""
    start = front.mixes[0]
    return replace(front, mixes=mixes(DESCENTS[descent](losses, front.costs, start), start))
