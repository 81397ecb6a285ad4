"""How much the answers suffer where one layer alone has fewer bits (arXiv 2302.05397, phase 1).

The paper switches every other quantizer off. Here the other layers are as at the widest child, which is all that a file
holds, and no tensor is rounded: else the least change of a layer would round all that follows another way, which hides
what it changes itself. The layer is matched as it will be in a mixed child (see `moments`). What lies before a layer
does not change with its width, so it is computed once for all widths.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from emqdeploy.errors import EmqError
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.graph.fidelity import decibels
from emqdeploy.progress import Report, paced, silent
from emqdeploy.quant.deploy import DeployedSite
from emqdeploy.quant.watching import hooked
from emqdeploy.registry import Registry
from emqdeploy.training.mixing.moments import Moments, gain_and_shift, moved

NOISE_FLOOR = 1e-4
"""Added to the noise, as AIMET does: among layers that change next to nothing, rounding does not decide the order."""

Losses = dict[str, dict[int, float]]
"""By layer and width, what is lost where that layer alone has that width; 0 at the width of the widest child."""


class Sensitivity(ABC):
    """What counts as a loss of an image.

    Attributes:
        what: what `shown` shows, with its unit.
        labelled: whether it needs the classes of the images.
        fewest: images that it takes to tell layers apart.
    """

    what: ClassVar[str]
    labelled: ClassVar[bool]
    fewest: ClassVar[int]

    @abstractmethod
    def losses(self, wanted: Tensor, found: Tensor, labels: Tensor | None) -> Tensor:
        """Loss of each image, ``(N,)``.

        Args:
            wanted: logits of the widest child, ``(N, classes)``.
            found: logits with one layer at fewer bits.
            labels: classes, ``(N,)``.
        """

    @abstractmethod
    def shown(self, loss: float, signal: float) -> str:
        """A mean loss for people; ``signal`` is the mean square of the widest child's logits."""


SENSITIVITIES: Registry[type[Sensitivity]] = Registry("sensitivity")


@SENSITIVITIES.register("sqnr")
class Noise(Sensitivity):
    """Mean squared error of the logits; people read ``10 log10(E[y^2] / (E[(y - y')^2] + 1e-4))``, in decibels."""

    what, labelled, fewest = "signal to noise, dB", False, 64

    def losses(self, wanted: Tensor, found: Tensor, labels: Tensor | None) -> Tensor:
        """See the class."""
        return (found.double() - wanted.double()).square().mean(1)

    def shown(self, loss: float, signal: float) -> str:
        """Decibels."""
        return f"{decibels(signal, loss + NOISE_FLOOR):.1f}"


@SENSITIVITIES.register("accuracy")
class Accuracy(Sensitivity):
    """Decisions that become wrong, less those that become right."""

    what, labelled, fewest = "points of accuracy lost", True, 256

    def losses(self, wanted: Tensor, found: Tensor, labels: Tensor | None) -> Tensor:
        """See the class."""
        assert labels is not None
        right, still = (CLASSIFICATION.decide(logits.numpy()) == labels.numpy() for logits in (wanted, found))
        return torch.from_numpy(right.astype(float) - still.astype(float))

    def shown(self, loss: float, signal: float) -> str:
        """Points of accuracy."""
        return f"{100 * loss:+.1f}"


class Clip(nn.Module):
    """What a tensor's quantizer does besides rounding: it cuts off."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        """Cuts."""
        return x.clamp(self.low, self.high)


def unrounded(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a deployed network that rounds no tensor."""
    found = copy.deepcopy(module)
    for name, site in module.named_modules():
        if isinstance(site, DeployedSite):
            parent, _, leaf = name.rpartition(".")
            setattr(found.get_submodule(parent), leaf, Clip(site.low * site.scale, site.high * site.scale))
    return found


class Trial:
    """The widest child, one of whose layers can have other weights.

    Args:
        module: that child, see `unrounded`.
        scaled: layers whose deviation is matched, see `moments.Matching`.
        convolutions: names of those among the layers.
    """

    def __init__(self, module: fx.GraphModule, scaled: set[str], convolutions: set[str]) -> None:
        self.module, self._scaled, self._convolutions = module, scaled, convolutions
        self._nodes = {str(node.target): node for node in module.graph.nodes if node.op == "call_module"}
        self._values: dict[fx.Node, Any] = {}

    def start(self, images: Tensor) -> Tensor:
        """Computes a batch at the widest child and remembers every tensor; returns the logits."""
        run = fx.Interpreter(self.module, garbage_collect_values=False)
        logits: Tensor = run.run(images)
        self._values = run.env
        return logits

    def logits(self, layer: str, weight: Tensor) -> Tensor:
        """Computes that batch again with other weights in one layer, from there on."""
        module, is_convolution = self.module.get_submodule(layer), layer in self._convolutions
        changed = _behind(self.module.graph, layer)
        kept = {node: value for node, value in self._values.items() if node not in changed}
        calls = iter([node for node in self.module.graph.nodes if node.target == layer])

        def match(_: Any, inputs: Any, output: Tensor) -> Tensor:
            wanted, found = (Moments.of(one, is_convolution) for one in (self._values[next(calls)], output))
            return moved(output, *gain_and_shift(found, wanted, layer in self._scaled), is_convolution)

        own, module.weight = module.weight, weight
        try:
            with hooked({module: match}):
                logits: Tensor = fx.Interpreter(self.module).run(initial_env=kept)
        finally:
            module.weight = own
        return logits


def _behind(graph: fx.Graph, layer: str) -> set[fx.Node]:
    """The calls of a layer, and all that depends on them."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.target == layer or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


@torch.inference_mode()
def measure(
    trial: Trial,
    weights: Mapping[str, Mapping[int, Tensor]],
    batches: Sequence[Tensor],
    labels: Sequence[Tensor] | None,
    sensitivity: Sensitivity,
    report: Report = silent,
) -> tuple[Losses, float]:
    """Measures every layer at every width.

    Args:
        trial: the widest child.
        weights: by layer and width, those to try.
        batches: normalised images ``(B, C, H, W)``.
        labels: their classes, a tensor for each batch.
        sensitivity: what counts.
        report: receives progress.

    Returns:
        The mean losses, and the mean square of the widest child's logits.

    Raises:
        EmqError: a layer makes the answers infinite, or no number.
    """
    losses: Losses = {layer: dict.fromkeys(by_width, 0.0) for layer, by_width in weights.items()}
    images, signal = sum(map(len, batches)), 0.0
    steps = [(place, layer) for place in range(len(batches)) for layer in weights]
    before, wanted = -1, torch.empty(0)
    for place, layer in paced(steps, "layers", report):
        if place != before:
            wanted, before = trial.start(batches[place]), place
            signal += float(wanted.double().square().mean(1).sum()) / images
        for bits, weight in weights[layer].items():
            found = trial.logits(layer, weight)
            if not bool(torch.isfinite(found).all()):
                raise EmqError(f"layer {layer!r} at {bits} bits makes the answers infinite; leave it out with --keep")
            of_batch = None if labels is None else labels[place]
            losses[layer][bits] += float(sensitivity.losses(wanted, found, of_batch).sum()) / images
    return losses, signal
