"""Normalization statistics after training: estimated without gradients, cheap, and also for unseen children."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from emqdeploy.format.child import Child
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.norms import PrivateNorm
from emqdeploy.registry import Registry
from emqdeploy.training.batches import BatchRequest, ImageSource
from emqdeploy.training.steps import Epoch, interleaved

NormAdaptation = Callable[[MultiBitNetwork, list[Tensor], Sequence[Child]], None]
"""``(network, batches of normalised images, children to serve)``; changes the network's statistics."""

NORM_ADAPTATIONS: Registry[NormAdaptation] = Registry("norm adaptation")


@NORM_ADAPTATIONS.register("none")
def keep_statistics(network: MultiBitNetwork, batches: list[Tensor], children: Sequence[Child]) -> None:
    """Serves every child with the running statistics that training left under the network's norm policy.

    Training adds no missing mean to the bias, so its statistics hold that shift already and evaluation must not add it.
    """
    for layer in network.layers.values():
        layer.input_mean.zero_()


@NORM_ADAPTATIONS.register("shared")
def estimate_shared(network: MultiBitNetwork, batches: list[Tensor], children: Sequence[Child]) -> None:
    """Re-estimates the one set of statistics over the mixture of the trained children."""
    _estimate(network, batches, network.trained)
    for norm in network.norms.values():
        norm.forget()


@NORM_ADAPTATIONS.register("bits")
def estimate_per_child(network: MultiBitNetwork, batches: list[Tensor], children: Sequence[Child]) -> None:
    """Estimates statistics for each child, trained or not; gain and shift stay shared."""
    for child in children:
        _estimate(network, batches, (child,))
        for norm in network.norms.values():
            norm.keep(child, norm.running_mean, norm.running_var)
    # What is shared stays the mixture, for whoever fine-tunes from here.
    _estimate(network, batches, network.trained)


def _estimate(network: MultiBitNetwork, batches: list[Tensor], children: Sequence[Child]) -> None:
    """Averages batch statistics over all batches and ``children`` into the shared running statistics."""
    if network.norms:  # a transformer has none: LayerNorm keeps no statistics
        with plain_averages(network):
            run_all(network, batches, children)


@torch.no_grad()
def run_all(network: MultiBitNetwork, batches: list[Tensor], children: Sequence[Child]) -> None:
    """Runs every batch at every child."""
    for images in batches:
        for child in children:
            with network.at(child):
                network(images)


@contextmanager
def plain_averages(network: MultiBitNetwork) -> Iterator[None]:
    """Lets the norms gather plain averages into their shared statistics, which leaves those of the children alone."""
    norms = list(network.norms.values())
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, value in zip(norms, momentum, strict=True):
            norm.momentum = value
            norm.eval()


def calibrate(
    network: MultiBitNetwork,
    source: ImageSource,
    children: Sequence[Child],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> int:
    """Trains the private norms of children that training never visited, and nothing else (Any-Precision's stage).

    Args:
        network: with private norms.
        source: training images.
        children: those to calibrate.
        epochs: passes of each over the images.
        batch_size: images in a step.
        learning_rate: of plain momentum, annealed to zero.
        seed: fixes batches and augmentation.

    Returns:
        images that went forward and backward.
    """
    norms = [norm for norm in network.norms.values() if isinstance(norm, PrivateNorm)]
    learned = {id(parameter) for norm in norms for parameter in (norm.child_weight, norm.child_bias)}
    frozen = [p for p in network.parameters() if p.requires_grad and id(p) not in learned]
    for parameter in frozen:
        parameter.requires_grad_(False)
    for norm in norms:
        norm.start(children)
    passes = 0
    subsets = {child: np.arange(len(source)) for child in children}
    plans = [interleaved.plan(Epoch(subsets, batch_size, seed, epoch, epochs)) for epoch in range(epochs)]
    steps = [step for plan in plans for step in plan]
    optimizer = torch.optim.SGD([p for norm in norms for p in (norm.child_weight, norm.child_bias)], learning_rate, 0.9)
    requests = (BatchRequest(step.indices, hash((seed, -1, index)) & (2**63 - 1)) for index, step in enumerate(steps))
    network.train()
    for index, (step, images) in enumerate(zip(steps, source.stream(requests), strict=True)):
        network.use(step.children[0])
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - index / len(steps))
        optimizer.zero_grad(set_to_none=True)
        CLASSIFICATION.losses(network(images), source.labels[torch.from_numpy(step.indices)]).mean().backward()
        optimizer.step()
        passes += len(step.indices)
    for parameter in frozen:
        parameter.requires_grad_(True)
    return passes


def measure_input_means(network: MultiBitNetwork, batches: list[Tensor]) -> None:
    """Measures the mean of every layer's input, over the trained children.

    It turns what the integer grid could not hold of a channel's mean weight into bias; see `QuantLayer`.
    """
    network.eval()
    totals = {name: 0.0 for name in network.layers}
    handles = []
    for name, layer in network.layers.items():

        def add(module: torch.nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
            totals[name] += float(inputs[0].mean())

        handles.append(layer.register_forward_pre_hook(add))
    run_all(network, batches, network.trained)
    for handle in handles:
        handle.remove()
    for name, layer in network.layers.items():
        layer.input_mean.fill_(totals[name] / (len(batches) * len(network.trained)))
