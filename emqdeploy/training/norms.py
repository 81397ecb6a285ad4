"""Normalization statistics after training: estimated without gradients, cheap, and also for unseen children."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from emqdeploy.format.child import Child
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.registry import Registry

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
    _estimate(network, batches, network.quantized)
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
    _estimate(network, batches, network.quantized)


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


@contextmanager
def undisturbed(network: MultiBitNetwork) -> Iterator[None]:
    """Passes inside normalize with batch statistics, as in training, and leave the running ones as they were."""
    before = [(buffer, buffer.clone()) for norm in network.norms.values() for buffer in norm.buffers()]
    training = network.training
    network.train()
    try:
        yield
    finally:
        network.train(training)
        for buffer, values in before:
            buffer.copy_(values)


def measure_input_means(network: MultiBitNetwork, batches: list[Tensor], children: Sequence[Child]) -> None:
    """Measures the mean of every layer's input, over some children.

    It turns what the integer grid could not hold of a channel's mean weight into bias; see `QuantLayer`.
    """
    network.eval()
    totals = {name: 0.0 for name in network.layers}
    handles = []
    for name, layer in network.layers.items():

        def add(module: torch.nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
            totals[name] += float(inputs[0].mean())

        handles.append(layer.register_forward_pre_hook(add))
    run_all(network, batches, children)
    for handle in handles:
        handle.remove()
    for name, layer in network.layers.items():
        layer.input_mean.fill_(totals[name] / (len(batches) * len(children)))
