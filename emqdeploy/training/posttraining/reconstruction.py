"""Weights learned again from unlabelled images, so that few bits lose less: block after block, all children at once.

Every layer, and then every block (BRECQ, arXiv 2102.05426), shall give what it gives in the float model, at every
child, reading what the blocks before it give at that child. All children learn one set of weights, through the
quantizer that will deploy them, so their codes stay nested. What no child gains from stays where the float weights are,
and so do wide children; the float network itself is not changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emqdeploy.format.child import FLOAT, MASTER_BITS, Child
from emqdeploy.progress import Report
from emqdeploy.quant.blocks import Block, blocks
from emqdeploy.quant.families.base import QuantizedWeight, WeightQuantizer
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.watching import hooked
from emqdeploy.registry import Registry

LEARNING_RATE = 0.02
"""Of Adam, in units of a channel's largest weight; annealed to zero."""

PULL = 4.0
"""Towards the float weights, as decoupled decay: at most 1 / PULL of a channel's largest weight is ever gone.

Without it 8 bits end as another network of about the same accuracy.
"""

STEPS_AT_ONE_CHILD = 5
"""Before the next child has its turn: changing over costs as much as a step of a small block."""

MOST_IMAGES, MOST_VALUES = 32, 2**21
"""Of a step: images, and values of the largest tensor at its border, so that a step at 224 pixels takes no longer."""

EXACT_VALUES = 2**23
"""Values per child that are kept between blocks in float32; more are kept in half precision."""

ENOUGH_VALUES = 2**24
"""Of what one layer reads or gives: at a high resolution few images hold all that there is to learn from."""

MOST_LAYERS = 8
"""Of a block whose layers learn one after the other, before all of them do together."""

WIDE = 4
"""Rounding loses next to nothing from here on; uniform widths between this and the widest have nothing to learn."""

Reconstruction = Callable[[MultiBitNetwork, list[Tensor], int, Report], None]
"""``(network, batches of normalised images, steps, report)``; changes what the layers' quantizers quantize."""

RECONSTRUCTIONS: Registry[Reconstruction] = Registry("reconstruction")


@RECONSTRUCTIONS.register("none")
def keep_rounding(network: MultiBitNetwork, batches: list[Tensor], steps: int, report: Report) -> None:
    """Rounds the weights as they are."""


@RECONSTRUCTIONS.register("auto")
def where_it_pays(network: MultiBitNetwork, batches: list[Tensor], steps: int, report: Report) -> None:
    """Learns where a child has layers of fewer than four bits; above, rounding loses next to nothing."""
    if any(child.weights.of(name) < WIDE for child in network.known for name in network.switchable):
        by_blocks(network, batches, steps, report)


@RECONSTRUCTIONS.register("blocks")
def by_blocks(network: MultiBitNetwork, batches: list[Tensor], steps: int, report: Report) -> None:
    """Learns block after block."""
    children = _telling(network.known)
    for norm in network.norms.values():
        norm.forget()  # what a block learns is held to the float network's statistics by `_matched`
    pieces = blocks(network)
    at_once, started = len(batches[0]), time.monotonic()
    given = dict.fromkeys((FLOAT, *children), torch.cat(batches))
    for number, block in enumerate(pieces, 1):
        # The first block is as a rule the stem, which stays at 8 bits and learns nothing: it tells no time.
        left = (time.monotonic() - started) / max(number - 1, 1) * (len(pieces) - number + 1)
        about = f", about {left:.0f} s left" if number > 2 else ""
        report(f"block {number} of {len(pieces)}: {', '.join(block.layers) or 'the end'}{about}")
        layers = {name: network.layers[name] for name in block.layers}
        learned = {name: layer for name, layer in layers.items() if not layer.pinned}
        with network.at(FLOAT), _noted(layers, reads=False) as answers:
            wanted = _run(block, given[FLOAT], at_once)
        moments = {name: _moments(layer, answers[name]) for name, layer in layers.items()}
        quantizers = {name: LearnedWeights(layer.quantizer, layer.weight) for name, layer in learned.items()}
        for name, layer in learned.items():
            layer.quantizer = quantizers[name]
        with _matched(network, layers, moments):
            for name, layer in learned.items() if 1 < len(learned) <= MOST_LAYERS else ():
                inputs = {}
                for child in children:
                    with network.at(child), _noted({name: layer}, reads=True) as found:
                        _run(block, given[child], at_once)
                    inputs[child] = torch.cat(found[name])
                deviation = moments[name].deviation
                scale = 1 / deviation.clamp(min=max(float(deviation.max()) / 1000, 1e-12))
                _learn(network, layer, [layer], inputs, torch.cat(answers[name]), scale, steps)
            answers.clear()
            if learned:
                inputs = {child: given[child] for child in children}
                scale = 1 / wanted.float().std().clamp(min=1e-12)
                _learn(network, block.module, list(learned.values()), inputs, wanted, scale, steps)
            for name, layer in learned.items():
                quantizers[name].settle(layer.weight, WIDE - 1)
            for child in children:
                with network.at(child):
                    given[child] = _run(block, given[child], at_once)
        given[FLOAT] = wanted


def _telling(children: Sequence[Child]) -> list[Child]:
    """The children that learn: the others lie between two of them that hardly differ."""
    top = max(child.bits for child in children)
    return [child for child in children if not (child.uniform and WIDE < child.bits < top)]


class LearnedWeights(WeightQuantizer):
    """Another quantizer, shown weights of its own in the place of the layer's, which start as those.

    Args:
        quantizer: the one that quantizes.
        weight: of the layer, ``(C, ...)``.

    Attributes:
        latent: what is learned, in units of each channel's largest weight at the start; within -1 and 1.
    """

    peak: Tensor

    def __init__(self, quantizer: WeightQuantizer, weight: Tensor) -> None:
        super().__init__(quantizer.limit)
        self.kind = quantizer.kind
        self.quantizer = quantizer
        column = (-1,) + (1,) * (weight.dim() - 1)
        peak = weight.detach().reshape(len(weight), -1).abs().amax(1).clamp(min=1e-30).reshape(column)
        self.register_buffer("peak", peak, persistent=False)
        self.latent = nn.Parameter(weight.detach() / peak, requires_grad=False)

    @torch.no_grad()
    def settle(self, weight: Tensor, bits: int) -> None:
        """Goes back towards the layer's weights as far as codes of so many bits stay, for the sake of wider ones."""

        def codes(latent: Tensor) -> Tensor:
            return (self.quantizer(latent * self.peak, bits).codes / 2.0 ** (MASTER_BITS - bits)).floor()

        learned, start = self.latent.clone(), weight / self.peak
        wanted = codes(learned)
        near, far = torch.zeros_like(learned), torch.ones_like(learned)
        for _ in range(MASTER_BITS):
            middle = (near + far) / 2
            same = codes(torch.lerp(learned, start, middle)) == wanted
            near, far = torch.where(same, middle, near), torch.where(same, far, middle)
        self.latent.copy_(torch.where(codes(start) == wanted, start, torch.lerp(learned, start, near)))

    def forward(self, weight: Tensor, bits: int) -> QuantizedWeight:
        """Quantizes the weights that were learned."""
        return self.quantizer(self.latent * self.peak, bits)


@dataclass(frozen=True)
class _Moments:
    """Mean and standard deviation of every output channel of a layer in the float network, shaped like its output."""

    mean: Tensor
    deviation: Tensor


def _axes(output: Tensor, layer: nn.Module) -> tuple[int, ...]:
    """All but that of the channels: ``(N, C, H, W)`` of a convolution, else ``(..., C)``."""
    return (0, 2, 3) if isinstance(layer, nn.Conv2d) else tuple(range(output.dim() - 1))


def _moments(layer: nn.Module, outputs: list[Tensor]) -> _Moments:
    axes = _axes(outputs[0], layer)
    mean, square = torch.stack(
        [torch.stack([part.mean(axes, True), part.square().mean(axes, True)]).double() for part in outputs]
    ).mean(0)
    return _Moments(mean.float(), (square - mean.square()).clamp(min=0).sqrt().float())


@contextmanager
def _noted(layers: Mapping[str, nn.Module], reads: bool) -> Iterator[dict[str, list[Tensor]]]:
    """Keeps what layers read, or give, by name and in parts, until it is enough."""
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if sum(part.numel() for part in found[name]) < ENOUGH_VALUES:
                found[name].append(inputs[0] if reads else output)

        return hook

    with hooked({layer: note(name) for name, layer in layers.items()}):
        yield found


@contextmanager
def _matched(
    network: MultiBitNetwork, layers: Mapping[str, nn.Module], moments: Mapping[str, _Moments]
) -> Iterator[None]:
    """Gives layers the moments that they have in the float network: statistics and bias correction will do so later.

    Without a normalization behind a layer nothing will scale it, and only its mean is set.
    """

    def match(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        wanted, scaled = moments[name], name in network.norm_of

        def hook(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
            axes = _axes(output, layer)
            centred = output - output.mean(axes, True)
            if scaled:
                centred = centred * (wanted.deviation / (centred.square().mean(axes, True) + 1e-12).sqrt())
            return centred + wanted.mean

        return hook

    with hooked({layer: match(name) for name, layer in layers.items()}):
        yield


@torch.no_grad()
def _run(block: Block, inputs: Tensor, at_once: int) -> Tensor:
    """What a block gives at the child in use; in half precision where float32 would fill the memory."""
    outputs: list[Tensor] = []
    for part in inputs.split(at_once):
        output = block.module(part.float())
        outputs.append(output if output[0].numel() * len(inputs) <= EXACT_VALUES else output.half())
    return torch.cat(outputs)


def _learn(
    network: MultiBitNetwork,
    run: nn.Module,
    layers: Sequence[Any],
    inputs: Mapping[Child, Tensor],
    targets: Tensor,
    scale: Tensor,
    steps: int,
) -> None:
    """Takes steps on the weights of layers towards the least squared error of what a module gives, children in turn.

    Args:
        network: of the module.
        run: a layer or a block.
        layers: with `LearnedWeights`.
        inputs: what the module reads at each child, image by image.
        targets: what it shall give.
        scale: what errors are multiplied with.
        steps: how many.
    """
    weights = [layer.quantizer.latent.requires_grad_() for layer in layers]
    children = list(inputs)
    images = min(len(targets), len(inputs[children[0]]))
    largest = max(targets[0].numel(), inputs[children[0]][0].numel())
    batch = max(2, min(MOST_IMAGES, images, MOST_VALUES // largest))
    optimizer = torch.optim.Adam(weights, LEARNING_RATE)
    floats = [layer.weight.detach() / layer.quantizer.peak for layer in layers]
    random = torch.Generator().manual_seed(0)
    before = network.child
    for step in range(steps):
        child = children[step // STEPS_AT_ONE_CHILD % len(children)]
        if step % STEPS_AT_ONE_CHILD == 0:
            network.use(child)
        chosen = torch.randint(images, (batch,), generator=random)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        error = (run(inputs[child][chosen].float()) - targets[chosen].float()) * scale
        error.square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            for weight, float_ in zip(weights, floats, strict=True):
                weight.lerp_(float_, PULL * optimizer.param_groups[0]["lr"])
                weight.clamp_(-1, 1)  # one channel beyond would take levels from all the others
    for weight in weights:
        weight.requires_grad_(False)
    network.use(before)
