"""Hessian-aware stochastic bit-switching (HASB: arXiv 2502.01199, section 3.3): layers draw widths while training.

Every batch trains the highest, the lowest and a child between them, whose layers draw widths of their own: at a
probability that grows over the run a layer switches, and where the loss is curved more than on average, wide children
are drawn in proportion to their width, elsewhere all alike. Afterwards widths per layer are searched for mean widths.

Reconstructed: the paper takes the traces of a trained float network, once; runs here may begin with fresh weights, so
they are estimated anew before every epoch. The search as printed minimises the sum of trace times width, which would
give curved layers few bits; here it is HAWQ-V2's sum of trace times squared weight error (arXiv 1911.03852), solved
exactly.
The paper's normalizations are those of ``--norm transitional``, which the recipe of this name has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from emqdeploy.errors import UsageError
from emqdeploy.format.child import FLOAT, Child, check_unique, in_order
from emqdeploy.options import option
from emqdeploy.training.hessian import mean_traces
from emqdeploy.training.methods.base import METHODS, NetworkPlan, Setting
from emqdeploy.training.methods.planned import Planned, PlannedOptions, plan_option
from emqdeploy.training.settings import CommonOptions
from emqdeploy.training.steps import DRAWN, Step
from emqdeploy.training.targets import PANEL, TARGET_BITS, Targets, check_switchable, check_targets, read_targets

PROBES = 8
"""Random vectors by which the traces are estimated."""

FLATTEST = 0.01
"""The least curvature of a layer in the search, as a share of the largest."""

STREAM = 0x4A5B
"""The number of the random stream of drawn widths."""


def offered(children: Sequence[Child]) -> dict[int, Child]:
    """The uniform children that layers draw from, by weight width, ascending."""
    return {child.bits: child for child in in_order(children) if child.uniform and child != FLOAT}


@dataclass(frozen=True)
class HasbOptions(PlannedOptions):
    """The law of the draw, and what is searched."""

    name = "hasb"
    step_plan: str = plan_option("sandwich")
    target_bits: Targets = option((), TARGET_BITS, panel=PANEL, parse=read_targets)
    switch_rate: float = option(
        0.5, "Probability, at the end of the run, that a layer draws a width of its own.", panel=PANEL, least=0
    )

    def check(self, common: CommonOptions) -> None:
        """Raises where there is nothing between two children, or a target is outside of them."""
        super().check(common)
        widths = list(offered(common.trained))
        if self.switch_rate > 1:
            raise UsageError(f"--switch-rate is {self.switch_rate}; allowed: 0 to 1")
        if len(widths) < 3:
            raise UsageError(
                f"--method hasb needs three or more weight widths to draw from, and --bits has {len(widths)}; for"
                " example --bits 8,6,4,2"
            )
        check_targets(self.target_bits, widths[0], widths[-1], "the widths of --bits")
        check_unique([*common.trained, *stand_ins(self.target_bits)], "--bits with --target-bits")


def stand_ins(targets: Targets) -> tuple[Child, ...]:
    """Children that stand for what the search will find."""
    return tuple(Child(f"mean{target:g}", int(target)) for target in targets)


@METHODS.register("hasb")
class Hasb(Planned):
    """Draws widths per layer while training; searches them afterwards."""

    Options = HasbOptions
    options: HasbOptions

    def __init__(self, options: HasbOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        check_switchable(setting.network.switchable)
        self.offered = offered(setting.network.trained)
        self.traces: dict[str, float] = {}

    @classmethod
    def networks(cls, options: Any, common: CommonOptions) -> list[NetworkPlan]:
        """One network, which has the searched children too."""
        (plan,) = super().networks(options, common)
        return [NetworkPlan(plan.folder, plan.trained, (*plan.unseen, *stand_ins(options.target_bits)))]

    def begin_epoch(self, epoch: int) -> None:
        """Estimates the traces that the epoch draws by."""
        super().begin_epoch(epoch)
        if self.ready(epoch):
            self._estimate(epoch)

    def _estimate(self, epoch: int) -> int:
        """Estimates the traces; returns how many images went forward and backward for them."""
        common, source = self.setting.common, self.setting.source
        random = np.random.default_rng([common.seed, epoch, STREAM])
        indices = random.permutation(len(source))[: common.batch_size]
        labels = source.labels[torch.from_numpy(indices).to(source.labels.device)]
        seed = (common.seed, epoch)
        self.traces = mean_traces(self.setting.network, source.plain(indices), labels, PROBES, seed)
        return len(indices) * (1 + PROBES)

    def plan(self, epoch: int) -> Sequence[Step]:
        """The steps of the plan, with layers of their own width in every child but the highest and the lowest."""
        common, widths = self.setting.common, list(self.offered)
        between = [self.offered[bits] for bits in widths[1:-1]]
        random = np.random.default_rng([common.seed, epoch, STREAM, 1])
        share = self.options.switch_rate * (epoch + 1) / common.epochs
        return [
            Step(
                tuple(self._drawn(child, share, random) if child in between else child for child in step.children), part
            )
            for step, part in ((step, step.indices) for step in super().plan(epoch))
        ]

    def _drawn(self, base: Child, share: float, random: np.random.Generator) -> Child:
        """A child whose layers keep the widths of ``base`` or draw others."""
        widths = np.array(list(self.offered))
        mean = sum(self.traces.values()) / max(len(self.traces), 1)
        chosen = {}
        for layer in self.setting.network.switchable:
            odds = (
                widths / widths.sum() if self.traces.get(layer, mean) >= mean else np.full(len(widths), 1 / len(widths))
            )
            switches, drawn = random.random() < share, int(random.choice(widths, p=odds))
            chosen[layer] = self.offered[drawn] if switches else base
        return _mixed(DRAWN, chosen)

    def finish(self, console: Console) -> int:
        """Searches the widths of every target."""
        network, widths = self.setting.network, list(self.offered)
        if not self.options.target_bits:
            return 0
        passes = self._estimate(self.setting.common.epochs)
        costs = self._costs(widths)
        for target, stand_in in zip(self.options.target_bits, stand_ins(self.options.target_bits), strict=True):
            found = allocate(costs, widths, int(target * len(network.switchable) + 1e-6))
            chosen = {layer: self.offered[bits] for layer, bits in zip(network.switchable, found, strict=True)}
            network.redefine(stand_in, _mixed(stand_in.name, chosen))
            text = ", ".join(f"{layer} {bits}" for layer, bits in zip(network.switchable, found, strict=True))
            console.print(f"{stand_in.name}: {text}", highlight=False, soft_wrap=True)
        return passes

    @torch.no_grad()
    def _costs(self, widths: Sequence[int]) -> NDArray[np.float64]:
        """Mean trace times squared weight error, ``(layers, widths)``."""
        rows = []
        top = max(self.traces.values())
        for name in self.setting.network.switchable:
            layer = self.setting.network.layers[name]
            errors = [(layer.quantizer.value(layer.weight, bits) - layer.weight).square().sum() for bits in widths]
            # An estimate may be negative. Such a layer is flat, but its errors still tell its widths apart.
            trace = max(self.traces[name], FLATTEST * top) if top > 0 else 1.0
            rows.append([trace * float(error) for error in errors])
        return np.array(rows)

    def state(self) -> dict[str, Any]:
        """The traces as well."""
        return {**super().state(), "traces": dict(self.traces)}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        super().restore(state)
        self.traces = state["traces"]


def _mixed(name: str, layers: dict[str, Child]) -> Child:
    """A child with each layer as it is at another one."""
    weights = {layer: child.weights.of(layer) for layer, child in layers.items()}
    return Child(name, weights, {layer: child.activations.of(layer) for layer, child in layers.items()})


def allocate(costs: NDArray[np.float64], widths: Sequence[int], budget: int) -> list[int]:
    """The widths of least total cost among those whose sum is at most a budget, exactly (dynamic programming).

    Args:
        costs: of every layer at every width, ``(layers, widths)``.
        widths: ascending; the narrowest at every layer is within the budget.
        budget: total bits.
    """
    best = np.zeros(budget + 1)
    choices = []
    for row in costs:
        options = np.full((len(widths), budget + 1), np.inf)
        for place, bits in enumerate(widths):
            if bits <= budget:
                options[place, bits:] = best[: budget + 1 - bits] + row[place]
        choices.append(options.argmin(0))
        best = options.min(0)
    found: list[int] = []
    left = budget
    for choice in reversed(choices):
        found.append(widths[choice[left]])
        left -= found[-1]
    return found[::-1]
