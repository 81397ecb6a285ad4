"""Normalization statistics after training: estimated without gradients, cheap, and also for unseen bit-widths."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.norms import PrivateNorm
from emqdeploy.registry import Registry
from emqdeploy.training.batches import BatchRequest, ImageSource
from emqdeploy.training.steps import Epoch, interleaved

NormAdaptation = Callable[[MultiBitNetwork, list[Tensor], tuple[int, ...]], None]
"""``(network, batches of normalised images, bit-widths to serve)``; changes the network's statistics."""

NORM_ADAPTATIONS: Registry[NormAdaptation] = Registry("norm adaptation")


@NORM_ADAPTATIONS.register("none")
def keep_statistics(network: MultiBitNetwork, batches: list[Tensor], widths: tuple[int, ...]) -> None:
    """Serves every bit-width with the running statistics that training left under the network's norm policy.

    Training adds no missing mean to the bias, so its statistics hold that shift already and evaluation must not add it.
    """
    for layer in network.layers.values():
        layer.input_mean.zero_()


@NORM_ADAPTATIONS.register("shared")
def estimate_shared(network: MultiBitNetwork, batches: list[Tensor], widths: tuple[int, ...]) -> None:
    """Re-estimates the one set of statistics over the mixture of the trained bit-widths."""
    _estimate(network, batches, network.trained_bits)
    for norm in network.norms.values():
        norm.estimated.fill_(False)


@NORM_ADAPTATIONS.register("bits")
def estimate_per_bits(network: MultiBitNetwork, batches: list[Tensor], widths: tuple[int, ...]) -> None:
    """Estimates statistics for each bit-width, trained or not; gain and shift stay shared."""
    for bits in widths:
        _estimate(network, batches, (bits,))
        for norm in network.norms.values():
            norm.bit_mean[bits - 1] = norm.running_mean
            norm.bit_var[bits - 1] = norm.running_var
            norm.estimated[bits - 1] = True
    # What is shared stays the mixture, for whoever fine-tunes from here.
    _estimate(network, batches, network.trained_bits)


@torch.no_grad()
def _estimate(network: MultiBitNetwork, batches: list[Tensor], widths: tuple[int, ...]) -> None:
    """Averages batch statistics over all batches and ``widths`` into the shared running statistics."""
    norms = list(network.norms.values())
    if not norms:  # a transformer: LayerNorm keeps no statistics
        return
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average, which leaves the statistics per bit-width alone
        norm.train()
    for images in batches:
        for bits in widths:
            with network.bits(bits):
                network(images)
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
        norm.eval()


def calibrate(
    network: MultiBitNetwork,
    source: ImageSource,
    widths: tuple[int, ...],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> int:
    """Trains the private norms of bit-widths that training never visited, and nothing else (Any-Precision's stage).

    Args:
        network: with private norms.
        source: training images.
        widths: the bit-widths to calibrate.
        epochs: passes of each over the images.
        batch_size: images in a step.
        learning_rate: of plain momentum, annealed to zero.
        seed: fixes batches and augmentation.

    Returns:
        images that went forward and backward.
    """
    norms = [norm for norm in network.norms.values() if isinstance(norm, PrivateNorm)]
    learned = {id(parameter) for norm in norms for parameter in (norm.bit_weight, norm.bit_bias)}
    frozen = [p for p in network.parameters() if p.requires_grad and id(p) not in learned]
    for parameter in frozen:
        parameter.requires_grad_(False)
    for norm in norms:
        norm.start(widths)
    passes = 0
    subsets = {bits: np.arange(len(source)) for bits in widths}
    plans = [interleaved.plan(Epoch(subsets, batch_size, seed, epoch, epochs)) for epoch in range(epochs)]
    steps = [step for plan in plans for step in plan]
    optimizer = torch.optim.SGD([p for norm in norms for p in (norm.bit_weight, norm.bit_bias)], learning_rate, 0.9)
    requests = (BatchRequest(step.indices, hash((seed, -1, index)) & (2**63 - 1)) for index, step in enumerate(steps))
    network.train()
    for index, (step, images) in enumerate(zip(steps, source.stream(requests), strict=True)):
        network.set_bits(step.children[0])
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - index / len(steps))
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), source.labels[torch.from_numpy(step.indices)]).backward()
        optimizer.step()
        passes += len(step.indices)
    for parameter in frozen:
        parameter.requires_grad_(True)
    return passes


@torch.no_grad()
def measure_input_means(network: MultiBitNetwork, batches: list[Tensor]) -> None:
    """Measures the mean of every layer's input, over the trained bit-widths.

    It turns what the integer grid could not hold of a channel's mean weight into bias; see `QuantLayer`.
    """
    network.eval()
    totals = {name: 0.0 for name in network.layers}
    handles = []
    for name, layer in network.layers.items():

        def add(module: torch.nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
            totals[name] += float(inputs[0].mean())

        handles.append(layer.register_forward_pre_hook(add))
    for images in batches:
        for bits in network.trained_bits:
            with network.bits(bits):
                network(images)
    for handle in handles:
        handle.remove()
    for name, layer in network.layers.items():
        layer.input_mean.fill_(totals[name] / (len(batches) * len(network.trained_bits)))
