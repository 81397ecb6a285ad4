"""AdaQAT (arXiv 2404.16876): widths of weights and activations are learned while the network trains.

One child trains, at widths that are real numbers rounded up (`emqdeploy.training.relaxation`). Every few steps the loss
of a batch is compared, without gradients, with that at one bit less, and the widths move by what the bit saves and what
it costs. A width that keeps coming and going is frozen; then training goes on at the integers that were found.

Reconstructed, because only the abstract and summaries of the paper were at hand: the cost ``N_w N_a / 64``, the rates,
and how many flips freeze a width. Ours are ``--target-bits``, by which the weight of the cost follows the cost,
``--search-share``, after which widths stand still whatever they do, and ``--per-layer``. The paper's quantizers,
DoReFa's weights and one learned clip per tensor, are those of the recipe of this name; a tensor's clip stays when its
width moves.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.child import ACTIVATION_BITS, FLOAT, Child
from emqdeploy.options import option
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.watching import multiplications
from emqdeploy.training.latencies import MEASURE, read_savings
from emqdeploy.training.methods.base import METHODS, Setting
from emqdeploy.training.methods.learned import LEARNED, LearnedOptions, LearnsWidths, start_of
from emqdeploy.training.norms import undisturbed
from emqdeploy.training.relaxation import BIT_COSTS, LATENCY, Relaxation, Sizes
from emqdeploy.training.settings import CommonOptions, entry
from emqdeploy.training.steps import Indices, Step
from emqdeploy.training.targets import PANEL, TARGET_BITS, Targets, check_targets, read_targets

PATIENCE = 10
"""Times that a width turns back until it is frozen."""


@dataclass(frozen=True)
class AdaQATOptions(LearnedOptions):
    """What widths cost, and how they move."""

    name = "adaqat"
    target_bits: Targets = option((), TARGET_BITS, panel=PANEL, parse=read_targets)
    per_layer: bool = option(False, "Learn separate widths for every layer, not one pair for all.", panel=PANEL)
    cost_weight: float = option(0.15, "Weight of the widths' cost, in units of the loss.", panel=PANEL, least=0)
    bit_cost: str = option(
        "bitops",
        "What the widths' cost counts: bits, size, bitops, or latency, for which --latencies is needed.",
        panel=PANEL,
        parse=entry(BIT_COSTS),
    )
    latencies: str | None = option(
        None,
        "File with the JSON output of `emqdeploy mix` for the budget latency=100%, from the device that will run the"
        " network.",
        panel=PANEL,
        parse=os.path.abspath,
    )
    probe_every: int = option(5, "Steps between comparisons of widths.", panel=PANEL, least=1)
    bit_rate: float = option(
        500.0, "Bits that a width moves in the whole search at a constant gradient of 1.", panel=PANEL, least=0
    )

    def check(self, common: CommonOptions) -> None:
        """Raises for what the search cannot work with."""
        super().check(common)
        start = start_of(common)
        if not start.uniform:
            raise UsageError(f"--method adaqat begins with equal widths, not with child {start.name!r}; add --bits 8")
        if not common.quantizer.between:
            raise UsageError(
                f"--method adaqat visits widths that it has not trained, which quantizer {common.quantizer.name!r}"
                " cannot make; use --quantizer tanh or double-rounding"
            )
        least, most = common.quantizer.widths[0], start.bits
        if not least <= self.least_bits <= most:
            raise UsageError(
                f"--least-bits is {self.least_bits}; allowed: {least} to {most} with this quantizer and --bits"
            )
        if (self.bit_cost == LATENCY) != (self.latencies is not None):
            raise UsageError(
                f"--bit-cost latency and --latencies FILE belong together; leave both out, or measure with: {MEASURE}"
            )
        if len(self.target_bits) > 1:
            raise UsageError("--method adaqat learns one child; give --target-bits one width")
        least, most = max(self.least_bits, ACTIVATION_BITS[0]), max(most, start.activations.default)
        check_targets(self.target_bits, least, most, "from --least-bits to the widest of --bits")


@METHODS.register("adaqat")
class AdaQAT(LearnsWidths):
    """Trains one child and its widths."""

    Options = AdaQATOptions
    options: AdaQATOptions

    def __init__(self, options: AdaQATOptions, setting: Setting) -> None:
        super().__init__(options, setting)
        network, updates = setting.network, max(self.search_steps // options.probe_every, 1)
        sizes = sizes_of(network, setting.source.plain(np.arange(min(2, len(setting.source)))))
        if options.latencies is not None:
            sizes = sizes._replace(savings=read_savings(Path(options.latencies), network.switchable))
        self.relaxation = Relaxation(
            network.switchable,
            sizes,
            self.child,
            options.least_bits,
            options.per_layer,
            options.bit_cost,
            options.cost_weight,
            options.target_bits[0] if options.target_bits else None,
            options.bit_rate / updates,
            updates,
            PATIENCE,
        )

    def search(self, planned: Step) -> None:
        """Compares widths where it is time to, and gives the child those that came out."""
        if self.steps >= self.search_steps or not any(self.relaxation.open()):
            self.relaxation.settle()
            self.settled = True
        elif self.steps % self.options.probe_every == 0:
            self._compare(planned.indices)
        self._become(self.relaxation.child(LEARNED))

    def _compare(self, indices: Indices) -> None:
        """One update of the widths, by the losses of a batch."""
        source, network = self.setting.source, self.setting.network
        places = torch.from_numpy(indices).to(source.labels.device)
        images, labels = source.plain(indices), source.labels[places]

        def loss(child: Child) -> float:
            with network.at(child):
                return float(self.losses(child, network(images), labels, places).mean())

        with torch.no_grad(), undisturbed(network):
            beside = [loss(self.relaxation.child(LEARNED, group)) for group in self.relaxation.open()]
            self.relaxation.update(loss(self.child), beside)

    def _become(self, child: Child) -> None:
        """Gives the child other widths.

        Raises:
            EmqError: a layer has nothing left to say at its width.
        """
        network = self.setting.network
        if child == self.child:
            return
        for name in network.switchable:
            bits, layer = child.weights.of(name), network.layers[name]
            with torch.no_grad():
                values = layer.quantizer.value(layer.weight, bits)
            if not values.amin() < values.amax():
                raise EmqError(
                    f"the learned widths collapsed: at {bits} bits all weights of layer {name} are the same;"
                    f" {self.setting.run.path} holds the run up to its last save; start again with --least-bits"
                    f" {bits + 1}, or with --cost-weight below {self.options.cost_weight:g}"
                )
        network.redefine(self.child, child)

    def describe(self) -> str:
        """The widths, and what they cost."""
        return f"{_in_words(self.child)}; {self.relaxation.cost():.1%} of the {self.options.bit_cost} of 8 bits"

    def state(self) -> dict[str, Any]:
        """What the controller knows as well."""
        return {**super().state(), "relaxation": self.relaxation.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        super().restore(state)
        self.relaxation.restore(state["relaxation"])


def _in_words(child: Child) -> str:
    """The widths of a child for people."""
    if child.uniform:
        return f"{child.bits}-bit weights and {child.activations.default}-bit activations"
    layers = dict.fromkeys(name for widths in (child.weights, child.activations) for name, _ in widths.layers)
    return ", ".join(f"{name} W{child.weights.of(name)}A{child.activations.of(name)}" for name in layers)


def sizes_of(network: MultiBitNetwork, images: Tensor) -> Sizes:
    """Weights and multiplications of every switchable layer, counted on a batch of images ``(N, C, H, W)``."""
    layers = {name: network.layers[name] for name in network.switchable}
    with undisturbed(network), network.at(FLOAT):
        macs = multiplications(network, layers, images)
    counts = [layer.weight.numel() for layer in layers.values()]
    return Sizes(np.array(counts, float), np.array(list(macs.values()), float))
