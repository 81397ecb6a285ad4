"""Weights learned again from unlabelled images, so that few bits lose less: block after block, all children at once.

Every layer, and then every block (BRECQ, arXiv 2102.05426), shall give what it gives in the float model, at every
child of few bits, reading what the blocks before it give at that child; at last all layers together learn the float
model's answers. These children learn one set of weights, through the quantizer that will deploy them, so their codes
stay nested. For wider ones, which lose less to rounding, weights go back to the float ones as far as codes of few bits
allow. The float network itself is not changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from emqdeploy.format.child import FLOAT, Child
from emqdeploy.progress import Report
from emqdeploy.quant.blocks import Block, blocks
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.watching import hooked
from emqdeploy.registry import Registry
from emqdeploy.training.augment import BatchFunction
from emqdeploy.training.posttraining.answering import learn_answers, small
from emqdeploy.training.posttraining.learned import LearnedWeights, descent, matched, moments_of

LEARNING_RATE = 0.02
"""Of Adam, in units of a channel's largest weight; annealed to zero."""

FINE_RATE, COARSE_RATE = 0.002, 0.006
"""Of all layers together: from weights that blocks have learned already, which a faster rate spoils, and from float."""

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
"""Rounding loses little from here on, so these widths take no part."""

Reconstruction = Callable[[MultiBitNetwork, list[Tensor], int, BatchFunction, Report], None]
"""``(network, batches of normalised images, steps, how to vary them, report)``; changes what quantizers quantize."""

RECONSTRUCTIONS: Registry[Reconstruction] = Registry("reconstruction")


@RECONSTRUCTIONS.register("none")
def keep_rounding(
    network: MultiBitNetwork, batches: list[Tensor], steps: int, vary: BatchFunction, report: Report
) -> None:
    """Rounds the weights as they are."""


@RECONSTRUCTIONS.register("blocks")
def by_blocks(network: MultiBitNetwork, batches: list[Tensor], steps: int, vary: BatchFunction, report: Report) -> None:
    """Learns block after block and then, where images are small, all together what children of few bits answer."""
    children = _few_bits(network)
    if not children:
        return
    for norm in network.norms.values():
        norm.forget()  # what a block learns is held to the float network's statistics by `matched`
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
        moments = {name: moments_of(layer, answers[name]) for name, layer in layers.items()}
        for layer in learned.values():
            layer.quantizer = LearnedWeights(layer.quantizer, layer.weight)
        with matched(network, layers, moments):
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
            for child in children:
                with network.at(child):
                    given[child] = _run(block, given[child], at_once)
        given[FLOAT] = wanted
    given.clear()
    if small(batches[0]):
        learn_answers(network, torch.cat(batches), children, steps, FINE_RATE, vary, report)
    _settle(network)


@RECONSTRUCTIONS.register("together")
def together(network: MultiBitNetwork, batches: list[Tensor], steps: int, vary: BatchFunction, report: Report) -> None:
    """Learns all together what children of few bits answer, from the float weights on."""
    children = _few_bits(network)
    if not children:
        return
    for norm in network.norms.values():
        norm.forget()
    for layer in network.layers.values():
        if not layer.pinned:
            layer.quantizer = LearnedWeights(layer.quantizer, layer.weight)
    learn_answers(network, torch.cat(batches), children, steps, COARSE_RATE, vary, report)
    _settle(network)


def _settle(network: MultiBitNetwork) -> None:
    for layer in network.layers.values():
        if isinstance(layer.quantizer, LearnedWeights):
            layer.quantizer.settle(layer.weight, WIDE - 1)


def _few_bits(network: MultiBitNetwork) -> list[Child]:
    """The children that rounding costs something."""
    return [child for child in network.known if any(child.weights.of(name) < WIDE for name in network.switchable)]


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
    children = list(inputs)
    images = min(len(targets), len(inputs[children[0]]))
    largest = max(targets[0].numel(), inputs[children[0]][0].numel())
    batch = max(2, min(MOST_IMAGES, images, MOST_VALUES // largest))
    random = torch.Generator().manual_seed(0)
    before = network.child
    for step in descent(layers, LEARNING_RATE, steps):
        child = children[step // STEPS_AT_ONE_CHILD % len(children)]
        if step % STEPS_AT_ONE_CHILD == 0:
            network.use(child)
        chosen = torch.randint(images, (batch,), generator=random)
        error = (run(inputs[child][chosen].float()) - targets[chosen].float()) * scale
        error.square().mean().backward()
    network.use(before)
